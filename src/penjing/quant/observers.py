"""The range of a value that its grid should cover, from what is seen of it.

With heavy tails, where a few numbers are far larger than the rest, the choice matters, and none is right for all:

- ``minmax`` keeps every number, and with it the coarse step that the largest asks for.
- ``moving_average`` keeps the average batch's extremes, so what is rare in most batches is cut.
- ``percentile`` cuts a fixed share at either end, whatever is lost there.
- ``mse`` cuts where the squared error is least. A number a thousand times the typical ones is worth a million of them: it stays
  unless it is rarer than that, though the typical ones may then land on zero (``typical_lost`` tells).
- ``cautious_mse`` does the same with errors of what is cut counted four times; the default.
- ``entropy`` cuts where the distribution keeps its shape; how large a rare number is counts for nothing. At 8 bits
  it often loses 10 dB against the others; it is here for comparison.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from penjing.errors import RecipeError
from penjing.quant.grids import Grid, affine, levels, symmetric
from penjing.quant.histogram import MOST, Batch, Even, Floats, largest, read

SAMPLE = 2**15  # numbers of a row that are counted in one update
FEW = 64  # of each of many rows, where counts decide nothing
FLOOR = 1e-10  # the least probability, so that what a range leaves out has a finite price


class Observer(ABC):
    """Sees values batch by batch, then says which range is best.

    Values come as finite rows ``(rows, n)``; each row gets a range of its own: one row for a whole value, one for each channel.

    Args:
        bits: Of the grid that the range is for, 2 to 8.
        signed: Whether that grid is symmetric about zero; otherwise it runs from the one limit to the other, and over zero.

    Raises:
        RecipeError: ``bits`` is not from 2 to 8.
    """

    by_batch: ClassVar[bool] = False  # whether it matters which samples come together
    least: ClassVar[int] = SAMPLE  # how many numbers of a row are counted, however many rows there are

    def __init__(self, *, bits: int = 8, signed: bool = False) -> None:
        levels(bits, signed=signed)  # refuses what is out of range
        self.bits = bits
        self.maker = symmetric if signed else affine
        self.signed = signed
        self.low = self.high = torch.zeros(0)
        self.total = torch.zeros(0, dtype=torch.float64)
        self.count = 0
        self.histogram = Floats()

    def aimed(self, *, bits: int, signed: bool) -> Self:
        """What was seen, for another grid; see the class."""
        levels(bits, signed=signed)  # refuses what is out of range
        other = copy.copy(self)
        other.bits, other.signed, other.maker = bits, signed, symmetric if signed else affine
        return other

    def update(self, rows: Tensor) -> None:
        """Take in more of every row, ``(rows, n)``; always as many rows."""
        if self.count and not rows.shape[1]:
            return
        batch = read(rows, max(SAMPLE // max(1, len(rows)), self.least))
        first = not self.count
        self.low = batch.low if first else torch.minimum(self.low, batch.low)
        self.high = batch.high if first else torch.maximum(self.high, batch.high)
        self.total = batch.total if first else self.total + batch.total
        self.histogram.add(batch)
        self._see(batch)
        self.count += batch.count

    def merge(self, other: Self) -> None:
        """Take in all that another has seen, of the same kind; not for one to which batches matter (``by_batch``)."""
        if not self.count:
            self.low, self.high, self.total = other.low, other.high, other.total
        elif other.count:
            self.low, self.high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
            self.total = self.total + other.total
        self.count += other.count
        self.histogram.merge(other.histogram)

    @abstractmethod
    def limits(self) -> tuple[Tensor, Tensor]:
        """The least and the greatest value worth keeping, ``(rows,)`` each, between the least and the greatest that was seen.

        Both 0 where nothing was seen.
        """

    def mean(self) -> Tensor:
        """Of each row, ``(rows,)``, float64; exact, over all that was seen."""
        return self.total / max(1, self.count)

    def typical_lost(self, grid: Grid) -> float:
        """Which share of all numbers that are not zero lands on zero's integer, 0 to 1: near 1 the grid is too coarse.

        Args:
            grid: With one scale for each row, in that order, or one for all.
        """
        return self.histogram.share_on_zero(self.low, self.high, grid)

    def _see(self, batch: Batch) -> None:  # noqa: B027  (most need no more)
        """What else a batch is good for; called before its numbers count."""


class MinMax(Observer):
    """All that was seen."""

    least = FEW

    def limits(self) -> tuple[Tensor, Tensor]:
        """See ``Observer.limits``."""
        return self.low, self.high


class MovingAverage(Observer):
    """The exponential moving average of every batch's extremes (arXiv:1712.05877); later batches count for more.

    Args:
        newest: The share of the newest batch, above 0 and up to 1.

    Raises:
        RecipeError: ``newest`` or ``bits`` is out of range.
    """

    by_batch = True
    least = FEW

    def __init__(self, newest: float = 0.1, *, bits: int = 8, signed: bool = False) -> None:
        super().__init__(bits=bits, signed=signed)
        if not 0 < newest <= 1:
            raise RecipeError(f"newest is {newest}; give the share of the newest batch, above 0 and up to 1, e.g. 0.1")
        self.newest = newest
        self.ends = torch.zeros(2, 0)

    def limits(self) -> tuple[Tensor, Tensor]:
        """See ``Observer.limits``."""
        low, high = self.ends
        return low, high

    def _see(self, batch: Batch) -> None:
        ends = torch.stack([batch.low, batch.high])
        self.ends = torch.lerp(self.ends, ends, self.newest) if self.count else ends


class Percentile(Observer):
    """All but a fixed share at either end; all, where that would leave nothing but zero.

    Args:
        share: The quantile of the upper limit, above 0.5 and up to 1; the lower one's is ``1 - share``.

    Raises:
        RecipeError: ``share`` or ``bits`` is out of range.
    """

    def __init__(self, share: float = 0.9999, *, bits: int = 8, signed: bool = False) -> None:
        super().__init__(bits=bits, signed=signed)
        if not 0.5 < share <= 1:
            raise RecipeError(f"share is {share}; give a quantile above 0.5 and up to 1, e.g. 0.9999")
        self.share = share

    def limits(self) -> tuple[Tensor, Tensor]:
        """See ``Observer.limits``."""
        low, high = self._quantile(1 - self.share), self._quantile(self.share)
        nothing = (low == 0) & (high == 0)
        return torch.where(nothing, self.low, low), torch.where(nothing, self.high, high)

    def _quantile(self, share: float) -> Tensor:
        counts = self.histogram.counts.double()
        sums = counts.cumsum(1)
        wanted = share * sums[:, -1:]
        at = torch.searchsorted(sums, wanted).clamp_max(counts.shape[1] - 1)
        # A share of 0 is where counts begin, not at the empty bin farthest out.
        at = torch.maximum(at, (counts > 0).int().argmax(1, keepdim=True))
        before, within = (sums - counts).gather(1, at), counts.gather(1, at).clamp_min(1)
        edges = self.histogram.cut_edges(self.low, self.high)
        found = torch.lerp(edges.gather(1, at), edges.gather(1, at + 1), ((wanted - before) / within).float())
        return found[:, 0].clamp(self.low, self.high)


class Searched(Observer):
    """Looks for the best of many ranges."""

    work: ClassVar[int]  # how many numbers one row takes

    def limits(self) -> tuple[Tensor, Tensor]:
        """See ``Observer.limits``."""
        found = torch.zeros(2, len(self.low))
        step = MOST // self.work
        for start in range(0, len(self.low), step):
            part = slice(start, start + step)
            found[:, part] = self._best(part)
        low, high = found
        return low.clamp(self.low, self.high), high.clamp(self.low, self.high)

    def _ends(self, part: slice) -> Tensor:
        """The widest range of some rows' grids, ``(2, rows)``."""
        low, high = self.low[part], self.high[part]
        if self.signed:
            return torch.stack([-largest(low, high), largest(low, high)])
        return torch.stack([low.clamp(max=0), high.clamp(min=0)])

    def _grid(self, ends: Tensor) -> Grid:
        """A grid for each range of ``(2, rows, ranges)``; its tensors are ``(rows, ranges)``."""
        low, high = ends
        return self.maker(low, high, torch.zeros_like(low), self.bits)

    @abstractmethod
    def _best(self, part: slice) -> Tensor:
        """Both ends of the best range of some rows, ``(2, rows)``."""


