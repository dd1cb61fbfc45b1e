import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import entropy  # type: ignore[import-untyped]
from torch import Tensor

from penjing.errors import RecipeError
from penjing.quant.grids import Grid, affine, symmetric
from penjing.quant.observers import Entropy, MeanSquare, MinMax, MovingAverage, Observer, Percentile

VALUES = {
    "normal": lambda n: torch.randn(n),
    "relu": lambda n: torch.randn(n).relu(),
    "relu6": lambda n: (3 * torch.randn(n)).clamp(0, 6),
    "silu": lambda n: torch.nn.functional.silu(2 * torch.randn(n)),
    "laplace": lambda n: torch.randn(n).sign() * -torch.rand(n).clamp_min(1e-9).log(),
    "uniform": lambda n: torch.rand(n) * 3 - 1,
    "exponential": lambda n: 2 - torch.rand(n).clamp_min(1e-9).log(),
    "heavy": lambda n: torch.randn(n) / torch.rand(n).clamp_min(1e-3),
}


def watched(observer: Observer, *batches: Tensor) -> Observer:
    for rows in batches:
        observer.update(rows.reshape(1, -1) if rows.ndim == 1 else rows)
    return observer


def ends(observer: Observer) -> tuple[float, float]:
    low, high = observer.limits()
    return float(low), float(high)


def error(x: Tensor, low: float, high: float, bits: int, *, signed: bool) -> float:
    """The mean squared error on the numbers themselves, written out in float64."""
    v = x.double().numpy()
    if signed:
        first, last, zero = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0.0
        step = max(-low, high) / last
    else:
        low, high, first, last = min(low, 0), max(high, 0), 0, 2**bits - 1
        step = (high - low) / last
        zero = np.clip(np.rint(-low / step), first, last)
    return float(((step * (np.clip(np.rint(v / step) + zero, first, last) - zero) - v) ** 2).mean())


def test_minmax_is_all() -> None:
    batches = [torch.randn(3, n) for n in (1, 70_001, 2048)]
    low, high = watched(MinMax(), *batches).limits()
    assert torch.equal(low, torch.cat(batches, 1).amin(1))
    assert torch.equal(high, torch.cat(batches, 1).amax(1))


def test_moving_average_is_the_formula() -> None:
    batches = [torch.randn(2, 500) * (i + 1) for i in range(6)]
    low, high = watched(MovingAverage(0.25), *batches).limits()
    for found, take in ((low, np.min), (high, np.max)):
        expected = take(batches[0].double().numpy(), axis=1)
        for rows in batches[1:]:
            expected = 0.75 * expected + 0.25 * take(rows.double().numpy(), axis=1)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("newest", [0, -0.1, 1.1, float("nan")])
def test_moving_average_refuses(newest: float) -> None:
    with pytest.raises(RecipeError, match="newest"):
        MovingAverage(newest)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("share", [0.6, 0.9, 0.99, 0.999, 1.0])
def test_percentile_is_numpys_within_a_bin(values: str, share: float) -> None:
    x = VALUES[values](20_000)
    low, high = ends(watched(Percentile(share), x[:30], x[30:]))
    expected = np.quantile(x.double().numpy(), [1 - share, share])
    # Next to zero the numbers of the sample lie farther apart than the bins.
    np.testing.assert_allclose([low, high], expected, rtol=1 / 32, atol=1e-3)


def test_percentile_of_a_strided_sample_is_that_of_all() -> None:
    x = torch.randn(3_000_000)
    low, high = ends(watched(Percentile(0.99), x[:2_000_000], x[2_000_000:2_000_100], x[2_000_100:]))
    assert (low, high) == (pytest.approx(-2.326, abs=0.1), pytest.approx(2.326, abs=0.1))


def test_percentile_keeps_all_of_what_is_nearly_always_zero() -> None:
    x = torch.zeros(30_000)
    x[5] = 3
    assert ends(watched(Percentile(), x)) == (0, 3)


@pytest.mark.parametrize("share", [0.5, 0, -1, 1.01, float("nan")])
def test_percentile_refuses(share: float) -> None:
    with pytest.raises(RecipeError, match="share"):
        Percentile(share)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("values", VALUES)
def test_mse_finds_what_trying_all_finds(values: str, bits: int, signed: bool) -> None:
    """All pairs of 40 by 40 shares, or 200 shares where the grid is symmetric, by the error on the numbers themselves."""
    x = VALUES[values](4000)
    low, high = ends(watched(MeanSquare(bits=bits, signed=signed), x[:100], x[100:]))
    found = error(x, low, high, bits, signed=signed)
    least, greatest = min(float(x.min()), 0), max(float(x.max()), 0)
    shares = np.linspace(1, 0.005, 200) if signed else np.linspace(1, 0.025, 40)
    pairs = zip(shares, shares, strict=True) if signed else itertools.product(shares, shares if least < 0 < greatest else [1])
    top = max(-least, greatest)
    tried = [(-a * top, b * top) if signed else (b * least, a * greatest) for a, b in pairs]
    best = min(error(x, a, b, bits, signed=signed) for a, b in tried)
    # A bin of the tail holds a number or two, and the observer knows their place to 1/32.
    assert found <= 1.08 * best
    assert found <= 1.05 * error(x, float(x.min()), float(x.max()), bits, signed=signed)


def test_mse_is_better_than_all_where_there_are_few_integers() -> None:
    x = VALUES["laplace"](20_000)
    low, high = ends(watched(MeanSquare(bits=4), x))
    assert error(x, low, high, 4, signed=False) < 0.6 * error(x, float(x.min()), float(x.max()), 4, signed=False)


