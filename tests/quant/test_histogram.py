import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from penjing.quant.histogram import Even, Floats, Histogram, read

MANY = 2**30


def filled(kind: type[Histogram], *batches: Tensor, most: int = MANY) -> Histogram:
    histogram = kind()
    for rows in batches:
        histogram.add(read(rows, most))
    return histogram


@pytest.fixture(params=[Floats, Even])
def kind(request: pytest.FixtureRequest) -> type[Histogram]:
    found: type[Histogram] = request.param
    return found


def wide(rows: int, n: int) -> Tensor:
    """Numbers of all sizes and both signs, and some zeros."""
    x = torch.randn(rows, n) * 10 ** (torch.rand(rows, n) * 5 - 3)
    x[:, ::7] = 0
    return x


def test_counts_are_those_of_numpy_between_its_edges(kind: type[Histogram]) -> None:
    x = wide(3, 5000)
    histogram = filled(kind, x)
    edges, middle = histogram.edges().double().numpy(), histogram.half
    for row, counts, ends in zip(x.double().numpy(), histogram.counts.numpy(), edges, strict=True):
        assert counts[middle] == (row == 0).sum()
        assert (counts[middle + 1 :] == np.histogram(row[row > 0], ends[middle + 1 :])[0]).all()
        assert (counts[:middle][::-1] == np.histogram(-row[row < 0], -ends[: middle + 1][::-1])[0]).all()


def test_the_span_is_the_next_power_of_two_and_grows_to_the_same_as_at_once(kind: type[Histogram]) -> None:
    x = wide(2, 4000)
    x = x[:, x.abs().amax(0).argsort()]  # the smallest first
    grown = filled(kind, *x.split([1, 10, 100, 1000, 2889], 1))
    whole = filled(kind, x)
    assert torch.equal(grown.counts, whole.counts)
    assert torch.equal(grown.edges(), whole.edges())
    top = whole.edges()[:, -1]
    assert top.tolist() == [2.0 ** (math.floor(math.log2(v)) + 1) for v in x.abs().amax(1).tolist()]


def test_bins_are_fine() -> None:
    x = torch.tensor([[1.0, 3.9]])
    even = filled(Even, x).edges()[0].diff()
    assert even[even > 0].unique().tolist() == [4 / 2048]
    above = filled(Floats, x).edges()[0, Floats.half + 1 :]
    assert (above[2:] / above[1:-1]).max() <= 1 + 1 / 32
    assert above[1] == 4 * 2.0**-24


@pytest.mark.parametrize("value", [3e38, -3e38, 1e-38, 1e-45, 1.0, 2.0**-24])
def test_nothing_is_too_large_or_too_small(kind: type[Histogram], value: float) -> None:
    histogram = filled(kind, torch.tensor([[value, 0.0]]))
    where = histogram.counts[0].nonzero()[:, 0].tolist()
    assert len(where) == 2
    assert histogram.half in where
    other = next(w for w in where if w != histogram.half)
    assert (other > histogram.half) == (value > 0)
    cut = histogram.cut_edges(torch.tensor([min(value, 0)]), torch.tensor([max(value, 0)]))
    assert cut[0, other] <= value * (1 + 1e-3 * (1 if value > 0 else -1))
    assert cut.isfinite().all()


def test_a_sample_stands_for_all_and_what_lies_beyond_it_is_counted_once(kind: type[Histogram]) -> None:
    x = torch.rand(1, 2**20) + 0.5
    x[0, 5000] = 1000
    x[0, 900_001] = -700
    batch = read(x, 2**12)
    assert batch.stride % 2 == 1
    assert batch.sample.shape[1] <= 2**12
    assert batch.sample.max() < 2
    histogram = filled(kind, x, most=2**12)
    edges = histogram.edges()[0]
    assert histogram.counts[0, (edges[:-1] >= 512)].sum() == 1
    assert histogram.counts[0, (edges[1:] <= -512)].sum() == 1
    assert int(histogram.counts.sum()) == pytest.approx(2**20, rel=2e-3)


@pytest.mark.parametrize("shape", [(8, 64, 56, 56), (3, 512, 7, 7), (1, 3, 224, 224), (30, 30, 31, 31)])
def test_a_sample_visits_every_channel_and_place_as_often(shape: tuple[int, ...]) -> None:
    n = math.prod(shape)
    batch = read(torch.arange(n, dtype=torch.float32)[None], 2**12)
    place = batch.sample[0].long()
    assert len(place) <= 2**12
    for size, inner in ((shape[1], shape[2] * shape[3]), (shape[3], 1), (shape[2], shape[3])):
        visits = torch.bincount(place // inner % size, minlength=size)
        expected = len(place) / size
        assert (visits - expected).abs().max() <= 0.5 * expected + 3


def test_extremes_and_sums_are_exact_whatever_the_length() -> None:
    for n in (1, 2, 1023, 1024, 1025, 5000):
        x = torch.randn(3, n)
        batch = read(x, 100)
        assert torch.equal(batch.low, x.amin(1))
        assert torch.equal(batch.high, x.amax(1))
        torch.testing.assert_close(batch.total, x.double().sum(1), rtol=1e-5, atol=1e-4)
        assert batch.count == n


numbers = st.lists(st.floats(-10000, 1000, width=32), max_size=30)


@pytest.mark.parametrize("bins", [Floats, Even])
@given(numbers.filter(len), numbers)
def test_merged_counts_are_those_of_all(bins: type[Histogram], first: list[float], second: list[float]) -> None:
    def counted(*parts: list[float]) -> Histogram:
        found = bins()
        for part in parts:
            if part:
                found.add(read(torch.tensor([part]), 1000))
        return found

    mine, other, whole = counted(first), counted(second), counted(first, second)
    before = other.counts.clone()
    mine.merge(other)
    assert torch.equal(mine.counts, whole.counts)
    assert torch.equal(mine.octave, whole.octave)
    assert torch.equal(other.counts, before)
    empty = bins()
    empty.merge(whole)
    assert torch.equal(empty.counts, whole.counts)
