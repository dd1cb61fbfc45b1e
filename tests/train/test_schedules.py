import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.train.schedules import SCHEDULES


@pytest.mark.parametrize("name", SCHEDULES)
@given(st.integers(1, 300), st.floats(0, 0.99))
def test_every_schedule_rises_to_its_peak_and_does_not_rise_again(name: str, total: int, warmup: float) -> None:
    rise = max(1, round(warmup * total))
    rates = [SCHEDULES[name](step, total, warmup) for step in range(total)]
    assert all(0 < r <= 1 for r in rates)
    assert rates[min(rise, total) - 1] == pytest.approx(1)
    assert all(b > a for a, b in itertools.pairwise(rates[:rise]))
    assert all(b <= a for a, b in itertools.pairwise(rates[rise - 1 :]))


def test_where_they_end() -> None:
    last = {name: schedule(999, 1000, 0.1) for name, schedule in SCHEDULES.items()}
    assert last["constant"] == 1
    assert all(last[name] < 0.002 for name in ("cosine", "one_cycle", "linear"))
    assert SCHEDULES["linear"](550, 1000, 0.1) == pytest.approx(0.5)
    assert SCHEDULES["cosine"](550, 1000, 0.1) == pytest.approx(0.5)
    assert SCHEDULES["one_cycle"](0, 1000, 0.3) == pytest.approx(1 / 25, rel=1e-2)
