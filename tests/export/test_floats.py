"""Layers that stay in float between integers: their file computes what the module does, bit by bit or nearly."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj
from penjing.export import RUNTIMES
from penjing.quant import Scheme


class Between(nn.Module):
    """Two layers that run in integers, and between them one that does not and has a channel a hundred times the others."""

    def __init__(self, middle: nn.Module, moved: Callable[[Tensor], Tensor], last: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.moved, self.last = nn.Conv2d(3, 8, 3, padding=1), middle, moved, last
        middle.weight.data[0] *= 100  # type: ignore[operator, union-attr]

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(F.relu(self.middle(self.moved(F.relu(self.first(x))))))
        return found


NETS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: Between(nn.Conv2d(8, 8, 3), lambda y: y, nn.Conv2d(8, 4, 1)),
    "in groups": lambda: Between(nn.Conv2d(8, 8, 3, groups=4), lambda y: y, nn.Conv2d(8, 4, 1)),
    "transposed": lambda: Between(nn.ConvTranspose2d(8, 6, 2, 2), lambda y: y, nn.Conv2d(6, 4, 1)),
    "behind a pool": lambda: Between(nn.Conv2d(8, 8, 3), lambda y: F.max_pool2d(y, 2), nn.Conv2d(8, 4, 1)),
    "linear": lambda: Between(nn.Linear(8 * 144, 8), lambda y: y.flatten(1), nn.Linear(8, 4)),
    "linear behind a pool": lambda: Between(nn.Linear(8 * 36, 8), lambda y: F.max_pool2d(y, 2).flatten(1), nn.Linear(8, 4)),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("target", RUNTIMES)
@pytest.mark.parametrize("name", NETS)
def test_what_stays_in_float_is_not_rounded_by_the_runtime(name: str, target: str, tmp_path: Path) -> None:
    """ONNX Runtime rounds such weights to 8 bits with one scale for all of them, while it loads the file."""
    torch.manual_seed(0)
    net, x = NETS[name]().eval(), torch.randn(4, 3, 12, 12)
    module = pj.quantize(net, x, [x], target=target, scheme=Scheme(exclude=("middle.weight",)))
    file = pj.export(module, x, tmp_path / "net.onnx", target=target)
    with torch.no_grad():
        expected = module(x)
    for runtime in {target, "openvino"}:  # files for OpenVINO are not made for the other one
        found = file.on(runtime).load(1, "f32")(x)
        alike = torch.isclose(found, expected, rtol=1e-4, atol=1e-4)
        assert alike.double().mean() > 0.99  # a sum in another order may fall on the other side of half a step
    kinds = [k.precision for k in file.kernels("f32") if k.weighted]
    assert kinds == ["int8", "f32", "int8"]
