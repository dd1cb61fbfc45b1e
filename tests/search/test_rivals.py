import pytest

from penjing.errors import BudgetError
from penjing.search import allocate, extremes, rivals
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


def test_spread_errors_have_a_smaller_largest_one() -> None:
    found = tables()
    ceilings = {"macs": 0.5 * extremes(found)[0].costs["macs"]}
    least, spread = (allocate(found, ceilings, way=way) for way in ("least sum", "spread"))
    worst = [max(found.damage[g].errors[w] for g, w in a.widths.items()) for a in (least, spread)]
    assert worst[1] <= worst[0]
    squares = [sum(found.damage[g].errors[w] ** 2 for g, w in a.widths.items()) for a in (least, spread)]
    assert squares[1] <= squares[0] + 1e-6


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
