import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar

from penjing.errors import DataError, RecipeError
from penjing.measure import judged, paired
from penjing.measure.paired import _scale, mcnemar, tango
from penjing.task import Score


def score(values: np.ndarray, value: float | None = None) -> Score:
    return Score(float(values.mean()) if value is None else value, len(values), values)


def right_or_wrong(worse: int, better: int, n: int) -> tuple[Score, Score]:
    """Two scores of which so many samples got worse and better."""
    was, now = np.ones(n), np.ones(n)
    now[:worse], was[worse : worse + better] = 0, 0
    return score(was), score(now)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_direct_binomial_sum(worse: int, better: int) -> None:
    n, k = worse + better, min(worse, better)
    one_side = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert mcnemar(worse, better) == pytest.approx(min(1.0, 2 * one_side))


def score_statistic(worse: int, better: int, n: int, drop: float) -> float:
    """Tango's statistic with the restricted likelihood maximized by search instead of by its formula."""

    def unlikely(share: float) -> float:
        cells = [(worse, share + drop), (better, share), (n - worse - better, 1 - 2 * share - drop)]
        return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

    ends = (max(0.0, -drop), (1 - drop) / 2)
    share = minimize_scalar(unlikely, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
    share = min((*ends, share), key=unlikely)
    return (worse - better - n * drop) / math.sqrt(n * (2 * share + drop * (1 - drop)))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 200), st.sampled_from([0.05, 0.005]))
def test_tango_turns_the_score_test_around(worse: int, better: int, same: int, tail: float) -> None:
    n = worse + better + same
    low, high = tango(worse, better, n, tail)
    z = stats.norm.isf(tail)
    assert -1 < low < (worse - better) / n < high < 1
    assert score_statistic(worse, better, n, high) == pytest.approx(-z, rel=1e-3)
    assert score_statistic(worse, better, n, low) == pytest.approx(z, rel=1e-3)


def test_tango_of_no_change_and_of_every_change() -> None:
    z = stats.norm.isf(0.05)
    assert tango(0, 0, 100, 0.05) == pytest.approx((-(z**2) / (100 + z**2), z**2 / (100 + z**2)))
    low, high = tango(50, 0, 50, 0.05)
    assert 0.5 < low < 1 == high
    assert tango(0, 50, 50, 0.05) == (-high, -low)


@pytest.mark.parametrize(("p_worse", "p_better", "n"), [(0.1, 0.05, 100), (0.05, 0.05, 120), (0.2, 0.1, 50)])
def test_tango_covers_as_often_as_it_says(p_worse: float, p_better: float, n: int) -> None:
    drop, missed_low, missed_high = p_worse - p_better, 0.0, 0.0
    shares = (p_worse, p_better, 1 - p_worse - p_better)
    for worse in range(n + 1):
        for better in range(n + 1 - worse):
            chance = stats.multinomial.pmf((worse, better, n - worse - better), n, shares) if worse + better < n / 2 else 0.0
            if chance > 1e-6:
                low, high = tango(worse, better, n, 0.05)
                missed_low, missed_high = missed_low + chance * (low > drop), missed_high + chance * (high < drop)
    assert missed_low == pytest.approx(0.05, abs=0.012)
    assert missed_high == pytest.approx(0.05, abs=0.012)


def test_right_or_wrong_by_hand() -> None:
    found = paired(*right_or_wrong(12, 5, 1000))
    assert (found.samples, found.worse, found.better) == (1000, 12, 5)
    assert found.drop == pytest.approx(0.007)
    assert (found.low, found.high) == pytest.approx(tango(12, 5, 1000, 0.05))
    assert (found.p, found.test) == (mcnemar(12, 5), "exact McNemar")