class MeanSquare(Searched):
    """The range of the least squared error, taking numbers to be spread evenly inside each bin of the histogram.

    It tries 24 ranges that shrink both ends alike, then, unless the grid is symmetric, 25 for either end with the other held,
    then 17 near the best. The one from the least to the greatest is among them, so that it is never worse by the histogram, and
    hardly worse by the numbers themselves.
    """

    clipped: ClassVar[float] = 1.0  # how often the error of what lies outside of the range counts
    work = 26 * (2 * Floats.half + 2)
    coarse = 2.0 ** (-torch.arange(24) / 3)  # 1 to 1/203
    fine = 2.0 ** (torch.arange(-8, 9) / 24)

    def _best(self, part: slice) -> Tensor:
        edges, density = self._densities(part)
        ends = self._ends(part)
        best = torch.ones_like(ends)
        sides = [[0, 1]] if self.signed else [[side] for side in (0, 1) if ends[side].any()]
        whole = self.coarse.expand(ends.shape[1], -1)
        either = torch.cat([torch.zeros_like(whole[:, :1]), whole], 1)
        rounds = [([0, 1], whole)] + ([] if self.signed else [(side, either) for side in sides])
        for chosen, tried in [*rounds, *((side, None) for side in sides)]:
            now = best[chosen[0], :, None]
            new = torch.cat([now, tried if tried is not None else (now * self.fine).clamp_max(1)], 1)
            shares = best[:, :, None].repeat(1, 1, new.shape[1])
            shares[chosen] = new
            grid = self._grid(shares * ends[:, :, None])
            error = self._error(edges, density, replace(grid, scale=grid.scale / self._unit(part)[:, None]))
            best[chosen] = new.gather(1, error.argmin(1, keepdim=True))[:, 0]
        return best * ends

    def _densities(self, part: slice) -> tuple[Tensor, Tensor]:
        """Ends of intervals ``(rows, n + 1)``, and how densely they are filled, ``(rows, n)``; without the empty ones."""
        counts = self.histogram.counts[part]
        used = torch.nn.functional.pad(counts.any(0), (1, 1))
        kept = (used[1:] | used[:-1]).nonzero()[:, 0]
        sums = torch.nn.functional.pad(counts.cumsum(1), (1, 0))
        edges = self.histogram.cut_edges(self.low, self.high)[part, kept]
        edges = edges / self._unit(part)[:, None]
        # Zeros are on the grid, so what is in the middle costs nothing; its width is 0.
        density = (sums[:, kept].diff() / edges.diff()).nan_to_num(0, 0, 0)
        return edges, density

    def _unit(self, part: slice) -> Tensor:
        """What a row is measured in, ``(rows,)``: cubes of tiny or huge steps would leave the range of float32."""
        return largest(self.low, self.high)[part].clamp_min(torch.finfo(torch.float32).tiny)

    def _error(self, edges: Tensor, density: Tensor, grid: Grid) -> Tensor:
        """The squared error of each range, ``(rows, ranges)``: the exact integral over each interval."""
        scale, zero = grid.scale[:, :, None], grid.zero_point[:, :, None]
        x = edges[:, None] / scale
        q = torch.minimum(torch.maximum(x.round(), grid.low - zero), grid.high - zero)
        # The integral of (x - q)^2: each whole step adds 1/12, and beyond the last one it grows with the cube.
        beyond = (x - q).sign() * ((x - q).abs() - 0.5).clamp_min(0)
        integral = q / 12 + (x - q) ** 3 / 3 + (self.clipped - 1) * beyond**3 / 3
        error = (integral.diff() @ density[:, :, None])[:, :, 0] * grid.scale**3
        return error.nan_to_num(torch.inf)


