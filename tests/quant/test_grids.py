import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from penjing.errors import RecipeError
from penjing.quant.grids import GRIDS, Grid, affine, blocked, counts, levels, mean_centered, spread, symmetric

finite = st.floats(-1e4, 1e4, allow_nan=False, width=32)
bits = st.integers(2, 8)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def grid_of(name: str, x: Tensor, bits: int = 8) -> Grid:
    """A grid from the least to the greatest value."""
    return GRIDS[name](x.min(), x.max(), x.double().mean(), bits)


@pytest.mark.parametrize("name", GRIDS)
@settings(max_examples=30)
@given(a=finite, b=finite, share=st.floats(0, 1), bits=bits)
def test_what_is_inside_comes_back_within_half_a_step_and_zero_exactly(
    name: str, a: float, b: float, share: float, bits: int
) -> None:
    low, high = min(a, b), max(a, b)
    grid = GRIDS[name](scalar(low), scalar(high), scalar(low + share * (high - low)).double(), bits)
    assert torch.equal(grid.nearest(torch.zeros(3)), torch.zeros(3))
    assert grid.low <= int(grid.zero_point) <= grid.high
    assert grid.scale > 0
    x = torch.linspace(low, high, 101)
    first, last = ((q - int(grid.zero_point)) * float(grid.scale) for q in (grid.low, grid.high))
    # The zero point is rounded, which moves the ends by up to half a step.
    assert first <= min(low, 0) + 0.501 * float(grid.scale) + 1e-3
    assert last >= max(high, 0) - 0.501 * float(grid.scale) - 1e-3
    inside = x[(x >= first) & (x <= last)]
    if len(inside):
        assert (grid.nearest(inside) - inside).abs().max() <= 0.5001 * grid.scale + 1e-6 * max(abs(low), abs(high))
    assert (grid.nearest(x) - x).abs().max() <= 1.001 * grid.scale + 1e-6 * max(abs(low), abs(high))


@pytest.mark.parametrize("name", GRIDS)
@settings(max_examples=30)
@given(a=finite, b=finite, bits=bits)
def test_a_wider_grid_has_fewer_integers_to_spare(name: str, a: float, b: float, bits: int) -> None:
    """No kind wastes more than half of its integers on what cannot occur."""
    x = torch.tensor([a, 0.0, b])
    used = grid_of(name, x, bits).encode(torch.linspace(float(x.min()), float(x.max()), 4001)).unique()
    if float(x.max() - x.min()) > 1e-3:
        assert len(used) >= {"affine": 2**bits, "symmetric": 2 ** (bits - 1), "mean_centered": 2 ** (bits - 1) - 1}[name]


@pytest.mark.parametrize("name", GRIDS)
@settings(max_examples=30)
@given(x=st.lists(finite, min_size=1, max_size=20), bits=bits)
def test_torch_makes_the_same_of_it(name: str, x: list[float], bits: int) -> None:
    value = torch.tensor(x)
    grid = grid_of(name, value, bits)
    expected = torch.fake_quantize_per_tensor_affine(value, grid.scale, grid.zero_point, grid.low, grid.high)
    torch.testing.assert_close(grid.nearest(value), expected, rtol=0, atol=0)


def test_halves_go_to_the_even_integer_and_ends_clip() -> None:
    grid = Grid(scalar(2.0), torch.tensor(1, dtype=torch.int32), 0, 5)
    x = torch.tensor([-100, -3, -1, 1, 3, 5, 7, 9, 100.0])
    assert grid.encode(x).tolist() == [0, 0, 1, 1, 3, 3, 5, 5, 5]
    assert grid.decode(torch.tensor([0, 1, 5])).tolist() == [-2, 0, 8]
    assert grid.encode(x).dtype == torch.int32
    assert grid.nearest(x.double()).dtype == torch.float64


def test_symmetric_has_one_scale_a_row_and_reaches_the_largest_magnitude() -> None:
    weight = torch.randn(5, 27) * torch.tensor([1e-3, 1, 10, 100, 0])[:, None]
    grid = symmetric(weight.amin(1), weight.amax(1), weight.mean(1))
    assert torch.allclose(grid.scale[:4] * 127, weight[:4].abs().amax(1))
    assert (grid.scale > 0).all()
    assert (grid.zero_point == 0).all()
    assert (grid.low, grid.high) == (-128, 127)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("bits", [-8, 0, 1, 9, 16, 32])
def test_bits_outside_2_to_8_are_refused(name: str, bits: int) -> None:
    with pytest.raises(RecipeError, match=f"bits is {bits}; give a whole number from 2 to 8"):
        GRIDS[name](scalar(-1), scalar(1), scalar(0), bits)
    with pytest.raises(RecipeError):
        levels(bits, signed=False)


def test_levels() -> None:
    assert [levels(b, signed=True) for b in (2, 4, 8)] == [(-2, 1), (-8, 7), (-128, 127)]
    assert [levels(b, signed=False) for b in (2, 4, 8)] == [(0, 3), (0, 15), (0, 255)]


def fidelity(grid: Grid, x: Tensor) -> float:
    """Power of the value over that of the error, in dB."""
    exact = x.double().numpy()
    q = np.clip(np.rint(exact / float(grid.scale)) + int(grid.zero_point), grid.low, grid.high)
    error = (q - int(grid.zero_point)) * float(grid.scale) - exact
    return float(10 * np.log10((exact**2).sum() / (error**2).sum()))


