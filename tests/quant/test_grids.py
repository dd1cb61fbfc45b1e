import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penjing.quant.grids import affine, symmetric

finite = st.floats(-1e4, 1e4, allow_nan=False)


@given(finite, finite)
def test_affine_holds_zero_exactly_and_every_value_within_half_a_step(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    grid = affine(low, high)
    x = torch.linspace(low, high, 101)
    q = (x / grid.scale + grid.zero_point).round().clamp(grid.low, grid.high)
    back = (q - grid.zero_point) * grid.scale
    # The zero point is rounded, which moves the ends of the range by up to half a step.
    assert (back - x).abs().max() <= 1.01 * grid.scale + 1e-6 * max(abs(low), abs(high))
    assert 0 <= int(grid.zero_point) <= 255
    zero = torch.fake_quantize_per_tensor_affine(torch.zeros(1), grid.scale, grid.zero_point, grid.low, grid.high)
    assert zero.item() == 0


def test_symmetric_has_one_scale_a_channel_and_reaches_the_largest_weight() -> None:
    weight = torch.randn(5, 3, 3, 3) * torch.tensor([1e-3, 1, 10, 100, 0]).view(5, 1, 1, 1)
    grid = symmetric(weight, 0)
    assert grid.scale.shape == (5,)
    assert torch.allclose(grid.scale[:4] * 127, weight[:4].abs().amax((1, 2, 3)))
    assert (grid.scale > 0).all()
    assert (grid.zero_point == 0).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_symmetric_is_within_half_a_step_of_the_weight(axis: int) -> None:
    weight = torch.randn(4, 6, 3, 3)
    grid = symmetric(weight, axis)
    found = torch.fake_quantize_per_channel_affine(weight, grid.scale, grid.zero_point, axis, grid.low, grid.high)
    step = grid.scale.view([-1 if d == axis else 1 for d in range(4)])
    assert ((found - weight).abs() <= 0.5001 * step).all()
    assert not torch.equal(found, weight)
