"""Every observer: a range inside of what was seen, row by row, that keeps more than zero; the mean; what a grid loses."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from penjing.errors import RecipeError
from penjing.quant.grids import Grid, affine, symmetric
from penjing.quant.observers import OBSERVERS, Observer

ORDERED = {"moving_average"}  # later batches count for more
KINDS = [(name, signed) for name in OBSERVERS for signed in (False, True)]
floats = st.floats(-1e6, 1e6, allow_nan=False, width=32)
rows_of = st.integers(1, 3).flatmap(lambda n: st.lists(st.lists(floats, min_size=n, max_size=n), min_size=1, max_size=4))


def seen(name: str, *batches: Tensor, bits: int = 8, signed: bool = False) -> Observer:
    observer = OBSERVERS[name](bits=bits, signed=signed)
    for rows in batches:
        observer.update(rows)
    return observer


def grid_of(observer: Observer, bits: int = 8, *, signed: bool = False) -> Grid:
    low, high = observer.limits()
    return (symmetric if signed else affine)(low, high, observer.mean(), bits)


@pytest.mark.parametrize(("name", "signed"), KINDS)
@settings(max_examples=12)
@given(values=rows_of)
def test_the_range_lies_within_what_was_seen(name: str, signed: bool, values: list[list[float]]) -> None:
    rows = torch.tensor(values)
    low, high = seen(name, rows, signed=signed).limits()
    assert low.shape == high.shape == (len(rows),)
    assert (low >= rows.amin(1)).all()
    assert (high <= rows.amax(1)).all()
    assert (low <= high).all()


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize(("name", "signed"), KINDS)
@settings(max_examples=12)
@given(values=st.lists(floats, min_size=1, max_size=40))
def test_the_grid_keeps_more_than_zero(name: str, signed: bool, bits: int, values: list[float]) -> None:
    rows = torch.tensor([values])
    rows = torch.where(rows.abs() > 1e-9, rows, 0)  # what is smaller than the least scale is zero to any grid
    kept = grid_of(seen(name, rows, bits=bits, signed=signed), bits, signed=signed).nearest(rows[0])
    assert kept.any() == rows.any()


@pytest.mark.parametrize(("name", "signed"), KINDS)
def test_rows_do_not_matter_to_each_other(name: str, signed: bool) -> None:
    sizes = torch.tensor([1e-5, 1, 1e4, 0, 3, 1, 1])[:, None]
    rows = torch.randn(7, 3000) * sizes
    rows[4].relu_()
    rows[5, 0] = 50
    rows[6] = 2
    batches = rows.split([1000, 1500, 500], 1)
    together, mean = seen(name, *batches, signed=signed).limits(), seen(name, *batches, signed=signed).mean()
    for i in range(7):
        alone = seen(name, *(b[i : i + 1] for b in batches), signed=signed)
        torch.testing.assert_close(torch.stack(together)[:, i : i + 1], torch.stack(alone.limits()), rtol=1e-6, atol=0)
        torch.testing.assert_close(mean[i], alone.mean()[0])


@pytest.mark.parametrize("name", sorted(OBSERVERS.keys() - ORDERED))
def test_neither_order_nor_size_of_batches_matters(name: str) -> None:
    """Numbers of very different size, so that the span of the histogram has to grow in one order and not in the other."""
    rows = torch.randn(2, 4000) * torch.logspace(-4, 3, 4000)
    whole = seen(name, rows)
    for sizes in ([1, 9, 990, 3000], [2000, 2000], [3999, 1]):
        batches = rows.split(sizes, 1)
        for order in (batches, batches[::-1]):
            found = seen(name, *order)
            assert all(torch.equal(a, b) for a, b in zip(found.limits(), whole.limits(), strict=True))
            assert torch.equal(found.histogram.counts, whole.histogram.counts)
            torch.testing.assert_close(found.mean(), whole.mean(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "signed"), KINDS)
@pytest.mark.parametrize("value", [0.0, -3.0, 2.5, 1.0, 1e-30, -1e30])
def test_a_constant_is_its_own_range(name: str, signed: bool, value: float) -> None:
    low, high = seen(name, torch.full((1, 50), value), signed=signed).limits()
    assert low.tolist() == high.tolist() == torch.tensor([value]).tolist()


@pytest.mark.parametrize(("name", "signed"), KINDS)
def test_what_a_relu_gives_has_no_low_end(name: str, signed: bool) -> None:
    low, high = seen(name, torch.randn(2, 1000).relu(), torch.randn(2, 1000).relu(), signed=signed).limits()
    assert low.tolist() == [0, 0]
    assert (high > 1).all()


@pytest.mark.parametrize(("name", "signed"), KINDS)
def test_rows_without_numbers_change_nothing(name: str, signed: bool) -> None:
    rows = torch.randn(3, 100) + 5
    nothing = rows[:, :0]
    found = torch.stack(seen(name, nothing, rows, nothing, signed=signed).limits())
    assert torch.equal(found, torch.stack(seen(name, rows, signed=signed).limits()))
    never = seen(name, nothing, nothing, signed=signed)
    assert torch.stack(never.limits()).tolist() == [[0] * 3] * 2
    assert never.mean().tolist() == [0] * 3
    assert never.typical_lost(grid_of(never)) == 0


@pytest.mark.parametrize(("name", "signed"), KINDS)
@pytest.mark.parametrize("power", [-20, -7, 9, 60])
def test_a_power_of_two_scales_the_range(name: str, signed: bool, power: int) -> None:
    rows = torch.randn(2, 2000).exp() - 1
    found = torch.stack(seen(name, rows * 2.0**power, signed=signed).limits())
    torch.testing.assert_close(found, torch.stack(seen(name, rows, signed=signed).limits()) * 2.0**power, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", OBSERVERS)
def test_all_at_once_or_strided_the_mean_and_extremes_are_exact(name: str) -> None:
    rows = torch.rand(1, 300_001) * 3
    rows[0, 777] = 4
    observer = seen(name, rows)
    assert float(observer.mean()) == pytest.approx(float(rows.double().mean()), rel=1e-7)
    assert (float(observer.low), float(observer.high)) == (float(rows.min()), 4)


@pytest.mark.parametrize("name", OBSERVERS)
def test_what_is_not_finite_shows_in_the_extremes(name: str) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        rows = torch.randn(1, 100)
        rows[0, 50] = value
        observer = seen(name, torch.randn(1, 10), rows)
        assert not (observer.low.isfinite().all() and observer.high.isfinite().all())


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("cast", [torch.Tensor.half, torch.Tensor.double, lambda x: x.requires_grad_()])
def test_other_types_and_gradients(name: str, cast: Callable[[Tensor], Tensor]) -> None:
    rows = torch.randn(2, 500).half().float()
    before = rows.clone()
    found = seen(name, cast(rows)).limits()
    assert all(torch.equal(a, b) for a, b in zip(found, seen(name, before).limits(), strict=True))
    assert all(v.dtype == torch.float32 and not v.requires_grad for v in found)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("bits", [1, 9])
def test_bits_are_checked(name: str, bits: int) -> None:
    with pytest.raises(RecipeError, match="bits"):
        OBSERVERS[name](bits=bits)


@pytest.mark.parametrize("name", OBSERVERS)
def test_what_is_lost_is_what_torch_makes_zero(name: str) -> None:
    rows = torch.randn(4, 5000).exp() - 1
    rows[1].relu_()
    rows[2, 0] = 1e4
    observer = seen(name, rows)
    for bits in (2, 4, 8):
        grid = grid_of(observer, bits)
        by_row = Grid(grid.scale[:, None], grid.zero_point[:, None], grid.low, grid.high)
        lost = (by_row.encode(rows) == by_row.zero_point) & (rows != 0)
        # Where counts decide nothing, a sample of each row is enough, and less exact.
        assert observer.typical_lost(grid) == pytest.approx(float(lost.sum() / (rows != 0).sum()), abs=0.01)


@pytest.mark.parametrize("name", OBSERVERS)
def test_aimed_at_another_grid_it_says_what_one_made_for_that_grid_says(name: str) -> None:
    rows = torch.randn(2, 3000).exp() - 1.5
    first = seen(name, rows)
    before = torch.stack(first.limits())
    for bits, signed in ((4, True), (3, False), (8, True)):
        found = torch.stack(first.aimed(bits=bits, signed=signed).limits())
        assert torch.equal(found, torch.stack(seen(name, rows, bits=bits, signed=signed).limits()))
    assert torch.equal(torch.stack(first.limits()), before)
    with pytest.raises(RecipeError, match="bits"):
        first.aimed(bits=9, signed=False)
