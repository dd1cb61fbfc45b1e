import copy
import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.errors import BudgetError, ModelError, PlanError, RecipeError
from penjing.graph import Axis, Channels, Group, capture, find_channels
from penjing.graph.layers import macs
from penjing.plan import ChannelPlan
from penjing.prune import plan_channels, plan_widths, prune_channels
from penjing.prune.decide import Selection, Start, allowed_widths, plan_selection
from penjing.score import Evidence, Scores, l2_norm
from penjing.zoo import DenseNet, MobileNet, ResNet
from tests.nets import CUTTABLE, IMAGE, SHAPES
from tests.oracle import channels_of, choose_widths, inputs, kept_count

X = torch.zeros(2, 3, 6, 6)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))


@functools.cache
def read(name: str = "model") -> Evidence:
    torch.manual_seed(0)
    net, shape = {
        "model": (model(), (3, 6, 6)),
        "resnet": (ResNet(blocks=2, width=16), (1, 12, 12)),
        "mobilenet": (MobileNet(), (1, 12, 12)),
        "densenet": (DenseNet(), (1, 12, 12)),
    }[name]
    return Evidence.of(capture(net, torch.zeros(2, *shape)))


# How many channels of a group.


@pytest.mark.parametrize(
    ("arguments", "widths"),
    [
        ((64, 16, 1, 0.0), [64, 48, 32, 16]),
        ((20, 8, 1, 0.0), [20, 16, 8]),
        ((64, 16, 1, 0.3), [64, 48, 32]),
        ((64, 16, 1, 0.5), [64, 48, 32]),  # half of it, and not a step more for the rounding of 0.5 * 64 / 16
        ((8, 8, 1, 0.0), [8, 6, 4, 2]),
        ((3, 8, 1, 0.0), [3, 2, 1]),
        ((96, 8, 12, 0.0), [96, 72, 48, 24]),  # the least common multiple
        ((32, 8, 4, 0.0), [32, 24, 16, 8]),
        ((24, 16, 3, 0.0), [24, 18, 12, 6]),  # no wider than that: quarters of each block
        ((32, 8, 32, 0.0), [32]),  # one channel a block, as in an instance norm of fixed size
    ],
)
def test_the_widths_that_a_group_may_have(arguments: tuple[int, int, int, float], widths: list[int]) -> None:
    channels, round_to, blocks, floor = arguments
    assert allowed_widths(channels, round_to, blocks=blocks, floor=floor) == widths


def blocked(blocks: int, each: int) -> Channels:
    """One group, whose block ``i`` holds the channels ``i, i + blocks, ...``."""
    channels = blocks * each
    axis = Axis("a.weight", 0, torch.arange(channels)[:, None])
    group = Group((axis,), blocks=torch.arange(channels).view(each, blocks).t())
    return replace(read().channels, groups=(group,), shapes={"a.weight": (channels, 3)})


@given(st.integers(1, 8), st.integers(1, 12), st.floats(0, 0.99), st.integers(1, 16), st.floats(0, 0.5), st.integers(0, 99))
def test_blocks_stay_equal_and_lose_their_own_lowest(
    blocks: int, each: int, ratio: float, round_to: int, floor: float, seed: int
) -> None:
    channels = blocked(blocks, each)
    (group,) = channels.groups
    scores = torch.rand(group.channels, generator=torch.Generator().manual_seed(seed))
    widths = choose_widths(channels, ratio, round_to=round_to, floor=floor)
    plan = plan_widths(channels, {group.name: scores}, widths)
    kept = set(plan.keep.get("a.weight", {}).get(0, range(group.channels)))
    assert len(kept) == widths[group.name] >= floor * group.channels - 1e-6
    assert group.blocks is not None
    for row in group.blocks.tolist():
        stay = [c for c in row if c in kept]
        assert len(stay) == len(kept) // blocks
        assert min(scores[stay]) >= max((scores[c] for c in row if c not in kept), default=0)


def test_a_width_that_does_not_leave_blocks_equal_is_refused() -> None:
    with pytest.raises(PlanError, match=r"3 of group a\.weight does not leave 4 equal blocks"):
        plan_widths(blocked(4, 3), {"a.weight": torch.rand(12)}, {"a.weight": 3})


# Which channels.


