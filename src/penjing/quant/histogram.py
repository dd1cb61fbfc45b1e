"""Counts of values, row by row, in bins that fit whatever comes: one pass over a stream is enough, in any order.

The bins of a row span ``-2 ** k`` to ``2 ** k``, the next power of two above the largest magnitude so far. When a larger one
comes the span grows by whole doublings, where old bins merge into new ones exactly; so the order does not matter.
"""

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from penjing.quant.grids import Grid

CHUNK = 1024  # neighbors whose extremes are taken together
CACHED = 128  # chunks that the cache holds, so that memory is read once
MOST = 2**22  # numbers worked on at once, for memory
WAITING = 2**18  # numbers that may wait to be counted
OCTAVES = 24  # doublings below the largest magnitude that are told apart, about the precision of float32
MANTISSA = 5  # bits of the mantissa: 32 bins a doubling
EVEN = 2048  # bins of equal width on each side of zero, as many as TensorRT's
THIN = 1e-4  # the least width of a bin that is cut at the extremes, as a share of its place


@dataclass(frozen=True)
class Batch:
    """What is read of some values ``(rows, n)``.

    Attributes:
        low: The least of each row, ``(rows,)``; exact, as are ``high`` and ``total``.
        sample: Every ``stride``-th element, ``(rows, m)``.
        peaks: Least and greatest elements of chunks; ``beyond`` marks those farther out than all of the sample. Few as they
            are, they decide what cutting them costs.
    """

    low: Tensor
    high: Tensor
    total: Tensor
    count: int
    sample: Tensor
    stride: int
    peaks: Tensor
    beyond: Tensor

    @property
    def octave(self) -> Tensor:
        """The exponent of the largest magnitude of each row, as float32 stores it."""
        return (largest(self.low, self.high).view(torch.int32) >> 23).clamp_min(OCTAVES)


def largest(low: Tensor, high: Tensor) -> Tensor:
    """The largest magnitude between two ends."""
    return torch.maximum(low.abs(), high.abs())


