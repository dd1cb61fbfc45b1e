from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.export import RUNTIMES, export, left_in_float
from penjing.quant import quantize


class Padded(nn.Module):
    """Pads as TensorFlow does, unevenly, before the second convolution."""

    def __init__(self, sizes: list[int], value: float = 0.0, mode: str = "constant") -> None:
        super().__init__()
        self.first, self.second, self.sizes, self.value, self.mode = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3, 2),
            sizes,
            value,
            mode,
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        z: Tensor = self.second(F.pad(y, self.sizes, self.mode, self.value if self.mode == "constant" else None))
        return z


def kinds(path: Path) -> list[str]:
    return [n.op_type for n in onnx.load(path).graph.node]


@pytest.mark.parametrize("target", RUNTIMES)
def test_uneven_zeros_are_added_by_the_convolution(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Padded([0, 1, 0, 2]).eval(), torch.randn(4, 3, 12, 12)
    whole = export(model, x[:1], tmp_path / "float.onnx", target=target)
    assert "Pad" not in kinds(whole.path)
    with torch.no_grad():
        torch.testing.assert_close(whole.load(1, "f32")(x), model(x), rtol=1e-4, atol=1e-5)
    module = quantize(model, x, [x], target=target)
    integers = export(module, x[:1], tmp_path / "int8.onnx", target=target)
    assert "Pad" not in kinds(integers.path)
    onnx.checker.check_model(onnx.load(integers.path), full_check=True)
    assert left_in_float(integers.kernels()) == []
    assert integers.agreement(module, x).cosine > 0.9999


@pytest.mark.parametrize(
    "model", [Padded([0, 1, 0, 1], 0.5), Padded([1, 1, 1, 1], mode="reflect"), Padded([0, 1, 0, 1, 0, 0, 0, 0])], ids=str
)
def test_other_padding_is_right_as_well(model: Padded, tmp_path: Path) -> None:
    x = torch.randn(4, 3, 12, 12)
    model.eval()
    artifact = export(model, x[:1], tmp_path / "net.onnx")
    assert ("Pad" in kinds(artifact.path)) == (model.value != 0 or model.mode != "constant")
    with torch.no_grad():
        torch.testing.assert_close(artifact.load(1)(x), model(x), rtol=1e-4, atol=1e-5)
    module = quantize(model, x, [x])
    assert export(module, x[:1], tmp_path / "int8.onnx").agreement(module, x).cosine > 0.9999
