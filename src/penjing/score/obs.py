"""Structured OBS: what a channel's removal costs once those that read it have made up for it as well as they can.

Optimal brain surgeon (Hassibi and Stork 1993) for whole channels: with ``H`` the second moments of what a layer reads, the
least possible error after taking the columns ``M`` out of its weight ``W`` and refitting the others is known in closed form,
``tr(W_M [(H^-1)_MM]^-1 W_M^T)``. Channels go one by one, cheapest first, and ``W`` and ``H^-1`` follow each time
(ZipLM, Kurtic et al. 2023, arXiv:2302.04089; OSSCAR, Meng et al. 2024, arXiv:2403.12983).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from penjing.graph import Axis, Group
from penjing.score.evidence import Evidence, Scores
from penjing.score.flow import calibration, tensor_of
from penjing.score.gram import Moments, input_moments, ridge_diagonal
from penjing.score.products import Product, products

RIDGE = 0.01  # added to the diagonal of the second moments, as a share of its mean
TINY = torch.finfo(torch.float64).tiny


def structured_obs(evidence: Evidence) -> Scores:
    """The share of its readers' output that is lost for good when a channel goes, in the order of greedy removal.

    A score is the increase of the readers' least-squares error at the channel's turn, each reader's divided by the variance of
    its output, and at least the score of the channel that went before. So the highest scores of a group are what greedy
    removal keeps at any width, and scores of different groups can be compared: least first is also greedy across groups,
    where the channels cost the same.

    A group that no layer with weights of its own reads is scored by the energy of the weights that make it, as a share.

    Raises:
        DataError: ``evidence.data`` is missing, empty, not what the model takes, or leads to values that are not finite.
    """
    reading = Reading.of(evidence)
    scores = {}
    for group in evidence.channels.groups:
        consumers = reading.consumers(group)
        scores[group.name] = ranked(*greedy_removal(consumers)) if consumers else _energy(group, evidence.weights)
    return scores


@dataclass(frozen=True)
class Reading:
    """The layers that read the groups, and the second moments of what they read."""

    evidence: Evidence
    readers: Mapping[str, Product]
    moments: Mapping[str, Moments]

    @classmethod
    def of(cls, evidence: Evidence) -> "Reading":
        """Run the network once over ``evidence.data``.

        Raises:
            DataError: See ``structured_obs``.
        """
        graph = evidence.graph
        readers = {p.weight: p for p in products(graph).values() if not (p.transposed and p.groups > 1)}
        read = {a.name for g in evidence.channels.groups for a in g.axes if _is_read(a, evidence, readers)}
        return cls(evidence, readers, input_moments(graph, calibration(evidence.data, graph), read))

    def consumers(self, group: Group) -> list["Consumer"]:
        """The layers that read the group, as they are."""
        return [
            Consumer.of(self.readers[a.name], tensor_of(self.evidence.graph, a.name), self.moments[a.name], a.index)
            for a in group.axes
            if a.name in self.moments and _is_read(a, self.evidence, self.readers)
        ]


def _is_read(axis: Axis, evidence: Evidence, readers: Mapping[str, Product]) -> bool:
    reader = readers.get(axis.name)
    return reader is not None and axis.dim == reader.reads and (axis.name, axis.dim) in evidence.channels.reads


@dataclass
class Consumer:
    """A layer that reads the channels, as far as it has made up for those that are gone.

    Attributes:
        product: The layer.
        inverse: Of the second moments of its rows, ``(groups, d, d)``.
        weight: ``(groups, outputs, d)``; what belongs to the ones stays at zero, since only differences count.
        columns: ``(channels, m)``: those of each channel, in every one of its groups.
        share: One over the variance of its output.
    """

    product: Product
    inverse: Tensor
    weight: Tensor
    columns: Tensor
    share: float

    @classmethod
    def of(cls, product: Product, weight: Tensor, moments: Moments, index: Tensor, *, ridge: float = RIDGE) -> "Consumer":
        """The consumer whose weight loses ``index (channels, k)`` of the dimension that it reads by."""
        matrix = product.matrix(weight.detach().double().cpu())
        second = moments.xx / moments.count
        if product.intercept is None:
            second = second[:, :-1, :-1]
        else:  # the ones stay, and take up the mean of what is removed
            matrix = torch.cat([matrix, matrix.new_zeros(*matrix.shape[:2], 1)], 2)
        inverse = torch.linalg.inv(second + torch.diag_embed(ridge_diagonal(second, product.columns, ridge)))
        taps = torch.arange(product.taps)
        columns = (index[:, :, None] * product.taps + taps).flatten(1)
        energy = float(((matrix @ _centered(moments)[:, : matrix.shape[2], : matrix.shape[2]]) * matrix).sum())
        return cls(product, inverse, matrix, columns, 1 / energy if energy > TINY else 0.0)

    def errors(self, alive: Tensor) -> Tensor:
        """By how much the error grows when one of the channels ``alive`` goes: shape ``(alive,)``."""
        at = self.columns[alive]
        block = self.inverse[:, at[:, :, None], at[:, None, :]]  # (groups, alive, m, m)
        lost = self.weight[:, :, at].permute(0, 2, 3, 1)  # (groups, alive, m, outputs)
        traces: Tensor = torch.linalg.solve(block, lost @ lost.mT).diagonal(dim1=2, dim2=3).sum((0, 2))
        return self.share * traces

    def remove(self, channel: int) -> None:
        """Take a channel out and let the others make up for it."""
        at = self.columns[channel]
        rows = self.inverse[:, at]  # (groups, m, d)
        by = torch.linalg.solve(rows[:, :, at], rows)
        self.weight.baddbmm_(self.weight[:, :, at], by, alpha=-1)
        self.inverse.baddbmm_(rows.mT, by, alpha=-1)


def _centered(moments: Moments) -> Tensor:
    """The covariance of the rows, ``(groups, d, d)``; the ones have none."""
    second = moments.xx / moments.count
    mean = second[:, -1:]
    return second - mean.mT @ mean


def greedy_removal(
    consumers: Sequence[Consumer], on_removed: Callable[[int], None] = lambda _left: None
) -> tuple[Tensor, Tensor]:
    """Remove channel after channel, each time the one that costs least; the consumers are changed.

    Args:
        on_removed: Called after each removal with the number of channels that are left.

    Returns:
        The channels in that order, and by how much the sum of the consumers' errors grew each time.
    """
    alive = torch.arange(len(consumers[0].columns))
    order, errors = [], []
    while len(alive):
        cost = torch.stack([c.errors(alive) for c in consumers]).sum(0)
        best = int(cost.argmin())
        order.append(int(alive[best]))
        errors.append(float(cost[best].clamp_min(0)))
        for consumer in consumers:
            consumer.remove(order[-1])
        alive = torch.cat([alive[:best], alive[best + 1 :]])
        on_removed(len(alive))
    return torch.tensor(order), torch.tensor(errors, dtype=torch.float64)


def ranked(order: Tensor, errors: Tensor) -> Tensor:
    """Scores ``(channels,)`` that rise strictly along the order, and hardly differ from the errors where these rise."""
    rising = errors.cummax(0).values
    turn = torch.arange(len(order), dtype=torch.float64)
    rising = rising * (1 + 1e-9 * turn) + TINY * turn
    return torch.empty_like(rising).scatter_(0, order, rising)


def _energy(group: Group, weights: Mapping[str, Tensor]) -> Tensor:
    parts = [
        weights[a.name].detach().double().cpu().movedim(a.dim, 0)[a.index].square().flatten(1).sum(1)
        for a in group.axes
        if a.name in weights and weights[a.name].ndim > 1
    ]
    total = torch.stack([p / p.sum().clamp_min(TINY) for p in parts]).sum(0) if parts else torch.ones(group.channels)
    return total.double() / total.sum().clamp_min(TINY)