def read(rows: Tensor, most: int) -> Batch:
    """Read values ``(rows, n)``: ``most`` numbers of each row at most, besides extremes and sums, which are of all."""
    rows = rows.detach().float()
    count = rows.shape[1]
    if not count:
        rows = rows.new_zeros(len(rows), 1)  # nothing is seen, and no number lies outside of a range that is zero
    whole = rows.shape[1] // CHUNK * CHUNK
    # amin and amax one after the other are ten times as fast as aminmax along a dim.
    pieces = rows[:, :whole].unflatten(1, (-1, CHUNK)).split(max(1, CACHED // max(1, len(rows))), 1)
    found = [(p.amin(2), p.amax(2), p.sum(2)) for p in (*pieces, rows[:, None, whole:]) if p.numel()]
    lows, highs, sums = (torch.cat(each, 1) for each in zip(*found, strict=True))
    total = sums.sum(1, dtype=torch.float64)
    stride = _stride(count, most)
    sample = rows[:, :count:stride].clone()
    peaks = torch.cat([lows, highs], 1) if stride > 1 else rows[:, :0]
    beyond = torch.zeros_like(peaks, dtype=torch.bool)
    if stride > 1:
        beyond = (peaks < sample.amin(1, keepdim=True)) | (peaks > sample.amax(1, keepdim=True))
    return Batch(lows.amin(1), highs.amax(1), total, count, sample, stride, peaks, beyond)


def _stride(count: int, most: int) -> int:
    """A step without a common divisor with the count, so that it visits all channels and all places of an image evenly."""
    stride = max(1, math.ceil(count / most))
    while math.gcd(stride, count) > 1:
        stride += 1
    return stride


class Histogram(ABC):
    """Counts of each row in ``2 * half + 1`` bins, from the farthest below zero to the farthest above; the middle is zero."""

    half: int

    def __init__(self) -> None:
        self._octave = torch.zeros(0, dtype=torch.int32)
        self._counts = torch.zeros(0, 2 * self.half + 1, dtype=torch.int64)
        self._waiting: list[Batch] = []

    def add(self, batch: Batch) -> None:
        """Take in a batch; every element of its sample stands for ``stride`` of them."""
        self._waiting.append(batch)
        # One row has few counts: it need not wait, and the many values of a network would wait in much memory.
        if len(batch.low) == 1 or sum(b.sample.numel() for b in self._waiting) > WAITING:
            self._settle()

    @property
    def counts(self) -> Tensor:
        """``(rows, 2 * half + 1)``, int64."""
        self._settle()
        return self._counts

    @property
    def octave(self) -> Tensor:
        """The exponent of the largest magnitude of each row, ``(rows,)``."""
        self._settle()
        return self._octave

    def merge(self, other: Self) -> None:
        """Take in all that another has counted."""
        other = copy.deepcopy(other)
        other._settle()
        self._settle()
        if not len(self._octave):
            self._octave, self._counts = other._octave, other._counts
        elif len(other._octave):
            octave = torch.maximum(self._octave, other._octave)
            self._grow(octave)
            other._grow(octave)
            self._counts = self._counts + other._counts

    def _settle(self) -> None:
        # Not before it must be: many rows have large counts, and whoever wants nothing but extremes never asks for them.
        for batch in self._waiting:
            if not len(self._octave):
                self._octave, self._counts = batch.octave, self._counts.new_zeros(len(batch.low), self._counts.shape[1])
            self._grow(torch.maximum(self._octave, batch.octave))
            self._count(batch.sample, None, batch.stride)
            if batch.beyond.any():
                self._count(batch.peaks, batch.beyond, 1)
        self._waiting.clear()

    def edges(self) -> Tensor:
        """The ends of all bins, ``(rows, 2 * half + 2)``, ascending; the two in the middle are zero."""
        found = self._magnitudes()
        return torch.cat([-found.flip(1), found], 1)

    def cut_edges(self, low: Tensor, high: Tensor) -> Tensor:
        """The same, with nothing beyond the extremes: what is all in one place is not spread over its bin."""
        least, greatest = low - THIN * low.abs(), high + THIN * high.abs()
        return torch.minimum(torch.maximum(self.edges(), least[:, None]), greatest[:, None])

    def share_on_zero(self, low: Tensor, high: Tensor, grid: Grid) -> float:
        """See ``Observer.typical_lost``; the extremes are ``(rows,)``."""
        scale, zero = (v.reshape(-1).expand(len(low)) for v in (grid.scale, grid.zero_point))
        # What is cut off at an end of the grid lands on zero's integer too where that is the end.
        least = torch.where(zero <= grid.low, -torch.inf, -scale / 2)[:, None]
        greatest = torch.where(zero >= grid.high, torch.inf, scale / 2)[:, None]
        edges = self.cut_edges(low, high)
        lower, upper = edges[:, :-1], edges[:, 1:]
        inside = torch.minimum(upper, greatest) - torch.maximum(lower, least)
        share = (inside / (upper - lower)).nan_to_num(0).clamp(0, 1).double()
        counts = self.counts.clone()
        counts[:, self.half] = 0
        return float((share * counts).sum() / counts.sum().clamp_min(1))

    def _grow(self, octave: Tensor) -> None:
        rise = (octave - self._octave)[:, None].long()
        self._octave = octave
        if rise.any():
            place = torch.arange(-self.half, self.half + 1)
            merged = place.sign() * self._merged(place.abs(), rise) + self.half
            self._counts = torch.zeros_like(self._counts).scatter_add(1, merged, self._counts)

    def _count(self, values: Tensor, wanted: Tensor | None, weight: int) -> None:
        bins = 2 * self.half + 1
        step = max(1, MOST // max(bins, values.shape[1]))
        for start in range(0, len(values), step):
            part = slice(start, start + step)
            x = values[part]
            if wanted is not None and len(x) == 1:  # few of one row are: they can be picked before they are placed
                x, wanted = x[wanted[part]][None], None
            index = self._place(x.abs(), self._octave[part, None]) * (1 - 2 * (x < 0).int()) + self.half
            index += torch.arange(len(x), dtype=torch.int32)[:, None] * bins
            chosen = index.flatten() if wanted is None else index[wanted[part]]
            self._counts[part] += weight * torch.bincount(chosen, minlength=len(x) * bins).view(-1, bins)

    @abstractmethod
    def _place(self, magnitude: Tensor, octave: Tensor) -> Tensor:
        """Which bin on its side, from 1 to ``half``; 0 for zero."""

    @abstractmethod
    def _merged(self, place: Tensor, rise: Tensor) -> Tensor:
        """Where a bin goes when the span doubles ``rise`` times."""

    @abstractmethod
    def _magnitudes(self) -> Tensor:
        """The ends of the bins above zero, ``(rows, half + 1)``; the first is 0."""


class Floats(Histogram):
    """32 bins to each doubling: as fine for what is typical as for what is rare and large. The first holds all that is tiny."""

    half = (OCTAVES << MANTISSA) + 1

    def _place(self, magnitude: Tensor, octave: Tensor) -> Tensor:
        code = magnitude.view(torch.int32) >> (23 - MANTISSA)  # exponent and first bits of the mantissa
        return torch.where(magnitude > 0, (code - self._base(octave) + 2).clamp_min(1), 0)

    def _merged(self, place: Tensor, rise: Tensor) -> Tensor:
        return torch.where(place > 0, (place - (rise << MANTISSA)).clamp_min(1), 0)

    def _magnitudes(self) -> Tensor:
        codes = self._base(self.octave[:, None]) + torch.arange(self.half, dtype=torch.int32)
        found = (codes << (23 - MANTISSA)).view(torch.float32)
        return torch.cat([torch.zeros_like(found[:, :1]), found], 1)

    @staticmethod
    def _base(octave: Tensor) -> Tensor:
        return (octave + 1 - OCTAVES) << MANTISSA


class Even(Histogram):
    """2048 bins of equal width on each side of zero."""

    half = EVEN

    def _place(self, magnitude: Tensor, octave: Tensor) -> Tensor:
        return torch.where(magnitude > 0, (magnitude / self._width(octave)).clamp_max(EVEN - 1).int() + 1, 0)

    def _merged(self, place: Tensor, rise: Tensor) -> Tensor:
        return torch.where(place > 0, ((place - 1) >> rise.clamp_max(31)) + 1, 0)

    def _magnitudes(self) -> Tensor:
        return torch.arange(self.half + 1) * self._width(self.octave[:, None])

    @staticmethod
    def _width(octave: Tensor) -> Tensor:
        return ((octave + 2 - EVEN.bit_length()) << 23).view(torch.float32)  # a power of two, by its exponent