def test_the_weakest_channels_go() -> None:
    net = model()
    with torch.no_grad():
        net[0].weight[[1, 4]] *= 1e-3
        net[2].weight[:, [1, 4]] *= 1e-3
    plan = plan_channels(net, X, 0.25, round_to=1)
    assert plan.keep["0.weight"][0] == plan.keep["0.bias"][0] == plan.keep["2.weight"][1] == (0, 2, 3, 5, 6, 7)
    assert len(plan.keep["2.weight"][0]) == 12
    assert "4.bias" not in plan.keep


def last_first(evidence: Evidence) -> Scores:
    return {g.name: -torch.arange(g.channels) for g in evidence.channels.groups}


@pytest.mark.parametrize("ranking", ["layer", "global", "isomorphic"])
def test_the_criterion_decides_and_excluded_groups_stay_whole(ranking: str) -> None:
    plan = plan_channels(model(), X, np.float32(0.5), criterion=last_first, ranking=ranking, exclude="4.*", round_to=1)  # type: ignore[arg-type]
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
    assert plan_channels(model(), X, 0) == plan_channels(model(), X, macs=1.0) == ChannelPlan({})


def selected(evidence: Evidence, scores: Scores, selection: Selection) -> dict[str, int]:
    """The widths of all groups."""
    plan = plan_selection(evidence, lambda _: scores, selection, Start.of(evidence))
    widths = {}
    for g in evidence.channels.groups:
        axis = g.axes[0]
        kept = set(plan.keep.get(axis.name, {}).get(axis.dim, range(evidence.channels.shapes[axis.name][axis.dim])))
        widths[g.name] = sum(set(row) <= kept for row in axis.index.tolist())
    return widths


def by_lot(evidence: Evidence, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.channels, generator=generator) + 0.1 for g in evidence.channels.groups}


@given(st.sampled_from(["model", "resnet", "mobilenet"]), st.floats(0, 0.99), st.integers(1, 20), st.floats(0, 0.6))
def test_ranked_by_layer_every_group_loses_its_share(name: str, ratio: float, round_to: int, floor: float) -> None:
    evidence = read(name)
    found = selected(evidence, by_lot(evidence), Selection(ratio=ratio, round_to=round_to, floor=floor))
    assert found == choose_widths(evidence.channels, ratio, round_to=round_to, floor=floor)


@given(st.floats(0, 0.9), st.sampled_from([1, 4, 8]), st.integers(0, 99))
def test_ranked_globally_the_whole_loses_its_share(ratio: float, round_to: int, seed: int) -> None:
    evidence = read("resnet")
    scores = by_lot(evidence, seed)
    found = selected(evidence, scores, Selection(ratio=ratio, ranking="global", round_to=round_to, floor=0.1))
    sizes = {g.name: g.channels for g in evidence.channels.groups}
    total = sum(sizes.values())
    lowest = {n: allowed_widths(c, round_to, floor=0.1)[-1] for n, c in sizes.items()}
    assert all(found[n] % round_to == 0 and found[n] >= lowest[n] for n in sizes)
    assert abs(total - sum(found.values()) - ratio * total) <= round_to / 2 + 1e-6 or found == lowest


def test_ranked_globally_one_threshold_holds_for_all_groups() -> None:
    """By brute force: all scores over the mean of their group, the lowest go."""
    evidence = read("resnet")
    scores = {n: s * (i + 1) for i, (n, s) in enumerate(by_lot(evidence).items())}  # of different sizes, which must not matter
    found = selected(evidence, scores, Selection(ratio=0.3, ranking="global", round_to=1, floor=0))
    pooled = torch.cat([s / s.mean() for s in scores.values()]).sort().values
    threshold = pooled[round(0.3 * len(pooled))]
    assert found == {n: int((s / s.mean() >= threshold).sum()) for n, s in scores.items()}


def test_what_scores_are_divided_by_is_a_choice() -> None:
    evidence = read()
    a, b = (g.name for g in evidence.channels.groups)
    scores = {a: torch.linspace(1, 2, 8), b: torch.linspace(10, 100, 16)}

    def widths(normalize: str) -> tuple[int, int]:
        found = selected(evidence, scores, Selection(ratio=0.25, ranking="global", normalize=normalize, round_to=1, floor=0))
        return found[a], found[b]

    assert widths("none") == (2, 16)
    pooled = torch.cat([scores[a] / 2, scores[b] / 100]).sort().values[6]
    assert widths("max") == tuple(int((s >= pooled).sum()) for s in (scores[a] / 2, scores[b] / 100))
    assert widths("mean") != widths("none")


