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
from penjing.zoo import ResNet
from tests.nets import conv, net
from tests.oracle import randomized

EXAMPLE = (torch.zeros(2, 1, 12, 12),)


@pytest.fixture
def model() -> nn.Module:
    return randomized(ResNet(blocks=2, width=4)).eval()


@pytest.fixture
def data() -> list[torch.Tensor]:
    return list(torch.randn(96, 1, 12, 12, generator=torch.Generator().manual_seed(1)).split(32))


def by_hand(model: nn.Module, data: list[torch.Tensor], names: tuple[str, ...], samples: int) -> float:
    fitted, judged = torch.cat(data).split([72, 24])
    plan = ChannelPlan({}, names)
    small = refit(prune_channels(model, plan, EXAMPLE), model, plan, EXAMPLE, fitted[:samples].split(32))
    with torch.no_grad():
        exact, got = model(judged).double(), small(judged).double()
    return float((got - exact).square().sum() / exact.square().sum())


def test_errors_are_those_of_the_networks_without_the_blocks_refitted(model: nn.Module, data: list[torch.Tensor]) -> None:
    found = dropping(model, EXAMPLE, data)
    names = ["stage1.0", "stage1.1", "stage2.1", "stage3.1"]
    assert list(found) == sorted(names, key=lambda name: by_hand(model, data, (name,), 64))
    worst = 0.0
    for n, name in enumerate(found, 1):
        worst = max(worst, by_hand(model, data, tuple(list(found)[:n]), 72))
        assert found[name] == pytest.approx(worst, rel=1e-4)


def test_a_block_that_adds_nothing_goes_first_and_costs_nothing(model: nn.Module, data: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter in model.stage3[1].bn2.parameters():  # type: ignore[index, union-attr]
            parameter.zero_()
    found = dropping(model, EXAMPLE, data)
    assert next(iter(found)) == "stage3.1"
    assert found["stage3.1"] < 1e-9 < min(e for name, e in found.items() if name != "stage3.1")


def test_an_interrupted_table_goes_on_and_blocks_may_be_told_to_stay(model: nn.Module, data: list[torch.Tensor]) -> None:
    told: dict[str, float] = {}
    whole = dropping(model, EXAMPLE, data, stay=lambda b: b.name == "stage1.0", on_blocks=told.__setitem__)
    assert sorted(whole) == ["stage1.1", "stage2.1", "stage3.1"]
    assert len(told) == 6
    known = dict(list(told.items())[:4])
    again: dict[str, float] = {}
    assert (
        dropping(model, EXAMPLE, data, stay=lambda b: b.name == "stage1.0", known=known, on_blocks=again.__setitem__) == whole
    )
    assert again == dict(list(told.items())[4:])


def test_where_refitting_costs_much_only_what_does_least_is_tried(
    model: nn.Module, data: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        model.stage2[1].bn2.weight.mul_(1e-3)  # type: ignore[index, union-attr]
        model.stage2[1].bn2.bias.mul_(1e-3)  # type: ignore[index, union-attr]
    monkeypatch.setattr(drops, "WORK", 1.0)
    assert list(dropping(model, EXAMPLE, data)) == ["stage2.1"]


def test_of_blocks_within_blocks_the_inner_ones_are_tried() -> None:
    make = net(lambda m, x: (y := m.a(x)) + m.c((z := m.b(y)) + m.d(z)), a=conv(1, 4), b=conv(4, 4), c=conv(4, 4), d=conv(4, 4))
    model = randomized(make()).eval()
    assert len(find_blocks(capture(model, EXAMPLE))) == 2
    assert list(dropping(model, EXAMPLE, [torch.randn(64, 1, 12, 12)])) == ["d"]


def test_a_network_for_one_batch_size_has_no_blocks_to_leave_out() -> None:
    make = net(lambda m, x: (y := m.a(x)) + m.b(y) + torch.arange(int(x.shape[0])).sum(), a=conv(1, 4), b=conv(4, 4))
    assert dropping(make().eval(), EXAMPLE, [torch.randn(2, 1, 12, 12)]) == {}


def test_without_data_it_says_so(model: nn.Module) -> None:
    with pytest.raises(DataError, match="empty"):
        dropping(copy.deepcopy(model), EXAMPLE, [])