NORMAL = {("symmetric", 8): 39.7, ("affine", 8): 39.9, ("mean_centered", 8): 39.7}
NORMAL |= {("symmetric", 4): 14.5, ("affine", 4): 15.3, ("mean_centered", 4): 14.5}
RECTIFIED = {("symmetric", 8): 40.0, ("affine", 8): 46.1, ("mean_centered", 8): 40.9}
RECTIFIED |= {("symmetric", 4): 14.9, ("affine", 4): 21.5, ("mean_centered", 4): 15.7}


def normal() -> Tensor:
    """Of a standard normal, as far out as 200,000 numbers reach on the average."""
    x = torch.randn(200_000).clamp(-4.5, 4.5)
    x[:2] = torch.tensor([-4.5, 4.5])
    return x


@pytest.mark.parametrize(("name", "bits"), NORMAL)
def test_fidelity_of_weights(name: str, bits: int) -> None:
    """Measured apart from this code, in float64, with nothing cut."""
    x = normal()
    assert fidelity(grid_of(name, x, bits), x) == pytest.approx(NORMAL[name, bits], abs=0.5)


@pytest.mark.parametrize(("name", "bits"), RECTIFIED)
def test_fidelity_of_what_a_relu_gives(name: str, bits: int) -> None:
    x = normal().relu()
    assert fidelity(grid_of(name, x, bits), x) == pytest.approx(RECTIFIED[name, bits], abs=0.5)


@settings(max_examples=30)
@given(finite, finite, st.floats(0, 1), bits)
def test_the_mean_centered_step_is_never_the_smaller_one(a: float, b: float, share: float, bits: int) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    mean = scalar(low + share * (high - low)).double()
    fine, coarse = affine(scalar(low), scalar(high), mean, bits), mean_centered(scalar(low), scalar(high), mean, bits)
    assert coarse.scale >= fine.scale * (1 - 1e-6)
    assert coarse.scale <= 2 * fine.scale * (2**bits - 1) / (2**bits - 2) * (1 + 1e-6)


def test_mean_centered_steps_are_as_documented() -> None:
    x = normal()
    for value, ratio in ((x, (1.0, 1.05)), (x.relu(), (1.8, 2.0)), ((x - 1).relu(), (1.8, 2.0))):
        found = float(grid_of("mean_centered", value).scale / grid_of("affine", value).scale)
        assert ratio[0] <= found <= ratio[1]


def test_mean_centered_has_the_textbook_error_but_for_the_shift_of_its_zero() -> None:
    x = normal() + 10  # nothing near 0, so that all that differs is where the steps lie
    grid = grid_of("mean_centered", x)
    mean = float(x.double().mean())
    alpha = max(float(x.max()) - mean, mean) / 127
    assert float(grid.scale) == pytest.approx(alpha, rel=1e-6)
    # The mean has the code 128, unless that would push the zero off the grid.
    assert abs(float(grid.encode(scalar(mean))) - 128) <= 1
    textbook = alpha * np.rint((x.double().numpy() - mean) / alpha) + mean
    error = ((textbook - x.double().numpy()) ** 2).sum()
    assert fidelity(grid, x) == pytest.approx(10 * math.log10(float(x.double().square().sum()) / error), abs=0.3)


SHAPES = [((8, 6, 3, 3), 0), ((8, 6, 3, 3), 1), ((4, 12), 0), ((6, 4, 5), 0), ((5,), 0)]


@pytest.mark.parametrize("block", ["tensor", "channel", 2, 3, 4])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_blocks_are_those_of_a_naive_loop(shape: tuple[int, ...], axis: int, block: str | int) -> None:
    x = torch.randn(shape) * torch.rand(shape).exp()
    parts = counts(shape, axis, block)
    rows = blocked(x, parts)
    grid = symmetric(rows.amin(1).view(parts), rows.amax(1).view(parts), rows.mean(1).view(parts))
    expected = torch.empty_like(x)
    inputs = shape[1 - axis] if len(shape) > 1 else 1
    width = block if isinstance(block, int) and inputs % block == 0 else inputs
    for out in range(1 if block == "tensor" else shape[axis]):
        for start in range(0, inputs, inputs if block == "tensor" else width):
            where: list[slice] = [slice(None)] * len(shape)
            if block != "tensor":
                where[axis] = slice(out, out + 1)
                if len(shape) > 1:
                    where[1 - axis] = slice(start, start + width)
            piece = x[tuple(where)]
            step = piece.abs().max() / 127
            expected[tuple(where)] = torch.fake_quantize_per_tensor_affine(piece, float(step), 0, -128, 127)
    torch.testing.assert_close(grid.nearest(x), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(grid.steps(shape) * torch.ones(shape), spread(grid.scale, shape) * torch.ones(shape))


def test_no_blocks_are_one_row() -> None:
    assert blocked(torch.arange(6).view(2, 3), ()).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert blocked(torch.arange(8).view(2, 4), (2, 2)).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert spread(torch.tensor([[1], [2]]), (2, 4)).shape == (2, 1)
    assert spread(torch.tensor([[1, 2]]), (3, 4)).tolist() == [[1, 1, 2, 2]]
