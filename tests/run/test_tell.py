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
