from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from penjing.export import export
from penjing.quant import quantize


class Mean(nn.Module):
    def __init__(self, dims: tuple[int, ...], keep: bool) -> None:
        super().__init__()
        self.conv, self.dims, self.keep = nn.Conv2d(3, 8, 3), dims, keep
        self.head = nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x)).mean(self.dims, keepdim=self.keep)
        return self.head(y.flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("dims", [(2, 3), (-1, -2)])
def test_a_mean_over_the_map_is_a_pool_for_onnx_runtime(dims: tuple[int, ...], keep: bool, tmp_path: Path) -> None:
    model, x = Mean(dims, keep).eval(), torch.randn(4, 3, 8, 8)
    model(x)
    artifact = export(model, x[:1], tmp_path / "net.onnx", target="onnxruntime")
    kinds = [n.op_type for n in onnx.load(artifact.path).graph.node]
    assert "GlobalAveragePool" in kinds
    assert "ReduceMean" not in kinds
    onnx.checker.check_model(onnx.load(artifact.path), full_check=True)
    with torch.no_grad():
        torch.testing.assert_close(artifact.load(1)(x), model(x), rtol=1e-5, atol=1e-6)
    module = quantize(model, x, [x])
    integers = export(module, x[:1], tmp_path / "int8.onnx")
    assert "QLinearGlobalAveragePool" in {k.op for k in integers.kernels()}
    assert integers.agreement(module, x).cosine > 0.9999


@pytest.mark.parametrize("dims", [(1,), (3,), (1, 2, 3)])
def test_other_means_stay(dims: tuple[int, ...], tmp_path: Path) -> None:
    model, x = Mean(dims, True).eval(), torch.randn(4, 3, 8, 8)
    model(x)
    artifact = export(model, x[:1], tmp_path / "net.onnx")
    assert "GlobalAveragePool" not in [n.op_type for n in onnx.load(artifact.path).graph.node]
    with torch.no_grad():
        torch.testing.assert_close(artifact.load(1)(x), model(x), rtol=1e-5, atol=1e-6)
