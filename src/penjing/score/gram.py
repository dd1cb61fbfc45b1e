"""Second moments of what a layer reads and should give: all that least squares needs to know of the data."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from penjing.errors import DataError
from penjing.graph import Graph
from penjing.score.flow import Batch, Flow
from penjing.score.products import Product, products

ROWS, LEAST_ROWS = 32, 4096  # rows that are looked at: so many for each column, and at least so many
CHUNK = 2**24  # numbers that are unfolded at a time


@dataclass
class Moments:
    """Sums over rows in float64: ``xx (groups, d, d)``, ``yx (groups, outputs, d)``, ``yy (groups, outputs)``.

    ``d`` counts the columns and a last one of ones. Rows are multiplied in their own precision, at least float32.
    """

    count: int = 0
    xx: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    yx: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    yy: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Take in rows ``x (groups, n, d)`` and what should come of them ``y (groups, n, outputs)``."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        self.count += x.shape[1]
        self.xx = self.xx + (x.mT @ x).double().cpu()
        if y is not None:
            y = y.to(x.dtype)
            self.yx = self.yx + (y.mT @ x).double().cpu()
            self.yy = self.yy + y.double().square().sum(1).cpu()

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.xx + other.xx, self.yx + other.yx, self.yy + other.yy)

    def check(self, name: str) -> None:
        """Refuse moments of values that are not finite.

        Raises:
            DataError: They are not; names the layer.
        """
        if not all(t.isfinite().all() for t in (self.xx, self.yx, self.yy)):
            raise DataError(
                f"what {name} reads or gives on the calibration data is NaN or infinite; look for inputs out of range"
            )


def least_squares(moments: Moments, old: Tensor, ridge: float, *, columns: int) -> Tensor:
    """The matrix that gives the wanted outputs best, held to ``old (groups, outputs, d)``; the ones are free.

    It minimizes ``|y - W x|^2 / n + ridge m |W - old|^2``, with ``m`` the mean square of the first ``columns`` numbers of a
    row; ``d`` is as many, or one more where a constant may be added.

    Raises:
        RuntimeError: The moments are singular up to rounding, at so small a ridge.
    """
    d = old.shape[2]
    second, cross = moments.xx[:, :d, :d] / moments.count, moments.yx[:, :, :d] / moments.count
    pull = ridge_diagonal(second, columns, ridge)
    factor = torch.linalg.cholesky(second + torch.diag_embed(pull))
    return torch.cholesky_solve((cross + old * pull[:, None]).mT, factor).mT


def ridge_diagonal(second: Tensor, columns: int, ridge: float) -> Tensor:
    """What to add to the diagonal of ``second (groups, d, d)``: ``ridge`` times its mean, and nothing for the ones."""
    diagonal = second.diagonal(dim1=1, dim2=2)
    added = (ridge * diagonal[:, :columns].mean(1, keepdim=True)).clamp_min(1e-30).expand_as(diagonal).clone()
    added[:, columns:] = 0
    return added


def squared_error(moments: Moments, matrix: Tensor) -> float:
    """How far ``matrix (groups, outputs, d)`` is from the wanted outputs, as a share of their variance."""
    d = matrix.shape[2]
    error = moments.yy + ((matrix @ moments.xx[:, :d, :d] - 2 * moments.yx[:, :, :d]) * matrix).sum(2)
    spread = moments.yy - moments.yx[:, :, -1].square() / max(1, moments.count)
    return float(error.sum().clamp_min(0) / spread.sum().clamp_min(1e-300))


def places(product: Product, y: Tensor, samples: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Which places of a batch's output ``y`` to look at, a chunk at a time, each a tensor of indices for ``Product.rows``.

    Equally many of each sample, drawn without replacement; all where that is no more than is wanted.

    Args:
        samples: How many samples there are in all batches together.
    """
    positions = product.positions(y)
    wanted = math.ceil(max(LEAST_ROWS, ROWS * product.columns) / samples)
    first = torch.arange(len(y))[:, None] * positions
    if wanted >= positions:
        at = (first + torch.arange(positions)).flatten()
    else:
        at = (first + torch.rand(len(y), positions, generator=generator).topk(wanted, dim=1).indices).flatten()
    yield from at.to(y.device).split(max(1, CHUNK // (product.columns * product.groups)))


def input_moments(graph: Graph, batches: Sequence[Batch], weights: set[str]) -> dict[str, Moments]:
    """The second moments of what some layers read, by the name of their weight.

    Raises:
        DataError: A layer reads values that are not finite.
    """
    wanted = {node: p for node, p in products(graph).items() if p.weight in weights}
    samples = sum(len(b[0]) for b in batches)
    flow, found = Flow(graph, batches), {}
    for node in flow.walk():
        if node not in wanted:
            continue
        product, moments = wanted[node], Moments()
        generator = torch.Generator().manual_seed(0)
        for x, y in zip(flow[product.source], flow[node], strict=True):
            for at in places(product, y, samples, generator):
                moments.add(product.rows(x, at))
        moments.check(product.weight)
        found[product.weight] = moments
        if len(found) == len(wanted):
            break
    return found
