import copy
import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.errors import ModelError, PlanError, RecipeError
from penjing.graph import Channels, Group, capture, find_channels
from penjing.plan import ChannelPlan
from penjing.prune import choose_widths, plan_channels, plan_widths
from penjing.prune.decide import kept_count
from tests.nets import CUTTABLE
from tests.oracle import channels_of

X = torch.zeros(2, 3, 6, 6)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))


@given(st.integers(1, 300), st.floats(0, 0.999), st.integers(1, 64))
def test_kept_channels_are_steps_near_the_share(channels: int, ratio: float, round_to: int) -> None:
    kept = kept_count(channels, ratio, round_to)
    step = round_to if channels > round_to else max(1, channels // 4)
    wanted = channels * (1 - ratio)
    assert 1 <= kept <= channels
    assert kept % step == 0 or kept == channels
    assert abs(kept - wanted) <= step / 2 + 1e-9 or kept in (step, channels)
    assert kept_count(channels, 0, round_to) == channels


@given(st.integers(1, 300), st.integers(1, 64), st.floats(0, 0.999), st.floats(0, 0.999))
def test_a_higher_ratio_never_keeps_more(channels: int, round_to: int, a: float, b: float) -> None:
    assert kept_count(channels, max(a, b), round_to) <= kept_count(channels, min(a, b), round_to)


def test_the_weakest_channels_go() -> None:
    net = model()
    with torch.no_grad():
        net[0].weight[[1, 4]] *= 1e-3
        net[2].weight[:, [1, 4]] *= 1e-3
    plan = plan_channels(net, X, 0.25, round_to=1)
    assert plan.keep["0.weight"][0] == plan.keep["0.bias"][0] == plan.keep["2.weight"][1] == (0, 2, 3, 5, 6, 7)
    assert len(plan.keep["2.weight"][0]) == 12
    assert "4.bias" not in plan.keep


def last_first(group: Group, _weights: Mapping[str, Tensor]) -> Tensor:
    return -torch.arange(group.channels)


def test_the_criterion_decides_and_excluded_groups_stay_whole() -> None:
    plan = plan_channels(model(), X, 0.5, criterion=last_first, exclude=["4.*"], round_to=1)
    kept = (0, 1, 2, 3)
    assert plan == ChannelPlan({"0.weight": {0: kept}, "0.bias": {0: kept}, "2.weight": {1: kept}})


def test_deciding_leaves_the_model_as_it_was() -> None:
    net = model().train()
    state, chance = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    plan_channels(net, X, 0.5)
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)


def test_nothing_to_drop_is_an_empty_plan() -> None:
    assert plan_channels(model(), X, 0) == ChannelPlan({})


@pytest.fixture(scope="module")
def channels() -> Channels:
    return find_channels(capture(model(), X))


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, math.nan, math.inf])
def test_a_ratio_out_of_range_is_refused(channels: Channels, ratio: float) -> None:
    with pytest.raises(RecipeError, match="ratio is"):
        choose_widths(channels, ratio)


@pytest.mark.parametrize("round_to", [0, -8])
def test_a_step_out_of_range_is_refused(channels: Channels, round_to: int) -> None:
    with pytest.raises(RecipeError, match="round_to is"):
        choose_widths(channels, 0.5, round_to=round_to)


@pytest.mark.parametrize("exclude", [["head.*"], "0.*", ["0.weight", "5.*"]])
def test_a_pattern_that_fits_nothing_is_refused(channels: Channels, exclude: list[str]) -> None:
    with pytest.raises(RecipeError, match="fits no parameter"):
        choose_widths(channels, 0.5, exclude=exclude)


def test_weights_that_are_not_finite_are_refused() -> None:
    net = model()
    net[2].bias.data[3] = math.nan
    with pytest.raises(ModelError, match=r"1 of 16 values of 2\.bias"):
        plan_channels(net, X, 0.5)


@pytest.mark.parametrize("widths", [{"0.weight": 9}, {"0.weight": 0}, {"0.weight": -1}, {"1.weight": 4}, {"4.weight": 2}])
def test_widths_that_do_not_fit_are_refused(channels: Channels, widths: dict[str, int]) -> None:
    with pytest.raises(PlanError, match=next(iter(widths))):
        plan_widths(channels, dict(model().named_parameters()), widths)


def test_widths_are_kept_to(channels: Channels) -> None:
    plan = plan_widths(channels, dict(model().named_parameters()), {"0.weight": 3})
    assert {name: {d: len(i) for d, i in dims.items()} for name, dims in plan.keep.items()} == {
        "0.weight": {0: 3},
        "0.bias": {0: 3},
        "2.weight": {1: 3},
    }


def test_every_group_loses_its_share() -> None:
    """Here the channels of one layer fall into two groups, of four and of two channels."""
    channels = channels_of("concatenated_then_grouped")
    weights = dict(CUTTABLE["concatenated_then_grouped"]().named_parameters())
    plan = plan_widths(channels, weights, choose_widths(channels, 0.25, round_to=1))
    first = [a.index for g in channels.groups for a in g.axes if (a.name, a.dim) == ("a.weight", 0)]
    assert sorted(len(index) for index in first) == [2, 4]
    kept = set(plan.keep["a.weight"][0])
    stay = [sum(set(row) <= kept for row in index.tolist()) for index in first]
    assert stay == [kept_count(len(index), 0.25, 1) for index in first]