def test_looks_share_the_error() -> None:
    scores = right_or_wrong(12, 5, 1000)
    assert (lambda p: (p.low, p.high))(paired(*scores, looks=10)) == pytest.approx(tango(12, 5, 1000, 0.005))
    noisy = score(np.random.default_rng(0).normal(size=200)), score(np.zeros(200))
    one, ten = paired(*noisy), paired(*noisy, looks=10)
    assert ten.high - ten.low > 1.3 * (one.high - one.low)


def test_the_bootstrap_is_near_student_for_normal_differences() -> None:
    rng = np.random.default_rng(1)
    was = rng.normal(size=500)
    lost = rng.normal(0.1, 0.5, size=500)
    found = paired(score(was), score(was - lost))
    half = stats.t.isf(0.05, 499) * lost.std(ddof=1) / math.sqrt(500)
    assert (found.low, found.high) == pytest.approx((lost.mean() - half, lost.mean() + half), abs=0.1 * half)
    assert found.test == "sign-flip permutation"
    assert found.p == pytest.approx(stats.ttest_1samp(lost, 0).pvalue, abs=2e-3)
    assert found == paired(score(was), score(was - lost))  # the seed alone decides


def test_the_bootstrap_covers_skewed_differences() -> None:
    rng, trials, n = np.random.default_rng(2), 60, 40
    caught = [
        (lambda p: p.low <= 1 <= p.high)(paired(score(rng.exponential(size=n)), score(np.zeros(n)), seed=k))
        for k in range(trials)
    ]
    assert 0.75 <= np.mean(caught) < 1  # 90 % of 60 trials, give or take four standard errors


def test_sign_flips_are_exact_for_few_samples() -> None:
    lost = np.array([0.5, 0.25, 0.125, 0.0])
    # Of the eight signs of three changes, only all the same are as far from zero.
    assert paired(score(lost), score(np.zeros(4))).p == pytest.approx(2 / 8)


@pytest.mark.parametrize("shift", [0.0, 0.25, -0.25])
def test_equal_differences_need_no_resampling(shift: float) -> None:
    values = np.array([0.5, 1.5, 2.5])
    found = paired(score(values), score(values - shift))
    assert found.low == found.drop == found.high == shift
    assert (found.p == 1) == (shift == 0)


def test_differences_that_are_equal_but_for_rounding_are_equal() -> None:
    was = np.linspace(0.1, 0.7, 40)
    lost = was - (was - 1 / 7)
    assert np.ptp(lost) > 0
    found = paired(score(was), score(was - 1 / 7))
    assert (found.low, found.high) == pytest.approx((1 / 7, 1 / 7))


def test_one_value_cannot_tell() -> None:
    found = paired(score(np.array([31.5])), score(np.array([31.2])))
    assert (found.low, found.high, found.p) == (-math.inf, math.inf, 1.0)
    assert judged(found, 0.5) == judged(found, 0.1)
    assert judged(found, 0.5).status == "cannot be told"
    assert judged(found, 0.5).needed is None


def test_nearly_equal_differences_have_an_interval() -> None:
    was = np.full(50, 0.5)
    now = was.copy()
    now[:2] = 0.25, 0.45
    found = paired(score(was), score(now))
    assert 0 <= found.low <= found.drop <= found.high < 0.03


def test_ten_thousand_samples_take_seconds() -> None:
    rng = np.random.default_rng(3)
    was = rng.normal(30, 5, 10_000)
    found = paired(score(was), score(was - rng.normal(0.02, 1, 10_000)))
    assert found.high - found.low == pytest.approx(2 * 1.645 / 100, rel=0.1)


def test_a_metric_in_percent_scales_the_interval() -> None:
    was, now = right_or_wrong(12, 5, 1000)
    plain = paired(was, now)
    percent = paired(replace(was, value=100 * was.value), replace(now, value=100 * now.value))
    assert (percent.low, percent.high) == pytest.approx((100 * plain.low, 100 * plain.high))
    assert (percent.worse, percent.better) == (12, 5)


