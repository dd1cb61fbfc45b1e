"""Grids of fewer than 8 bits in files: what the runtimes compute is what the fake-quantized module computes."""

import copy
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from penjing.export import RUNTIMES, export, left_in_float
from penjing.export.lower import lower
from penjing.quant import Scheme, quantize


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(32, 10)).eval(), torch.randn(8, 3, 12, 12)


SCHEMES = {
    **{f"{b}-bit weights": Scheme(weight_bits=b, edge_bits=b) for b in range(2, 8)},
    "4-bit values": Scheme(value_bits=4),
    "symmetric values": Scheme(values="symmetric"),
    "mean-centered values": Scheme(values="mean_centered"),
    "mean-centered weights": Scheme(weights="mean_centered"),
    "affine 4-bit weights": Scheme(weights="affine", weight_bits=4),
    "one scale a weight": Scheme(block="tensor"),
    "blocks": Scheme(block=4, weight_bits=4),
    "outputs": Scheme(outputs="mean_centered"),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SCHEMES)
def test_lowered_is_the_same_function(name: str) -> None:
    model, x = network()
    module = quantize(model, x, [x], scheme=SCHEMES[name])
    lowered = copy.deepcopy(module)
    lower(lowered)
    with torch.no_grad():
        torch.testing.assert_close(lowered(x * 1.5), module(x * 1.5), rtol=0, atol=1e-6)
    limits = {n.args[-2:] for n in lowered.graph.nodes if "fake_quantize" in str(n.target)}
    assert limits <= {(0, 255), (-128, 127)}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", SCHEMES)
def test_both_runtimes_compute_what_torch_does(name: str, tmp_path: Path) -> None:
    model, x = network()
    module = quantize(model, x, [x], scheme=SCHEMES[name])
    artifact = export(module, x[:1], tmp_path / "net.onnx")
    step = float(module(x).detach().abs().max()) / (127 if SCHEMES[name].value_bits == 8 else 7)
    for runtime in RUNTIMES:
        assert artifact.on(runtime).agreement(module, x).mean < step / 3, runtime


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_weights_of_four_bits_are_packed_and_still_run_in_int8(bits: int, tmp_path: Path) -> None:
    model, x = network()
    module = quantize(model, x, [x], scheme=Scheme(weight_bits=bits, edge_bits=bits))
    artifact = export(module, x[:1], tmp_path / "net.onnx")
    kinds = {t.data_type for t in onnx.load(artifact.path).graph.initializer if len(t.dims) > 1}
    assert kinds == {onnx.TensorProto.INT4 if bits <= 4 else onnx.TensorProto.INT8}
    for runtime in RUNTIMES:
        assert left_in_float(artifact.on(runtime).kernels()) == []


def test_layers_have_the_names_of_the_network_and_a_reason_when_in_float(tmp_path: Path) -> None:
    model, x = network()
    artifact = export(quantize(model, x, [x], scheme=Scheme(exclude=("2.*",))), x[:1], tmp_path / "net.onnx")
    for runtime in RUNTIMES:
        floats = left_in_float(artifact.on(runtime).kernels())
        assert [k.reason for k in floats] == ["it was excluded"]
        assert floats[0].layer.startswith("2")
