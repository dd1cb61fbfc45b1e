import pytest

from penjing.errors import BudgetError
from penjing.search import Allocation, allocate, extremes, nearest, rivals
from penjing.search.allocate import problem
from penjing.search.knapsack import Problem, Side, Site, solve
from penjing.search.price_fit import Coefficients
from penjing.search.rivals import WAYS
from tests.search.test_allocate import tables, with_block


def test_every_way_meets_the_ceilings_and_none_has_a_smaller_sum_than_the_first() -> None:
    found = tables()
    ceilings = {"macs": 0.5 * extremes(found)[0].costs["macs"]}
    made = {way: allocate(found, ceilings, way=way) for way in WAYS}
    for way, choice in made.items():
        assert choice.costs["macs"] <= ceilings["macs"] * (1 + 1e-6), way
        assert choice.error >= made["least sum"].error - 1e-6
        assert choice.error == pytest.approx(sum(found.damage[g].errors[w] for g, w in choice.widths.items()))


def test_many_small_errors_are_preferred_to_a_large_one_where_they_are_spread() -> None:
    """Two channels must go: both from one group for 0.5, or one from each for 0.3 and 0.3."""
    errors = {3: 0.0, 2: 0.3, 1: 0.5}
    sites = [
        Site(g, Side(1), Side(0, {g: 1}), {"int8": 0.0}, {"int8": {"macs": Coefficients(outputs=1.0)}})
        for g in ("one", "other")
    ]
    asked = Problem({"one": errors, "other": errors}, sites, {}, {"macs": 4.0})
    least, spread = (solve(WAYS[way](asked)).widths for way in ("least sum", "spread"))
    assert sorted(least.values()) == [1, 3]
    assert sorted(spread.values()) == [2, 2]


def test_what_integers_cost_is_spread_as_what_widths_cost() -> None:
    found = tables({"conv2d": 0.5})
    way = WAYS["spread"](problem(found, {}, most={}))
    assert next(s for s in way.sites if s.name == "conv2d").errors == {"int8": 0.25, "float": 0.0}


def test_equal_choices_are_rivals_once() -> None:
    assert len(rivals(tables(), {})) == 1


def test_blocks_stay_where_they_can() -> None:
    found = with_block(0.001)
    whole, narrowest = extremes(found)
    loose = rivals(found, {"macs": 0.5 * whole.costs["macs"]})
    assert loose["least sum"].blocks
    assert not loose["blocks stay"].blocks
    tight = rivals(found, {"macs": 1.1 * narrowest.costs["macs"]})
    assert all(a.blocks for a in tight.values())  # without them nothing is so small
    with pytest.raises(BudgetError, match="nearest"):
        rivals(found, {"macs": 1.0})


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        ({"without": 0.7, "narrow": 1.0, "narrower": 1.1}, "without"),  # much nearer
        ({"without": 0.8, "narrow": 1.0, "narrower": 1.1}, "narrow"),  # about as near
        ({"without": 0.8, "narrow": 1.1, "narrower": 1.0}, "narrower"),
        ({"without": 1.2, "narrow": 1.0, "narrower": 1.1}, "narrow"),
        ({"without": 0.8}, "without"),
        ({}, "without"),
    ],
)
def test_blocks_go_only_where_that_leaves_the_network_much_nearer(errors: dict[str, float], best: str) -> None:
    choices = {
        name: Allocation({}, {}, 0.0, {}, blocks)
        for name, blocks in (("without", ("block",)), ("narrow", ()), ("narrower", ()))
    }
    assert nearest(errors, choices) == best