def test_a_metric_that_counts_mistakes_turns_the_interval_around() -> None:
    was, now = right_or_wrong(12, 5, 1000)
    mistakes = [Score(-1000 * float(1 - s.value), 1000, 1 - s.per_sample) for s in (was, now)]
    plain, found = paired(was, now), paired(*mistakes)
    assert (found.low, found.high) == pytest.approx((1000 * plain.low, 1000 * plain.high))
    assert (found.worse, found.better) == (12, 5)


def test_a_metric_that_is_no_mean_moves_the_interval_to_its_drop() -> None:
    was, now = right_or_wrong(12, 5, 1000)
    plain, found = paired(was, now), paired(replace(was, value=0.80), replace(now, value=0.77))
    assert found.drop == pytest.approx(0.03)
    assert (found.low, found.high) == pytest.approx((plain.low + 0.023, plain.high + 0.023))
    assert _scale((0.80, 0.77), (0.995, 0.988)) is None
    assert _scale((0.0, 0.0), (0.0, 0.0)) is None


def test_judged_by_hand() -> None:
    found = paired(*right_or_wrong(12, 5, 1000))
    assert judged(found, found.high).status == "holds"
    assert judged(found, found.low - 1e-9).status == "does not hold"
    assert judged(found, found.low).status == "cannot be told"
    assert judged(found, found.drop).needed is None
    assert judged(found, found.high).needed is judged(found, -1.0).needed is None


@pytest.mark.parametrize(("allowed", "status"), [(0.01, "holds"), (0.005, "does not hold")])
def test_so_many_samples_as_are_needed_settle_it(allowed: float, status: str) -> None:
    unsettled = judged(paired(*right_or_wrong(12, 5, 1000)), allowed)
    assert unsettled.status == "cannot be told"
    assert unsettled.needed is not None

    def at(times: float) -> str:
        n = unsettled.needed * times
        return judged(paired(*right_or_wrong(round(0.012 * n), round(0.005 * n), round(n))), allowed).status

    assert (at(0.8), at(1.2)) == ("cannot be told", status)


def test_what_cannot_be_compared_is_refused() -> None:
    ones = score(np.ones(4))
    with pytest.raises(DataError, match="before has 4 samples, after 3"):
        paired(ones, score(np.ones(3)))
    with pytest.raises(DataError, match="no sample"):
        paired(Score(0.0, 0, np.ones(0)), Score(0.0, 0, np.ones(0)))
    with pytest.raises(DataError, match="after has values that are NaN"):
        paired(ones, score(np.array([1, np.nan, 0, 1])))
    with pytest.raises(DataError, match="NaN"):
        paired(replace(ones, value=math.inf), ones)
    for wrong in (None, np.ones((4, 1)), np.ones(3)):
        with pytest.raises(DataError, match="one number a sample"):
            paired(replace(ones, per_sample=wrong), ones)


def test_settings_out_of_range_are_refused() -> None:
    ones = score(np.ones(4))
    with pytest.raises(RecipeError, match="confidence is 95"):
        paired(ones, ones, confidence=95)
    with pytest.raises(RecipeError, match="looks is 0"):
        paired(ones, ones, looks=0)
    with pytest.raises(RecipeError, match="allowed drop is nan"):
        judged(paired(ones, ones), math.nan)


def test_right_or_wrong_in_other_numbers_is_right_or_wrong() -> None:
    was, now = np.array([1, 1, 0, 1, 0, 1.0]), np.array([1, 0, 0, 1, 1, 0.0])
    plain, percent = (paired(Score(k * was.mean(), 6, k * was), Score(k * now.mean(), 6, k * now)) for k in (1, 100))
    assert (percent.test, percent.p) == (plain.test, plain.p)
    assert [percent.low, percent.high] == pytest.approx([100 * plain.low, 100 * plain.high])
    same = Score(100 * was.mean(), 6, 100 * was)
    assert paired(same, same).high > 0
