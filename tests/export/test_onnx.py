from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from penjing.errors import ExportError, RecipeError
from penjing.export import RUNTIMES, export, left_in_float
from penjing.prune import prune
from penjing.quant import Scheme, quantize
from penjing.zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_float_file_equals_torch_in_both_runtimes(name: str, tmp_path: Path) -> None:
    make, shape = ZOO[name]
    model, x = make().eval(), torch.randn(6, *shape)
    artifact = export(model, x[:1], tmp_path / "net.onnx")
    with torch.no_grad():
        expected = model(x)
    for runtime in RUNTIMES:
        found = artifact.on(runtime).load(1, "f32")(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(artifact.load(1)(x.flip(0)), expected)  # control


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ZOO)
def test_int8_file_runs_in_int8_and_agrees_with_torch(name: str, tmp_path: Path) -> None:
    make, shape = ZOO[name]
    torch.manual_seed(0)
    x = torch.randn(64, *shape)
    small = prune(make(), x[:1], 0.5)
    module = quantize(small, x[:1], [x])
    artifact = export(module, x[:1], tmp_path / "net.onnx")
    for runtime in RUNTIMES:
        ours = artifact.on(runtime)
        assert left_in_float(ours.kernels()) == []
        assert sum(k.weighted for k in ours.kernels()) == sum("per_channel" in str(n.target) for n in module.graph.nodes)
        agreement = ours.agreement(module, x)
        assert agreement.cosine > 0.999
        assert agreement.samples == 64


def test_what_is_computed_from_constants_is_no_kernel(tmp_path: Path) -> None:
    model, x = nn.Conv2d(3, 16, 3), torch.randn(1, 3, 8, 8)  # its bias is reshaped when the network is compiled
    kernels = export(model, x, tmp_path / "net.onnx").on("openvino").kernels()
    assert [k.op for k in kernels] == ["Convolution"]


def test_weights_are_stored_as_the_integers_that_torch_computes(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)), torch.randn(2, 3, 8, 8)
    module = quantize(model, x, [x])
    proto = onnx.load(export(module, x, tmp_path / "net.onnx").path)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    made = {o: n for n in proto.graph.node for o in n.output}
    convs = [n for n in proto.graph.node if n.op_type == "Conv"]
    assert len(convs) == 2
    for conv, name in zip(convs, ("0.weight", "2.weight"), strict=True):
        dequantize = made[conv.input[1]]
        integers, scale = held[dequantize.input[0]], held[dequantize.input[1]]
        assert integers.dtype == np.int8
        weight = module.get_parameter(name)
        expected = torch.fake_quantize_per_channel_affine(
            weight, torch.tensor(scale), torch.zeros(len(scale), dtype=torch.int32), 0, -128, 127
        )
        np.testing.assert_array_equal(integers * scale.reshape(-1, 1, 1, 1), expected.detach().numpy())


def test_the_file_is_small_and_has_a_free_batch(tmp_path: Path) -> None:
    make, shape = ZOO["resnet20"]
    model, x = make(), torch.randn(1, *shape)
    full = export(model, x, tmp_path / "full.onnx")
    integers = export(quantize(model, x, [x]), x, tmp_path / "int8.onnx")
    assert full.dynamic
    assert integers.dynamic
    assert 3.8 < full.path.stat().st_size / integers.path.stat().st_size < 4


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.relu(self.a(x) + self.b(y))
        return z, z.mean((2, 3))


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    model, inputs = Several().eval(), (torch.randn(2, 1, 6, 6), torch.randn(2, 2, 6, 6))
    artifact = export(model, inputs, tmp_path / "net.onnx")
    for runtime in RUNTIMES:
        found = artifact.on(runtime).load(1, "f32")(*inputs)
        assert len(found) == 2
        for a, b in zip(found, model(*inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    arrays = artifact.load(1)(*(x.numpy() for x in inputs))
    assert all(isinstance(a, np.ndarray) for a in arrays)


class Stranger(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x @ x.mT)


def test_what_onnx_does_not_have_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written as ONNX"):
        export(Stranger(), torch.randn(2, 3, 3), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="tflite"):
        export(nn.Conv2d(1, 1, 1), torch.randn(1, 1, 2, 2), tmp_path / "net.onnx", target="tflite")


@pytest.mark.parametrize("spoil", [Path.unlink, lambda p: p.write_bytes(b"other")], ids=["gone", "changed"])
def test_a_file_that_is_gone_or_changed_is_not_loaded(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    artifact = export(nn.Conv2d(1, 1, 1), torch.randn(1, 1, 2, 2), tmp_path / "net.onnx")
    spoil(artifact.path)
    with pytest.raises(ExportError, match="export the network again"):
        artifact.load()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_that_is_not_onnx_is_refused(runtime: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"this is not a network")
    with pytest.raises(ExportError, match="does not"):
        RUNTIMES[runtime].load(path, 1, None)


class Ghost(nn.Module):
    """A concatenation of which a slice is read, as in GhostNet; and a layer that stays in float."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(16, 4, 1)
        self.d = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        found: Tensor = self.d(torch.relu(self.c(torch.cat([y, torch.relu(self.b(y))], 1)[:, :16])))
        return found


@pytest.mark.parametrize("target", RUNTIMES)
def test_a_file_holds_nothing_that_is_not_read(target: str, tmp_path: Path) -> None:
    """ONNX Runtime runs it all: a decoding that nobody read took a third of GhostNet's time."""
    x = torch.randn(2, 3, 8, 8)
    module = quantize(Ghost().eval(), x, [x], target=target, scheme=Scheme(exclude=("c.weight",)))
    graph = onnx.load(str(export(module, x, tmp_path / "net.onnx", target=target).path)).graph
    read = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
    assert {o for n in graph.node for o in n.output} | {t.name for t in graph.initializer} <= read