class CautiousMeanSquare(MeanSquare):
    """``MeanSquare`` in which the error of what is cut counts four times: other data may have more of it than what was seen."""

    clipped = 4.0


class Entropy(Searched):
    """The range whose integers tell most of the distribution: of the least Kullback-Leibler divergence, as in TensorRT.

    The distribution is that of all numbers but zeros, which every grid keeps, in bins of equal width; what lies outside of the
    range is moved to its ends. The other is what its integers tell: their counts, spread over the bins that are not empty. It
    tries 100 limits of the magnitude, down to as many bins as there are integers, about 1/4 of the largest at 8 bits.
    """

    tried: ClassVar[int] = 100
    work = tried * 2**8 * 4

    def __init__(self, *, bits: int = 8, signed: bool = False) -> None:
        super().__init__(bits=bits, signed=signed)
        self.even = Even()

    def _see(self, batch: Batch) -> None:
        self.even.add(batch)

    def _best(self, part: slice) -> Tensor:
        counts = self.even.counts[part].double()
        counts[:, self.even.half] = 0
        edges, ends = self.even.edges()[part], self._ends(part)
        tried = self._ranges(ends, edges[:, -1:] - edges[:, -2:-1])
        best = _divergence(counts, edges, tried, self._grid(tried)).argmin(1)
        return tried.gather(2, best.expand(2, -1)[:, :, None])[:, :, 0]

    def _ranges(self, ends: Tensor, width: Tensor) -> Tensor:
        """What to try, ``(2, rows, ranges)``, the widest first; bins are ``(rows, 1)`` wide."""
        top = largest(*ends)[:, None]
        bins = 2**self.bits // (1 + self.signed)  # a symmetric range has two sides to hold them
        limit = torch.lerp(top, torch.minimum(top, bins * width), torch.linspace(0, 1, self.tried))
        low, high = ends[:, :, None]
        return torch.stack([torch.maximum(low, -limit), torch.minimum(high, limit)])


