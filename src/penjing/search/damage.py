"""Error tables: what the output loses when one group of channels is narrowed, or one layer is put into integers. No labels.

A width's error is taken with its readers refitted, in closed form, to what they gave before (``score.obs``), on samples that
the refit did not see. Errors tell how far the output is from what it was (``quant.apart``), so that those of different groups
and layers can be added up: a budget is then a knapsack (SPDY, Frantar and Alistarh 2022, arXiv:2203.02461).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from penjing import ranks
from penjing.errors import DataError
from penjing.graph import Group
from penjing.progress import Progress, silent
from penjing.quant.apart import Apart, noise_share
from penjing.score import Consumer, Evidence, Reading, greedy_removal, ranked
from penjing.score.flow import Batch, calibration, tensor_of

POINTS = 5  # widths of a group that are measured; those between follow from the readers' own error
WORK = 4e12  # multiply-accumulates that the table may cost; fewer samples are judged where it would be more
LEAST = 8  # samples to judge by, at least
Row = Mapping[int, float]  # width -> error


@dataclass(frozen=True)
class Damage:
    """What narrowing one group costs.

    Attributes:
        errors: By width, from the full width down, which costs 0; it never falls as the width does.
        scores: Of the channels, ``(channels,)``: what goes first has the lowest (see ``structured_obs``).
    """

    errors: Row
    scores: Sequence[float]


def narrowing(
    evidence: Evidence,
    widths: Mapping[str, Sequence[int]],
    *,
    work: int,
    apart: Apart = noise_share,
    known: Mapping[str, Damage] | None = None,
    on_group: Callable[[str, Damage], None] = lambda _name, _damage: None,
    progress: Progress = silent,
) -> dict[str, Damage]:
    """The error table of all groups that something reads, each narrowed alone.

    Of several processes each takes its share of the groups, and all get everything.

    Args:
        evidence: With data, of which one quarter is judged by and the rest refitted on.
        widths: The widths each group may have.
        work: Multiply-accumulates of one run on one sample, which bound how many samples are judged.
        apart: What an error is.
        known: What an earlier, interrupted call has found.
        on_group: Called with every group's row when it is there.

    Raises:
        DataError: There is no data, or the network does not take it.
    """
    found = dict(known or {})
    fitted, judged = parted(calibration(evidence.data, evidence.graph))
    groups = [g for g in evidence.channels.groups if g.name in widths]
    todo = [g for g in groups if g.name not in found]
    if not todo:
        return found
    # As many samples for a call that goes on as for one that was not interrupted: all groups count, not those left.
    judge = _Judge(evidence, few(judged, int(WORK / max(1, work * len(groups) * POINTS))), apart)
    reading = Reading.of(Evidence(evidence.graph, evidence.channels, fitted))
    mine = {}
    with progress("error table", len(todo)) as advance:
        for group in ranks.own(todo):
            consumers = reading.consumers(group)
            if consumers:
                mine[group.name] = judge.damage(group, consumers, widths[group.name])
                if not np.isfinite(list(mine[group.name].errors.values())).all():
                    raise DataError(f"narrowing {group.name} makes the output NaN or infinite; look for samples out of range")
                on_group(group.name, mine[group.name])
            advance(group.name)
    for share in ranks.gathered(mine):
        for name in sorted(share.keys() - mine.keys()):
            on_group(name, share[name])
        found |= share
    return found


def parted(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Three quarters of the samples to fit on, one to judge by; where there are few, all serve both."""
    samples = sum(len(b[0]) for b in batches)
    if samples < 2 * LEAST:
        return list(batches), list(batches)
    whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    size = max(len(b[0]) for b in batches)
    cut = samples - samples // 4
    return _split(tuple(x[:cut] for x in whole), size), _split(tuple(x[cut:] for x in whole), size)


def _split(whole: Batch, size: int) -> list[Batch]:
    return list(zip(*(x.split(size) for x in whole), strict=True))


def few(batches: Iterable[Batch], most: int) -> list[Batch]:
    """The first batches, of that many samples at most, or of ``LEAST``."""
    left, found = max(LEAST, most), []
    for batch in batches:
        found.append(tuple(x[:left] for x in batch))
        left -= len(batch[0])
        if left <= 0:
            break
    return found


class _Judge:
    """Puts changed weights into the graph, looks at its output, and puts the old ones back."""

    def __init__(self, evidence: Evidence, batches: Sequence[Batch], apart: Apart) -> None:
        self.graph, self.batches, self.apart = evidence.graph, batches, apart
        with torch.no_grad():
            self.exact = self._outputs()

    def damage(self, group: Group, consumers: Sequence[Consumer], widths: Sequence[int]) -> Damage:
        measured = set(_spread([w for w in widths if w < group.channels], POINTS))
        at: dict[int, float] = {}

        def look(left: int) -> None:
            if left in measured:
                at[left] = self.error(consumers)

        order, errors = greedy_removal(consumers, look)
        local = dict(zip(range(group.channels - 1, -1, -1), errors.cumsum(0).tolist(), strict=True)) | {group.channels: 0.0}
        return Damage(_interpolated(at | {group.channels: 0.0}, local, widths), ranked(order, errors).tolist())

    @torch.no_grad()
    def error(self, consumers: Sequence[Consumer]) -> float:
        """With the consumers' weights as they are now."""
        names = [n for c in consumers for n in (c.product.weight, c.product.intercept) if n is not None]
        before = {name: tensor_of(self.graph, name).clone() for name in names}
        try:
            for consumer in consumers:
                self._put(consumer)
            return self.apart(self.exact, self._outputs())
        finally:
            for name, value in before.items():
                tensor_of(self.graph, name).copy_(value)

    def _outputs(self) -> list[list[Tensor]]:
        found = [tree_leaves(self.graph.module(*b)) for b in self.batches]
        return [[y for y in leaves if isinstance(y, Tensor) and y.is_floating_point()] for leaves in found]

    def _put(self, consumer: Consumer) -> None:
        product = consumer.product
        weight = tensor_of(self.graph, product.weight)
        weight.copy_(product.unmatrix(consumer.weight[:, :, : product.columns], weight.shape))
        if product.intercept is not None:
            shift = consumer.weight[:, :, -1].flatten().to(weight)
            tensor_of(self.graph, product.intercept).add_(shift if product.bias else -shift)


def _spread(widths: Sequence[int], count: int) -> list[int]:
    """Some of the widths, from the widest to the narrowest, evenly."""
    if len(widths) <= count:
        return list(widths)
    return [widths[round(i * (len(widths) - 1) / (count - 1))] for i in range(count)]


def _interpolated(measured: Row, local: Row, widths: Sequence[int]) -> dict[int, float]:
    """The error at every width: what was measured, and between that in step with the readers' own error."""
    known = sorted(measured, reverse=True)
    levels = np.maximum.accumulate([measured[w] for w in known])
    places = np.maximum.accumulate([local[w] for w in known])
    return {w: float(np.interp(local[w], places, levels)) for w in widths}


def in_power(decibels: float) -> float:
    """What ``quant.sensitivity`` gives in dB, as an error."""
    return float(10 ** (-decibels / 10))