def test_mse_keeps_outliers_that_are_worth_it_and_drops_those_that_are_not() -> None:
    x = torch.rand(30_000) + 0.5
    x[7] = 1000.0  # cut at 1.5 it would cost 33 each; kept, the numbers around 1 are rounded to zero and cost 1
    observer = watched(MeanSquare(), x)
    assert ends(observer)[1] > 800
    assert observer.typical_lost(affine(*observer.limits(), observer.mean())) > 0.99
    x[7] = 60.0  # cut, it costs 0.1; kept, a step of 0.24 costs 0.005
    assert ends(watched(MeanSquare(), x))[1] > 50
    x[7] = 3.0  # cut, it costs 7.5e-5; kept, a step of 0.012 costs 1.2e-5 and one of 0.006 costs 2.9e-6
    assert ends(watched(MeanSquare(), x))[1] > 2.5
    x[7] = 1.7  # cut, 1.3e-6; kept, 8e-7 more
    assert 1.45 < ends(watched(MeanSquare(), x))[1] <= 1.7


def test_mse_sees_outliers_that_the_sample_misses() -> None:
    x = torch.rand(2**20) + 0.5
    x[torch.arange(5) * 100_000 + 77] = 1000  # 5 cost 4.8 if they are cut, 1.1 if they are kept
    _, high = ends(watched(MeanSquare(), x))
    assert high > 800
    x[x > 2] = 30  # 4e-3 if they are cut, 1.2e-3 if they are kept
    assert ends(watched(MeanSquare(), x))[1] > 20


def divergences(x: Tensor, span: float, bits: int, *, signed: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``(limits, divergence of each)`` bin by bin, as the definition says."""
    v = x.double().numpy()
    edges = np.linspace(-span, span, 2 * 2048 + 1)
    counts = np.histogram(v[v != 0], edges)[0]
    lower, upper, centers = edges[:-1], edges[1:], (edges[1:] + edges[:-1]) / 2
    top = np.abs(v).max()
    low, high = (-top, top) if signed else (min(v.min(), 0), max(v.max(), 0))
    limits = np.linspace(top, min(top, 2**bits * span / 2048 / (2 if signed else 1)), 100)
    found = []
    for limit in limits:
        least, greatest = max(low, -limit), min(high, limit)
        make = symmetric if signed else affine
        grid = make(torch.tensor(least), torch.tensor(greatest), torch.zeros(()), bits)
        inside = (lower <= greatest) & (upper >= least) & (counts > 0)
        place = inside.nonzero()[0]
        seen = np.where(inside, counts, 0).astype(float)
        seen[place[0]] += counts[: place[0]].sum()
        seen[place[-1]] += counts[place[-1] + 1 :].sum()
        code = np.clip(np.rint(centers / float(grid.scale)) + int(grid.zero_point), grid.low, grid.high)
        told = np.zeros_like(seen)
        for c in np.unique(code[place]):
            cell = place[code[place] == c]
            told[cell] = counts[cell].mean()
        found.append(entropy(seen[place], told[place]))
    return limits, np.array(found)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("values", ["normal", "relu", "silu", "laplace"])
def test_entropy_is_the_least_of_the_definition(values: str, bits: int, signed: bool) -> None:
    x = VALUES[values](20_000)
    span = 2.0 ** (np.floor(np.log2(float(x.abs().max()))) + 1)
    limits, expected = divergences(x, span, bits, signed=signed)
    low, high = ends(watched(Entropy(bits=bits, signed=signed), x[:50], x[50:]))
    found = max(-low, high)
    nearest = int(np.abs(limits - found).argmin())
    assert limits[nearest] == pytest.approx(found, rel=1e-5)
    # A center on the border of two integers may go to either.
    assert expected[nearest] <= expected.min() * 1.01 + 1e-9
    assert expected.max() > 1.05 * expected.min()


def test_entropy_cuts_a_tail_whatever_its_size() -> None:
    x = torch.randn(30_000)
    x[:2] = 12.0
    assert ends(watched(Entropy(), x))[1] < 8
    assert ends(watched(MinMax(), x))[1] == 12


def test_what_each_does_to_a_heavy_tail() -> None:
    """Ten batches; one number of 300,000, in the last of them, is a thousand times as large as is typical."""
    batches = [torch.randn(30_000) for _ in range(10)]
    batches[-1][123] = 1000
    high = {kind: ends(watched(kind(), *batches))[1] for kind in (MinMax, MovingAverage, Percentile, MeanSquare, Entropy)}
    assert high[MinMax] == 1000
    assert 90 < high[MovingAverage] < 120
    assert 3.5 < high[Percentile] < 4.2
    assert high[MeanSquare] > 400
    assert high[Entropy] <= 1000


def test_lost_is_what_lands_on_zero_as_bins_go() -> None:
    x = torch.cat([torch.linspace(-1, 2, 30_001), torch.zeros(500)])
    observer = watched(MinMax(), x)
    for scale in (0.003, 0.1, 1.0, 5.0):
        for zero, least, greatest in ((0, 0, 255), (255, 0, 255), (30, 0, 255), (0, -128, 127)):
            grid = Grid(torch.tensor(scale), torch.tensor(zero, dtype=torch.int32), least, greatest)
            q = np.clip(np.rint(x.double().numpy() / scale) + zero, least, greatest)
            expected = ((q == zero) & (x.numpy() != 0)).sum() / 30_000
            assert observer.typical_lost(grid) == pytest.approx(expected, abs=2e-3)
