"""Grids of integers: ``x ~ scale * (q - zero_point)``, ``low <= q <= high``."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from penjing.errors import RecipeError

TINY = 1e-12  # the least scale: its inverse is finite in float32
BITS = range(2, 9)


@dataclass(frozen=True)
class Grid:
    """Integers for one value.

    Attributes:
        scale: Positive float32. A scalar: one for the whole value. Otherwise it has as many dims as the value, and each of its
            sizes divides the value's: ``(8, 1, 1, 1)`` is one for each of 8 output channels of a convolution's weight,
            ``(8, 4, 1, 1)`` one for each quarter of the input channels of each.
        zero_point: int32, of the same shape: the integer that stands for 0, exactly.
        low: The least integer.
        high: The greatest.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int

    def encode(self, x: Tensor) -> Tensor:
        """The nearest integers, int32, of the shape of ``x``; half-way goes to the even one, as in both runtimes."""
        scale, zero = self._spread(x.shape)
        # Multiplied by the inverse, as torch's fake-quantize does it: the same bits come out.
        return ((x.float() * (1 / scale)).round() + zero).clamp(self.low, self.high).int()

    def decode(self, q: Tensor) -> Tensor:
        """The values that integers stand for, float32."""
        scale, zero = self._spread(q.shape)
        return (q - zero) * scale

    def nearest(self, x: Tensor) -> Tensor:
        """The values on the grid that are nearest to ``x``."""
        return self.decode(self.encode(x)).to(x.dtype)

    def steps(self, shape: Sequence[int]) -> Tensor:
        """The scale of each element of a value of that shape."""
        return self._spread(shape)[0]

    def _spread(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        return spread(self.scale, shape), spread(self.zero_point, shape)


def spread(small: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat each element over its block, so that the result meets a value of that shape element by element."""
    for dim, (size, whole) in enumerate(zip(small.shape, shape, strict=True) if small.ndim else ()):
        if size not in (1, whole):
            small = small.repeat_interleave(whole // size, dim)
    return small


def blocked(x: Tensor, counts: Sequence[int]) -> Tensor:
    """The elements of each block as a row: ``(blocks, elements)``, with ``counts`` blocks along each dim; none: one row."""
    if not counts:
        return x.reshape(1, -1)
    split = x.reshape([n for size, count in zip(x.shape, counts, strict=True) for n in (count, size // count)])
    inner = range(1, split.ndim, 2)
    return split.permute(*range(0, split.ndim, 2), *inner).reshape(math.prod(counts), -1)


def counts(shape: Sequence[int], axis: int, block: str | int) -> tuple[int, ...]:
    """How many scales a weight has along each dim.

    Args:
        axis: The dim of its output channels.
        block: ``"tensor"``: one scale in all. ``"channel"``: one for each output channel. A number: one for each so many
            input channels of each output channel, where that many divide them; else one for each output channel.
    """
    if block == "tensor":
        return ()
    found = [1] * len(shape)
    found[axis] = shape[axis]
    inputs = 1 - axis
    if isinstance(block, int) and len(shape) > 1 and shape[inputs] % block == 0:
        found[inputs] = shape[inputs] // block
    return tuple(found)


def levels(bits: int, *, signed: bool) -> tuple[int, int]:
    """The least and the greatest integer of so many bits.

    Raises:
        RecipeError: It is not a number from 2 to 8.
    """
    if not isinstance(bits, int) or bits not in BITS:
        raise RecipeError(f"bits is {bits}; give a whole number from 2 to 8")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _positive(scale: Tensor, steps: int) -> Tensor:
    """A range of 1 where there is none: what is always zero is so on any grid, and biases are stored in steps of this one."""
    return torch.where(scale == 0, 1 / steps, scale).clamp_min(TINY)


Maker = Callable[[Tensor, Tensor, Tensor, int], Grid]  # (least, greatest, mean, bits) -> grid; all of the scale's shape


def symmetric(low: Tensor, high: Tensor, mean: Tensor, bits: int = 8) -> Grid:
    """Signed, zero point 0: the largest magnitude becomes ``2 ** (bits - 1) - 1`` (arXiv:1806.08342); for weights."""
    del mean
    least, greatest = levels(bits, signed=True)
    largest = torch.maximum(low.abs(), high.abs()).float()
    return Grid(_positive(largest / greatest, greatest), torch.zeros_like(largest, dtype=torch.int32), least, greatest)


def affine(low: Tensor, high: Tensor, mean: Tensor, bits: int = 8) -> Grid:
    """Unsigned, from the least to the greatest value; 0 is always on the grid, for padding (arXiv:1712.05877)."""
    del mean
    least, greatest = levels(bits, signed=False)
    low, high = low.clamp(max=0).double(), high.clamp(min=0).double()
    scale = _positive((high - low) / greatest, greatest)
    zero_point = (-low / scale).round().clamp(least, greatest)
    return Grid(scale.float(), zero_point.int(), least, greatest)


def mean_centered(low: Tensor, high: Tensor, mean: Tensor, bits: int = 8) -> Grid:
    """The textbook's grid, ``q = round((x - mean) / alpha)`` and ``x ~ q alpha + mean``, with the mean moved to a step's end.

    ``alpha`` is such that the value farthest from the mean becomes ``2 ** (bits - 1) - 1``. It is an affine grid whose codes
    lie around the mean instead of around the middle of the range, so its step is never smaller than ``affine``'s: as large
    where the mean is the middle, 1.8 to 2 times (5 to 7 dB; up to one bit) on what comes out of a ReLU. On weights, whose
    mean is near 0, it gives what ``symmetric`` gives. Its zero ``-mean / alpha`` is no integer; rounded, as here and in the
    file, 0 is exact and padding costs nothing. OpenVINO has no int8 convolution for weights with a zero point: there
    convolutions run in float, linear layers do not.
    """
    _, half = levels(bits, signed=True)
    low, high = low.clamp(max=0).double(), high.clamp(min=0).double()
    mean = mean.double()
    scale = _positive(torch.maximum(high - mean, mean - low) / half, half)
    center = (mean / scale).round()
    # In unsigned integers the code of the mean is 2 ** (bits - 1), so that zero is as far below as the mean is above it.
    zero_point = (half + 1 - center).clamp(0, 2 * half + 1)
    return Grid(scale.float(), zero_point.int(), 0, 2 * half + 1)


GRIDS: dict[str, Maker] = {"symmetric": symmetric, "affine": affine, "mean_centered": mean_centered}