def _divergence(counts: Tensor, edges: Tensor, ends: Tensor, grid: Grid) -> Tensor:
    """Kullback-Leibler divergence of each range, ``(rows, ranges)``, in nats, from running sums over bins ``(rows, bins)``.

    Args:
        ends: ``(2, rows, ranges)``; a bin that one of them cuts is inside.
        grid: Of each range; a bin belongs to the integer nearest to its center.
    """
    start = torch.searchsorted(edges[:, 1:].contiguous(), ends[0])
    stop = torch.searchsorted(edges[:, :-1].contiguous(), ends[1], right=True)
    borders = torch.arange(grid.low, grid.high) + 0.5 - grid.zero_point[:, :, None]
    centers = (edges[:, 1:] + edges[:, :-1]) / 2
    cells = torch.searchsorted(centers, (borders * grid.scale[:, :, None]).flatten(1)).view(borders.shape)
    cells = torch.cat([start[:, :, None], cells, stop[:, :, None]], 2).clamp(start[:, :, None], stop[:, :, None])
    kept, filled, own = (_sums(v, cells) for v in (counts, (counts > 0).double(), torch.xlogy(counts, counts)))
    inside, everything = kept.sum(2), counts.sum(1, keepdim=True)
    level = (kept / filled.clamp_min(1)).clamp_min(FLOOR).log()  # of each bin in the cell, by what its integer tells
    divergence = own.sum(2) - (kept * level).sum(2)
    for outside, end in zip(_outside(counts, start, stop), _outermost(counts, start, stop), strict=True):
        now = counts.gather(1, end)
        cell = (torch.searchsorted(cells, end[:, :, None], right=True) - 1).clamp(0, kept.shape[2] - 1)
        divergence += torch.xlogy(now + outside, now + outside) - torch.xlogy(now, now)
        divergence -= outside * level.gather(2, cell)[:, :, 0]
    found = divergence / everything + inside.log() - everything.log()
    return found.nan_to_num(torch.inf)


def _sums(values: Tensor, cells: Tensor) -> Tensor:
    """What ``values`` ``(rows, bins)`` sum to between neighbors among the borders ``cells`` ``(rows, ranges, n + 1)``."""
    sums = torch.nn.functional.pad(values.cumsum(1), (1, 0))
    return sums.gather(1, cells.flatten(1)).view(cells.shape).diff()


def _outside(counts: Tensor, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """How much lies below and above each range."""
    sums = torch.nn.functional.pad(counts.cumsum(1), (1, 0))
    return sums.gather(1, start), sums[:, -1:] - sums.gather(1, stop)


def _outermost(counts: Tensor, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last bin of each range that is not empty; where what lies outside is moved to."""
    place = torch.arange(counts.shape[1]).expand_as(counts)
    last = torch.where(counts > 0, place, 0).cummax(1).values
    first = torch.where(counts > 0, place, counts.shape[1] - 1).flip(1).cummin(1).values.flip(1)
    return first.gather(1, start.clamp_max(counts.shape[1] - 1)), last.gather(1, (stop - 1).clamp_min(0))


OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "mse": MeanSquare,
    "cautious_mse": CautiousMeanSquare,
    "entropy": Entropy,
}