def test_what_is_of_equal_topology_is_ranked_together() -> None:
    """The inner channels of the blocks with a shortcut of their own are like those without: the streams are not."""
    evidence = read("resnet")
    inner = [g for g in evidence.channels.groups if "conv1" in g.name]
    streams = [g for g in evidence.channels.groups if g not in inner]
    scores = {g.name: torch.full((g.channels,), 1.0 + i) for i, g in enumerate(evidence.channels.groups)}
    found = selected(evidence, scores, Selection(ratio=0.4, ranking="isomorphic", normalize="none", round_to=1, floor=0.25))
    total = sum(g.channels for g in inner)
    assert len(inner) == 6
    assert sum(found[g.name] for g in inner) == total - round(0.4 * total)
    left = [found[g.name] / g.channels for g in inner]
    assert left == sorted(left)  # the scores rise from layer to layer, so the first go as far as they may
    assert left[0] == 0.25
    assert left[-1] == 1
    assert sum(found[g.name] for g in streams) < sum(g.channels for g in streams)  # they lose their own share


@pytest.mark.parametrize("scores", [{}, {"0.weight": torch.rand(7)}, {"0.weight": torch.tensor([math.nan] * 8)}])
def test_scores_that_cannot_be_ranked_are_refused(scores: Scores) -> None:
    with pytest.raises(RecipeError, match=r"scores of group 0\.weight cannot be ranked"):
        plan_channels(model(), X, 0.5, criterion=lambda _: scores)


# A target in multiply-accumulates.


@pytest.mark.parametrize("name", ["grouped", "transposed", "concatenated_then_depthwise", "conv1d", "csp", "pixel_shuffle"])
@pytest.mark.parametrize("ranking", ["layer", "global"])
def test_macs_counted_ahead_are_those_of_the_smaller_network(name: str, ranking: str) -> None:
    net, x = CUTTABLE[name](), inputs(SHAPES.get(name, IMAGE))
    before = macs(capture(net, x))
    for target in (0.8, 0.4):
        plan = plan_channels(net, x, macs=target, ranking=ranking, round_to=1)
        after = macs(capture(prune_channels(net, plan, x, verify=False), x))
        assert 0.6 * target < after / before <= target


@given(
    st.sampled_from(["resnet", "mobilenet", "densenet"]),
    st.floats(0.15, 1),
    st.sampled_from(["layer", "global", "isomorphic"]),
    st.sampled_from([1, 4]),
    st.integers(0, 9),
)
def test_a_target_in_macs_is_met_and_no_step_could_be_given_back(
    name: str, target: float, ranking: str, round_to: int, seed: int
) -> None:
    evidence = read(name)
    scores = by_lot(evidence, seed)
    found = selected(evidence, scores, Selection(macs=target, ranking=ranking, round_to=round_to))
    limit = target * macs(evidence.graph)
    assert cost(evidence, found) <= limit
    for group in evidence.channels.groups:
        wider = [w for w in allowed_widths(group.channels, round_to, floor=0.1) if w > found[group.name]]
        if wider:
            assert cost(evidence, {**found, group.name: wider[-1]}) > limit


def cost(evidence: Evidence, widths: dict[str, int]) -> float:
    """By hand: every layer costs in proportion to what is left of its weight."""
    total = 0.0
    for layer in evidence.graph.module.graph.nodes:
        if str(layer.target) not in ("aten.conv2d.default", "aten.linear.default"):
            continue
        weight = evidence.graph.module.get_parameter(str(layer.args[1].target))
        left = [float(n) for n in weight.shape[:2]]
        for g in evidence.channels.groups:
            for a in g.axes:
                if a.name == str(layer.args[1].target):
                    left[a.dim] -= (g.channels - widths[g.name]) * a.index.shape[1]
        positions = math.prod(int(s) for s in layer.meta["val"].shape[2:])
        total += positions * left[0] * left[1] * weight[0, 0].numel()
    return total


