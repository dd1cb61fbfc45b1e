import copy

import pytest
import torch
from torch import nn

from penjing.errors import DataError
from penjing.graph import capture
from penjing.plan import ChannelPlan
from penjing.prune import find_blocks, prune_channels, refit
from penjing.search import drops
from penjing.search.drops import dropping
from tests.nets import conv, net
from tests.oracle import randomized

EXAMPLE = (torch.zeros(2, 1, 12, 12),)


class Blocks(nn.Module):
    """Three residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(1, 4), nn.Linear(4, 3)
        self.blocks = nn.ModuleList(nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = (x + block(x)).relu()
        y: torch.Tensor = self.head(x.mean((2, 3)))
        return y


NAMES = ["blocks.0", "blocks.1", "blocks.2"]


@pytest.fixture
def model() -> Blocks:
    return randomized(Blocks()).eval()  # type: ignore[return-value]


@pytest.fixture
def data() -> list[torch.Tensor]:
    return list(torch.randn(96, 1, 12, 12, generator=torch.Generator().manual_seed(1)).split(32))


def by_hand(model: Blocks, data: list[torch.Tensor], names: tuple[str, ...], samples: int) -> float:
    fitted, judged = torch.cat(data).split([72, 24])
    plan = ChannelPlan({}, names)
    small = refit(prune_channels(model, plan, EXAMPLE), model, plan, EXAMPLE, fitted[:samples].split(32))
    with torch.no_grad():
        exact, got = model(judged).double(), small(judged).double()
    return float((got - exact).square().sum() / exact.square().sum())


def test_errors_are_those_of_the_networks_without_the_blocks_refitted(model: Blocks, data: list[torch.Tensor]) -> None:
    found = dropping(model, EXAMPLE, data)
    assert list(found) == sorted(NAMES, key=lambda name: by_hand(model, data, (name,), 64))
    worst = 0.0
    for n, name in enumerate(found, 1):
        worst = max(worst, by_hand(model, data, tuple(list(found)[:n]), 72))
        assert found[name] == pytest.approx(worst, rel=1e-4)


def test_a_block_that_adds_nothing_goes_first_and_costs_nothing(model: Blocks, data: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter in model.blocks[2][2].parameters():  # type: ignore[index]
            parameter.zero_()
    found = dropping(model, EXAMPLE, data)
    assert next(iter(found)) == "blocks.2"
    assert found["blocks.2"] < 1e-9 < min(e for name, e in found.items() if name != "blocks.2")


def test_an_interrupted_table_goes_on_and_blocks_may_be_told_to_stay(model: Blocks, data: list[torch.Tensor]) -> None:
    told: dict[str, float] = {}
    whole = dropping(model, EXAMPLE, data, stay=lambda b: b.name == "blocks.0", on_blocks=told.__setitem__)
    assert sorted(whole) == NAMES[1:]
    assert len(told) == 4
    known = dict(list(told.items())[:3])
    again: dict[str, float] = {}
    assert (
        dropping(model, EXAMPLE, data, stay=lambda b: b.name == "blocks.0", known=known, on_blocks=again.__setitem__) == whole
    )
    assert again == dict(list(told.items())[3:])


def test_where_refitting_costs_much_only_what_does_least_is_tried(
    model: Blocks, data: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        for parameter in model.blocks[1][2].parameters():  # type: ignore[index]
            parameter.mul_(1e-3)
    monkeypatch.setattr(drops, "WORK", 1.0)
    assert list(dropping(model, EXAMPLE, data)) == ["blocks.1"]


def test_of_blocks_within_blocks_the_inner_ones_are_tried() -> None:
    make = net(lambda m, x: (y := m.a(x)) + m.c((z := m.b(y)) + m.d(z)), a=conv(1, 4), b=conv(4, 4), c=conv(4, 4), d=conv(4, 4))
    model = randomized(make()).eval()
    assert len(find_blocks(capture(model, EXAMPLE))) == 2
    assert list(dropping(model, EXAMPLE, [torch.randn(64, 1, 12, 12)])) == ["d"]


def test_a_network_for_one_batch_size_has_no_blocks_to_leave_out() -> None:
    make = net(lambda m, x: (y := m.a(x)) + m.b(y) + torch.arange(int(x.shape[0])).sum(), a=conv(1, 4), b=conv(4, 4))
    assert dropping(make().eval(), EXAMPLE, [torch.randn(2, 1, 12, 12)]) == {}


def test_without_data_it_says_so(model: Blocks) -> None:
    with pytest.raises(DataError, match="empty"):
        dropping(copy.deepcopy(model), EXAMPLE, [])


def test_the_whole_network_is_no_block() -> None:
    make = net(lambda m, x: x + m.b(m.a(x)), a=conv(1, 4), b=conv(4, 1))
    assert len(find_blocks(capture(make().eval(), EXAMPLE))) == 1
    assert dropping(make().eval(), EXAMPLE, [torch.randn(64, 1, 12, 12)]) == {}


def test_a_block_without_which_the_output_is_not_finite_stays() -> None:
    make = net(lambda m, x: ((y := m.a(x)) + m.b(y)).log(), a=conv(1, 4), b=conv(4, 4))
    model = make().eval()
    with torch.no_grad():
        model.b.weight.zero_()  # type: ignore[union-attr, operator]
        model.b.bias.fill_(1e3)  # type: ignore[union-attr, operator]
    told: dict[str, float] = {}
    assert dropping(model, EXAMPLE, [torch.randn(64, 1, 12, 12)], on_blocks=told.__setitem__) == {}
    assert told == {}
