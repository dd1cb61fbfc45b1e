"""Two networks on the same samples: the drop of the metric, how sure of it we are, and whether a limit holds.

Right-or-wrong samples take Tango's score interval of a paired difference of proportions (Tango 1998, Statistics in Medicine
17:891-908) and the exact test of McNemar (1947); all others the bias-corrected and accelerated bootstrap (Efron 1987) and a
test that flips the signs of the differences.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from penjing.errors import DataError, RecipeError
from penjing.task import Score

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told"
MOST, LEAST, DRAWS = 9_999, 999, 20_000_000  # resamples; and how many values all of them together may draw, between the two
BCA = 10_000  # samples up to which the skew is corrected; that costs their square, and the mean of more is hardly skewed
BLOCK = 2_000_000  # values drawn at once
EQUAL = 1e-9  # differences that are equal but for rounding: their spread, as a share of the largest


@dataclass(frozen=True)
class Paired:
    """A drop, with an interval of it.

    Attributes:
        before: The value of the metric; ``after`` likewise.
        drop: ``before - after``: positive where the second network is worse.
        low: The drop is smaller with a probability of at most ``(1 - confidence) / looks``; ``high``: larger, likewise.
            Infinite where a single value cannot tell.
        samples: How many samples both were measured on.
        worse: Samples that the second network does worse than the first; ``better`` likewise.
        p: Two-sided p-value of there being any difference, not corrected for ``looks``.
        test: What ``p`` was computed with.
        confidence: Of each side.
    """

    before: float
    after: float
    drop: float
    low: float
    high: float
    samples: int
    worse: int
    better: int
    p: float
    test: str
    confidence: float


@dataclass(frozen=True)
class Judgement:
    """Whether a drop stays within what is allowed.

    Attributes:
        status: ``"holds"``, ``"does not hold"`` or ``"cannot be told"``.
        needed: About how many samples would settle it; ``None`` where it is settled, or no number would.
    """

    status: str
    needed: int | None


def paired(before: Score, after: Score, *, confidence: float = 0.95, looks: float = 1, seed: int = 0) -> Paired:
    """Compare two scores of the same samples in the same order.

    Where the metric's value is a multiple of the mean over its samples (a percentage, say), so is the interval. Where it is
    neither, the interval is that of the mean difference of the samples, moved to the drop.

    Args:
        confidence: Of each side of the interval: ``high <= allowed`` is a one-sided test of non-inferiority at this level.
        looks: How many candidates are confirmed on these samples; each gets its share of the error (Bonferroni). All of them
            must be counted at the first; where it is not known how many will be, 2, 4, 8 ... do, or others whose inverses add
            up to 1 at the most.
        seed: Of the resampling.

    Raises:
        DataError: The scores are not of the same samples, or there are none, or some are not finite.
        RecipeError: ``confidence`` is not between 0.5 and 1, or ``looks`` is below 1.
    """
    if not 0.5 < confidence < 1:
        raise RecipeError(f"confidence is {confidence}; give a share above 0.5 and below 1, e.g. 0.95")
    if looks < 1:
        raise RecipeError(f"looks is {looks}; give the number of candidates that are confirmed, at least 1")
    was, now = _per_sample(before, "before"), _per_sample(after, "after")
    if len(was) != len(now):
        raise DataError(f"before has {len(was)} samples, after {len(now)}; measure both on the same batches")
    scale = _scale((before.value, after.value), (float(was.mean()), float(now.mean())))
    lost = was - now if scale is None or scale > 0 else now - was
    unit = abs(scale or 1.0)
    worse, better, tail = int((lost > 0).sum()), int((lost < 0).sum()), (1 - confidence) / looks
    ends = np.unique(np.concatenate([was, now]))
    two = len(ends) == 2 and 2 in (len(np.unique(was)), len(np.unique(now)))
    if two or set(ends) <= {0.0, 1.0}:  # right or wrong, whatever numbers say so
        step = float(np.ptp(ends)) if len(ends) == 2 else 1.0
        low, high = (step * end for end in tango(worse, better, len(lost), tail))
        p, test = mcnemar(worse, better), "exact McNemar"
    else:
        (low, high), p, test = _bootstrap(lost, tail, seed), _sign_flips(lost, seed), "sign-flip permutation"
    drop = before.value - after.value
    centre = float(lost.mean())
    low, high = drop + unit * (low - centre), drop + unit * (high - centre)
    return Paired(before.value, after.value, drop, low, high, len(lost), worse, better, p, test, confidence)


def judged(found: Paired, allowed: float) -> Judgement:
    """Whether the drop is at most ``allowed``, in the metric's own unit.

    Raises:
        RecipeError: ``allowed`` is not finite.
    """
    if not math.isfinite(allowed):
        raise RecipeError(f"the allowed drop is {allowed}; give a finite number of points of the metric")
    if found.high <= allowed:
        return Judgement(HOLDS, None)
    if found.low > allowed:
        return Judgement(FAILS, None)
    room = abs(allowed - found.drop)
    reach = found.high - found.drop if found.drop < allowed else found.drop - found.low
    if room == 0 or not math.isfinite(reach / room):
        return Judgement(UNKNOWN, None)
    return Judgement(UNKNOWN, max(found.samples + 1, math.ceil(found.samples * (reach / room) ** 2)))  # it shrinks as 1/sqrt(n)


def mcnemar(worse: int, better: int) -> float:
    """Two-sided exact p-value of as uneven a split of the samples that changed (McNemar 1947); 1 where none did."""
    from scipy.stats import binomtest

    return float(binomtest(worse, worse + better).pvalue) if worse + better else 1.0


def tango(worse: int, better: int, samples: int, tail: float) -> tuple[float, float]:
    """Score interval of the drop in the share of right samples, with ``tail`` error on each side (Tango 1998)."""
    from scipy.stats import norm

    z = float(norm.isf(tail))
    return -_upper(better, worse, samples, z), _upper(worse, better, samples, z)


def _upper(worse: int, better: int, n: int, z: float) -> float:
    """The largest drop that the score test does not refuse."""
    from scipy.optimize import brentq

    def excess(drop: float) -> float:
        """Positive where the test still takes the drop: its variance is that of the likeliest shares with this drop."""
        b, c = -worse - better + (2 * n - worse + better) * drop, -better * drop * (1 - drop)
        root = math.sqrt(max(b * b - 8 * n * c, 0.0))
        share = -2 * c / (b + root) if b > 0 else (root - b) / (4 * n)  # the same root of 2n x^2 + bx + c, without cancellation
        return worse - better - n * drop + z * math.sqrt(n * max(2 * share + drop * (1 - drop), 0.0))

    start = (worse - better) / n + 1e-12  # the variance may be zero at the estimate itself, which is not the root sought
    return float(brentq(excess, start, 1.0)) if start < 1 and excess(1.0) < 0 else 1.0


def _per_sample(score: Score, name: str) -> np.ndarray:
    values = np.asarray(score.per_sample)
    if values.ndim != 1 or values.dtype.kind not in "biuf" or len(values) != score.samples:
        got = f"{values.dtype} of shape {values.shape} for {score.samples} samples"
        raise DataError(f"{name}.per_sample is {got}; have the metric give one number a sample, shape (samples,)")
    if not len(values):
        raise DataError(f"{name} has no sample; give at least one")
    if not np.isfinite(values).all() or not math.isfinite(score.value):
        raise DataError(f"{name} has values that are NaN or infinite; look at what the metric gives for each sample")
    return values.astype(np.float64)


def _scale(values: tuple[float, float], means: tuple[float, float]) -> float | None:
    """What the means are multiplied by to give the values; None where no one factor gives both."""
    value, mean = max(zip(values, means, strict=True), key=lambda pair: abs(pair[1]))
    factor = value / mean if mean else 0.0
    close = all(math.isclose(factor * m, v, rel_tol=1e-5, abs_tol=1e-12) for v, m in zip(values, means, strict=True))
    return factor if factor and close else None


def _resamples(n: int) -> int:
    return max(LEAST, min(MOST, DRAWS // n))


def _bootstrap(lost: np.ndarray, tail: float, seed: int) -> tuple[float, float]:
    """Interval of the mean, with ``tail`` error on each side."""
    from scipy.stats import DegenerateDataWarning, bootstrap

    n = len(lost)
    if n == 1:
        return -math.inf, math.inf
    if np.ptp(lost) <= EQUAL * np.abs(lost).max():
        return float(lost.mean()), float(lost.mean())
    for method in ("BCa", "percentile") if n <= BCA else ("percentile",):
        with warnings.catch_warnings():
            for kind in (DegenerateDataWarning, RuntimeWarning):  # they come with NaN, upon which the next method is taken
                warnings.simplefilter("ignore", kind)
            found: Any = bootstrap(
                (lost,), np.mean, n_resamples=_resamples(n), batch=max(1, BLOCK // n), vectorized=True, method=method,
                confidence_level=1 - 2 * tail, random_state=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
        if np.isfinite([found.low, found.high]).all():
            break
    return float(found.low), float(found.high)


def _sign_flips(lost: np.ndarray, seed: int) -> float:
    """Two-sided p-value of the mean, were either sign of each difference as likely."""
    from scipy.stats import permutation_test

    if not lost.any():
        return 1.0
    changed = lost[lost != 0]  # a flipped zero is a zero
    if len(changed) == 1:
        return 1.0
    found = permutation_test(
        (changed,), np.mean, permutation_type="samples", vectorized=True, n_resamples=_resamples(len(changed)),
        batch=max(1, BLOCK // len(changed)), random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)