def test_a_target_in_macs_out_of_reach_is_refused_with_the_nearest() -> None:
    net = ResNet(blocks=1, width=16)
    with pytest.raises(BudgetError, match=r"macs=0\.05 cannot be met: .* 0\.\d+ of") as told:
        plan_channels(net, torch.zeros(2, 1, 12, 12), macs=0.05, floor=0.5)
    nearest = float(str(told.value).split("allow, ")[1].split(" of")[0])
    assert 0.2 < nearest < 0.4
    plan_channels(net, torch.zeros(2, 1, 12, 12), macs=nearest, floor=0.5)
    with pytest.raises(BudgetError):
        plan_channels(net, torch.zeros(2, 1, 12, 12), macs=nearest - 0.002, floor=0.5)


def test_streams_can_be_left_whole() -> None:
    net, x = ResNet(blocks=1, width=16), torch.zeros(2, 1, 12, 12)
    plan = plan_channels(net, x, macs=0.5, cut_sums=False)
    assert plan.keep.keys() == {
        f"stage{i}.0.{n}" for i in (1, 2, 3)
        for n in ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "conv2.weight")
    }  # fmt: skip


# Settings.


@pytest.fixture(scope="module")
def channels() -> Channels:
    return find_channels(capture(model(), X))


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, math.nan, math.inf])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(RecipeError, match="ratio is"):
        Selection(ratio=ratio)


@pytest.mark.parametrize("round_to", [0, -8])
def test_a_step_out_of_range_is_refused(round_to: int) -> None:
    with pytest.raises(RecipeError, match="round_to is"):
        Selection(ratio=0.5, round_to=round_to)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "ratio is None and macs is None"),
        ({"ratio": 0.5, "macs": 0.5}, "give one of the two"),
        ({"macs": 0}, "macs is 0"),
        ({"macs": 3.0}, "macs is 3.0"),
        ({"macs": math.nan}, "macs is nan"),
        ({"ratio": 0.5, "floor": 1.0}, "floor is 1.0"),
        ({"ratio": 0.5, "floor": -0.1}, "floor is -0.1"),
        ({"ratio": 0.5, "ranking": "group"}, "choose one of .*'isomorphic'"),
        ({"ratio": 0.5, "normalize": "sum"}, "choose one of .*'mean'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        plan_channels(model(), X, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("exclude", [["head.*"], "head.*", ["0.weight", "5.*"]])
def test_a_pattern_that_fits_nothing_is_refused(exclude: list[str]) -> None:
    with pytest.raises(RecipeError, match="fits no parameter"):
        plan_channels(model(), X, 0.5, exclude=exclude)


def test_weights_that_are_not_finite_are_refused() -> None:
    net = model()
    net[2].bias.data[3] = math.nan
    with pytest.raises(ModelError, match=r"1 of 16 values of 2\.bias"):
        plan_channels(net, X, 0.5)


@pytest.mark.parametrize("widths", [{"0.weight": 9}, {"0.weight": 0}, {"0.weight": -1}, {"1.weight": 4}, {"4.weight": 2}])
def test_widths_that_do_not_fit_are_refused(channels: Channels, widths: dict[str, int]) -> None:
    with pytest.raises(PlanError, match=next(iter(widths))):
        plan_widths(channels, {}, widths)


def test_widths_are_kept_to() -> None:
    plan = plan_widths(read().channels, l2_norm(read()), {"0.weight": 3})
    assert {name: {d: len(i) for d, i in dims.items()} for name, dims in plan.keep.items()} == {
        "0.weight": {0: 3},
        "0.bias": {0: 3},
        "2.weight": {1: 3},
    }


def test_every_group_loses_its_share() -> None:
    """Here the channels of one layer fall into two groups, of four and of two channels."""
    channels = channels_of("concatenated_then_grouped")
    scores = {g.name: torch.rand(g.channels) for g in channels.groups}
    plan = plan_widths(channels, scores, choose_widths(channels, 0.25))
    first = [a.index for g in channels.groups for a in g.axes if (a.name, a.dim) == ("a.weight", 0)]
    assert sorted(len(index) for index in first) == [2, 4]
    kept = set(plan.keep["a.weight"][0])
    stay = [sum(set(row) <= kept for row in index.tolist()) for index in first]
    assert stay == [kept_count(len(index), 0.25, 1) for index in first]
