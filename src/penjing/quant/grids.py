"""Grids of integers: ``x ~ scale * (q - zero_point)``, ``low <= q <= high``."""

from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-12  # the scale of a value that is always zero; any positive number will do, this one keeps zero exact


@dataclass(frozen=True)
class Grid:
    """8-bit integers for one value.

    Attributes:
        scale: Positive float32; a scalar, or one for each index of ``axis``.
        zero_point: int32, of the same shape.
        axis: The dimension that has a scale for each index; ``None`` for one scale in all.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int
    axis: int | None = None


def symmetric(weight: Tensor, axis: int) -> Grid:
    """Signed, zero point 0, one scale for each index of ``axis``: the largest magnitude becomes 127 (arXiv:1806.08342)."""
    largest = weight.detach().abs().movedim(axis, 0).flatten(1).amax(1).float()
    return Grid((largest / 127).clamp_min(TINY), torch.zeros_like(largest, dtype=torch.int32), -128, 127, axis)


def affine(low: float, high: float) -> Grid:
    """Unsigned, from the least to the greatest value seen; 0 is always on the grid, for padding (arXiv:1712.05877)."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, TINY)
    zero_point = min(255, max(0, round(-low / scale)))
    return Grid(torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point, dtype=torch.int32), 0, 255)
