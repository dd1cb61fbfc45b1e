import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from penjing.graph import capture
from penjing.quant.fold import fold
from penjing.quant.merge import merge


class Sum(nn.Module):
    """Branches of one input, added up."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        found = [branch(x) for branch in self.branches]
        total = found[0]
        for y in found[1:]:
            total = total + y
        return torch.relu(total)


class Beside(Sum):
    """Branches side by side, with a norm behind."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__(*branches)
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(torch.cat([branch(x) for branch in self.branches], 1)))


def conv(kernel: int | tuple[int, int], padding: int | tuple[int, int], **more: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, kernel, padding=padding, bias=False, **more), nn.BatchNorm2d(8))


def merged(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Convolutions before and after; the function must be the same."""
    for norm in [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]:
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    model = model.double().eval()
    module = copy.deepcopy(capture(model, x).module)
    fold(module)
    before = sum("conv" in str(n.target) for n in module.graph.nodes if n.op == "call_function")
    merge(module)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(model(x + 1), expected)  # control
    left = [n for n in module.graph.nodes if n.op == "call_function"]
    assert not any("add" in str(n.target) for n in left) or before == sum("conv" in str(n.target) for n in left)
    return before, sum("conv" in str(n.target) for n in left)


X = torch.randn(2, 8, 9, 9, dtype=torch.float64)


@pytest.mark.parametrize(
    "branches",
    [
        lambda: (conv(3, 1), conv(1, 0)),
        lambda: (conv(1, 0), conv(3, 1)),
        lambda: (conv(3, 1), conv(1, 0), nn.BatchNorm2d(8)),
        lambda: (nn.BatchNorm2d(8), conv(3, 1), conv(1, 0)),
        lambda: (conv(3, 1, groups=8), conv(1, 0, groups=8), nn.BatchNorm2d(8)),
        lambda: (conv(3, 1, groups=2), nn.BatchNorm2d(8)),
        lambda: (conv(3, 1, stride=2), conv(1, 0, stride=2)),
        lambda: (conv((1, 3), (0, 1)), conv(3, 1), conv((3, 1), (1, 0))),
    ],
)
def test_sums_of_convolutions_become_one(branches: Callable[[], tuple[nn.Module, ...]]) -> None:
    assert merged(Sum(*branches()), X)[1] == 1


@pytest.mark.parametrize(
    "branches",
    [
        lambda: (conv(3, 1), conv(3, 1, groups=2)),  # other groups
        lambda: (conv(3, 2, dilation=2), conv(1, 0)),  # taps lie apart
        lambda: (conv(3, 2, dilation=2), nn.BatchNorm2d(8)),
        lambda: (conv(3, 1), nn.Sequential(conv(1, 0), nn.ReLU())),  # an activation between
        lambda: (conv(2, 1), nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), conv(1, 0))),  # of another input
    ],
)
def test_what_is_no_sum_of_one_input_stays(branches: Callable[[], tuple[nn.Module, ...]]) -> None:
    before, after = merged(Sum(*branches()), X)
    assert after == before


def test_a_norm_behind_a_concatenation_folds_into_all_parts() -> None:
    model = Beside(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1, bias=False))
    module = copy.deepcopy(capture(model.double().eval(), X).module)
    merge(module)
    assert not any("batch_norm" in str(n.target) for n in module.graph.nodes)
    assert merged(model, X) == (2, 2)


def test_a_norm_behind_a_concatenation_of_anything_else_stays() -> None:
    model = Beside(nn.Conv2d(8, 8, 3, padding=1), nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU())).double().eval()
    module = copy.deepcopy(capture(model, X).module)
    merge(module)
    assert any("batch_norm" in str(n.target) for n in module.graph.nodes)


def test_a_norm_behind_a_concatenation_of_one_value_twice_stays() -> None:
    class Twice(Beside):
        def forward(self, x: Tensor) -> Tensor:
            y = self.branches[0](x)
            return torch.relu(self.norm(torch.cat([y, y], 1)))

    assert merged(Twice(nn.Conv2d(8, 6, 1)), X) == (1, 1)


class Parts(nn.Module):
    """Each part of the channels through a convolution of its own."""

    def __init__(self, *convs: nn.Module, sizes: tuple[int, ...] = (4, 4), swap: bool = False) -> None:
        super().__init__()
        self.convs, self.sizes, self.swap = nn.ModuleList(convs), sizes, swap

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.sizes, 1)
        found = [c(p) for c, p in zip(self.convs, parts[::-1] if self.swap else parts, strict=True)]
        return torch.relu(torch.cat(found, 1))


def test_convolutions_of_all_parts_become_one_in_groups() -> None:
    assert merged(Parts(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1, bias=False)), X) == (2, 1)
    assert merged(Parts(*(nn.Conv2d(4, 6, 1, bias=False) for _ in range(2))), X) == (2, 1)
    assert merged(Parts(*(nn.Conv2d(4, 6, 3, padding="valid") for _ in range(2))), X) == (2, 1)
    four = [nn.Conv2d(2, 2, 1, groups=2) for _ in range(4)]
    assert merged(Parts(*four, sizes=(2, 2, 2, 2)), X) == (4, 1)


@pytest.mark.parametrize(
    "model",
    [
        lambda: Parts(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)),
        lambda: Parts(nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1), swap=True),
        lambda: Parts(nn.Conv2d(3, 6, 1), nn.Conv2d(5, 6, 1), sizes=(3, 5)),
    ],
    ids=["kernels differ", "out of order", "parts differ"],
)
def test_other_parts_stay(model: Callable[[], nn.Module]) -> None:
    assert merged(model(), X) == (2, 2)


def test_a_sum_that_spreads_one_branch_over_the_other_is_left_alone() -> None:
    net = Sum(nn.Conv2d(3, 4, 8), nn.Conv2d(3, 4, 1)).eval()
    x = torch.randn(2, 3, 8, 8)
    module = capture(net, x).module
    merge(module)
    with torch.no_grad():
        torch.testing.assert_close(module(x), net(x))
