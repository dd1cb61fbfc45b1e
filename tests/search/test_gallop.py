import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.search.gallop import NEAR, gallop


@given(st.floats(0.02, 1.0), st.integers(0, 12))
def test_what_is_returned_holds_and_the_gap_closes(edge: float, trials: int) -> None:
    tried: list[float] = []

    def attempt(share: float) -> bool:
        tried.append(share)
        return share >= edge

    found = gallop(attempt, holds=1.0, least=0.01, trials=trials)
    assert found == min([1.0, *(s for s in tried if s >= edge)])
    assert len(tried) <= trials
    assert len(set(tried)) == len(tried)
    if trials == 12:
        assert found / edge <= NEAR**2


def test_nothing_below_the_least_is_tried() -> None:
    tried: list[float] = []
    assert gallop(lambda s: not tried.append(s), holds=1.0, least=0.3, trials=9) == pytest.approx(0.3)  # type: ignore[func-returns-value]
    assert tried == [0.5, 0.3]
