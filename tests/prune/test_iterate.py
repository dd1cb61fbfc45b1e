import copy
from typing import Any

import pytest
import torch
from torch import nn

from penjing.errors import BudgetError, DataError, RecipeError
from penjing.graph import capture
from penjing.graph.layers import macs
from penjing.plan import ChannelPlan
from penjing.prune import plan_channels, prune, prune_channels
from penjing.prune.decide import Selection
from penjing.prune.iterate import gentler, prune_iteratively
from penjing.score import Evidence, Scores, l2_norm
from tests.nets import CUTTABLE, IMAGE
from tests.oracle import difference, inputs, randomized, zeroed

X = inputs(IMAGE, dtype=torch.float64)


def net() -> nn.Module:
    return randomized(CUTTABLE["csp"]()).double()


def test_the_plan_leads_from_the_first_network_to_the_last() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    small, plan = prune_iteratively(model, X, Selection(ratio=0.6, round_to=1), steps=3)
    with torch.no_grad():
        assert difference(small(*X), zeroed(model, plan)(*X)) < 1e-9
    at_once = prune_channels(model, plan, X)
    assert all(torch.equal(a, b) for a, b in zip(at_once.parameters(), small.parameters(), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("round_to", [1, 4, 8])
def test_many_steps_end_at_the_widths_of_one(ratio: float, round_to: int) -> None:
    """Rounding is that of the first network: a step of 8 is not undone because each part of the way is less than half of it."""
    model = net()
    _, plan = prune_iteratively(model, X, Selection(ratio=ratio, round_to=round_to), steps=4, verify=False)
    expected = plan_channels(model, X, ratio, round_to=round_to)
    assert _widths(plan) == _widths(expected)


def _widths(plan: ChannelPlan) -> dict[str, dict[int, int]]:
    return {name: {d: len(index) for d, index in dims.items()} for name, dims in plan.keep.items()}


@pytest.mark.parametrize("ranking", ["layer", "global", "isomorphic"])
def test_a_target_in_macs_is_reached_by_equal_factors(ranking: str) -> None:
    model, work = net(), []

    def seen(small: nn.Module) -> nn.Module:
        work.append(macs(capture(small, X)) / macs(capture(model, X)))
        return small

    prune_iteratively(model, X, Selection(macs=0.125, ranking=ranking, round_to=1), steps=3, recover=seen, verify=False)
    assert len(work) == 3
    for found, limit in zip(work, (0.5, 0.25, 0.125), strict=True):
        assert 0.7 * limit < found <= limit


def test_channels_are_judged_anew_after_what_recover_did() -> None:
    """What the recovery makes large is kept, though it was the smallest before."""
    model = net()
    judged: list[int] = []

    def watched(evidence: Evidence) -> Scores:
        judged.append(sum(g.channels for g in evidence.channels.groups))
        return l2_norm(evidence)

    def swell(small: Any) -> nn.Module:
        with torch.no_grad():
            scores = small.a.weight.flatten(1).norm(dim=1)
            small.a.weight[scores.argmin()] *= 1e3
        return small  # type: ignore[no-any-return]

    _, swollen = prune_iteratively(model, X, Selection(ratio=0.6, round_to=1), steps=2, criterion=watched, recover=swell)
    _, plain = prune_iteratively(model, X, Selection(ratio=0.6, round_to=1), steps=2)
    assert len(judged) == 2
    assert judged[1] < judged[0]
    assert swollen != plain
    assert _widths(swollen) == _widths(plain)


def test_data_reaches_the_criterion_at_every_step() -> None:
    x = X[0]
    data = [(x, torch.zeros(len(x), dtype=torch.int64))]
    small, plan = prune_iteratively(net(), X, Selection(ratio=0.5, round_to=1), steps=2, criterion="taylor", data=data)
    assert plan.keep
    assert small(x).isfinite().all()


def test_a_step_too_gentle_for_the_rounding_is_passed_over() -> None:
    calls = []

    def counted(small: nn.Module) -> nn.Module:
        calls.append(1)
        return small

    _, plan = prune_iteratively(net(), X, Selection(ratio=0.5, round_to=8), steps=6, recover=counted, verify=False)
    assert plan.keep
    assert 0 < len(calls) < 6


def test_nothing_to_do_gives_a_copy() -> None:
    model = net()
    small, plan = prune_iteratively(model, X, Selection(ratio=0.0), steps=2)
    assert plan == ChannelPlan({})
    assert small is not model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), small.parameters(), strict=True))


def test_gentler_steps_shrink_by_one_factor_and_end_where_they_should() -> None:
    assert [s.ratio for s in gentler(Selection(ratio=0.875), 3)] == pytest.approx([0.5, 0.75, 0.875])
    assert [s.macs for s in gentler(Selection(macs=0.01), 2)] == pytest.approx([0.1, 0.01])
    assert gentler(Selection(ratio=0.3), 1) == (Selection(ratio=0.3),)
    with pytest.raises(RecipeError, match="steps is 0"):
        gentler(Selection(ratio=0.3), 0)


def test_a_target_out_of_reach_is_told_before_anything_is_cut() -> None:
    def never(_: nn.Module) -> nn.Module:
        raise AssertionError

    with pytest.raises(BudgetError, match=r"macs=0\.001"):
        prune_iteratively(net(), X, Selection(macs=0.001), steps=3, recover=never)


def test_one_call_decides_and_cuts() -> None:
    model = net()
    small = prune(model, X, 0.5, round_to=1, exclude=["head.*"])
    expected = prune_channels(model, plan_channels(model, X, 0.5, round_to=1, exclude=["head.*"]), X)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), expected.parameters(), strict=True))
    assert macs(capture(prune(model, X, macs=0.4, round_to=1), X)) <= 0.4 * macs(capture(model, X))


@pytest.mark.parametrize("steps", [1, 2])
def test_refitting_brings_the_output_nearer(steps: int) -> None:
    model, data = net(), [torch.randn(32, *IMAGE[0], dtype=torch.float64) for _ in range(3)]
    fresh = torch.randn(16, *IMAGE[0], dtype=torch.float64)
    with torch.no_grad():
        apart = {
            refit: float(
                (prune(model, X, 0.4, round_to=1, data=data, refit=refit, steps=steps).eval()(fresh) - model(fresh))
                .square()
                .mean()
            )
            for refit in (False, True)
        }
    assert apart[True] < 0.7 * apart[False]


def test_refitting_needs_data() -> None:
    with pytest.raises(DataError, match="refit needs data"):
        prune(net(), X, 0.5, refit=True)
