from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import penjing as pj
from penjing.run.candidates import Net
from penjing.run.tell import Shipped
from penjing.search import Candidate, Cost
from penjing.search.mix import FLOAT

CUT = pj.ChannelPlan({"0.weight": {0: (0, 1)}})


@pytest.mark.parametrize(
    ("drop", "latency", "allowed", "worth"),
    [
        (0.009, 1.0, 0.01, True),
        (0.011, 1.0, 0.01, False),  # though the interval may reach below
        (0.011, 1.0, None, True),
        (0.009, 1.5, 0.01, False),  # slower than the original
    ],
)
def test_what_loses_more_than_is_allowed_or_is_slower_is_not_taken(
    drop: float, latency: float, allowed: float | None, worth: bool
) -> None:
    found: Any = SimpleNamespace(drop=drop)
    known: Any = {"candidate": None, "net": None, "module": nn.Identity(), "artifact": None, "precision": None, "mix": None}
    shipped = Shipped(**known, found=found, judgement=None, before=None, after=None, latency=latency)  # type: ignore[arg-type]
    baseline: Any = SimpleNamespace(default=SimpleNamespace(cost=Cost(1.0, 1.0, 1, 1)))
    assert shipped.is_worth(baseline, {}, allowed) is worth


@pytest.mark.parametrize(
    ("form", "changed", "plan", "said"),
    [
        ("fp32", {}, pj.ChannelPlan({}), True),
        (FLOAT, {}, pj.ChannelPlan({}), True),
        (FLOAT, {"steps": 3}, pj.ChannelPlan({}), False),
        (FLOAT, {}, CUT, False),
        ("integers", {}, pj.ChannelPlan({}), False),
        ("2 layers back in float", {}, pj.ChannelPlan({}), False),
        (None, {}, pj.ChannelPlan({}), False),  # integers as they were scored
        (None, {"key": "original"}, pj.ChannelPlan({}), True),
    ],
)
def test_what_is_handed_over_is_the_original_where_nothing_was_done_to_it(
    form: str | None, changed: dict[str, Any], plan: pj.ChannelPlan, said: bool
) -> None:
    mix: Any = form and SimpleNamespace(chosen=SimpleNamespace(name=form))
    known = {"name": "1x", "key": "cut", "kind": "untrained", "share": 1.0, "cost": Cost(1.0, 1.0, 1, 1)}
    rest: Any = [None] * 7
    module = nn.Identity()
    shipped = Shipped(Candidate(**known | changed), Net(module, plan, {}), module, *rest, mix)
    assert shipped.is_original is said
