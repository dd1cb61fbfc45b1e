"""Error table of whole residual blocks: what the output loses when they are left out and all after them is refitted. No labels.

Blocks that go together cost more than the sum of what each costs alone. So they are put in order, by what each costs alone,
and measured as they would go: the first, the first two, and so on. A budget then chooses how many of them go.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from penjing import ranks
from penjing.errors import NotEquivalent
from penjing.graph import capture
from penjing.graph.layers import weighted
from penjing.measure import macs
from penjing.plan import ChannelPlan
from penjing.progress import Progress, silent
from penjing.prune import Block, block_effects, drop_blocks, find_blocks, refit
from penjing.quant.apart import Apart, noise_share
from penjing.score.flow import Batch, calibration
from penjing.search.damage import few, parted

WORK = 8e12  # multiply-accumulates that the table may cost
REFIT = 4  # runs of the network that refitting it on a sample costs, about
LEAST, MOST = 64, 256  # samples that a network is refitted on; for less than the least, blocks that matter most stay untried
JUDGED = 128  # samples that errors are taken from


def dropping(
    model: nn.Module,
    example: Batch,
    data: Sequence[Any],
    *,
    apart: Apart = noise_share,
    stay: Callable[[Block], bool] = lambda _block: False,
    known: Mapping[str, float] | None = None,
    on_blocks: Callable[[str, float], None] = lambda _names, _error: None,
    progress: Progress = silent,
) -> dict[str, float]:
    """What leaving out residual blocks costs: how far the output is from what it was.

    Of several processes each takes its share, and all get everything. Blocks inside of others are looked at, those around
    them are not. Where refitting costs much, only the blocks that do least without it are tried.

    Args:
        data: Batches, of which one quarter is judged by and the rest refitted on.
        apart: What an error is.
        stay: Which blocks are not to be touched.
        known: What an earlier, interrupted call has told ``on_blocks``.
        on_blocks: Called with the names of blocks, joined, and their error when it is there.

    Returns:
        ``{block: error}`` in the order in which they are to go, each with all before it; errors never fall. Without
        blocks whose absence makes the output infinite.

    Raises:
        DataError: There is no data, or the network does not take it.
    """
    graph = capture(model, example)
    if not graph.dynamic:  # without its blocks it would take batches of one size only
        return {}
    fitted, judged = parted(calibration(data, graph))
    blocks = [b for b in _innermost(find_blocks(graph)) if not stay(b) and _can_go(model, example, b)]
    tried = max(1, int(WORK / (macs(graph) * REFIT * LEAST)))
    if len(blocks) > tried:
        effects = block_effects(graph, blocks, few(judged, LEAST))
        blocks = sorted(blocks, key=lambda b: effects[b.name])[:tried]
    samples = max(LEAST, min(MOST, int(WORK / max(1, macs(graph) * REFIT * len(blocks)))))
    judge = _Judge(model, example, few(judged, JUDGED), apart, dict(known or {}), on_blocks)
    with progress("blocks", 2 * len(blocks)) as advance:
        alone = judge.errors([(b.name,) for b in blocks], few(fitted, LEAST), advance)
        order = [names[0] for names in sorted(alone, key=lambda names: alone[names]) if math.isfinite(alone[names])]
        ladder = [tuple(order[: n + 1]) for n in range(len(order))]
        together = judge.errors(ladder, few(fitted, samples), advance)
    levels = np.maximum.accumulate([together[names] for names in ladder])
    return {name: level for name, level in zip(order, levels.tolist(), strict=True) if math.isfinite(level)}


class _Judge:
    """Refits networks without blocks, and compares what they say."""

    def __init__(
        self,
        model: nn.Module,
        example: Batch,
        judged: Sequence[Batch],
        apart: Apart,
        known: dict[str, float],
        told: Callable[[str, float], None],
    ) -> None:
        self.model, self.example, self.judged = model, example, judged
        self.apart, self.known, self.told = apart, known, told
        self.exact = outputs(model, example, judged)

    def errors(
        self, sets: Sequence[tuple[str, ...]], fitted: Sequence[Batch], advance: Callable[[str], None]
    ) -> dict[tuple[str, ...], float]:
        """Of every set of blocks."""
        mine = {}
        for names in ranks.own(sets):
            key = _key(names, fitted)
            if key not in self.known:
                small = drop_blocks(self.model, names, self.example)
                small = refit(small, self.model, ChannelPlan({}, names), self.example, fitted)
                self._learn(key, self.apart(self.exact, outputs(small, self.example, self.judged)))
            mine[key] = self.known[key]
            advance(" ".join(names))
        for share in ranks.gathered(mine):
            for key in sorted(share.keys() - self.known.keys()):
                self._learn(key, share[key])
        return {names: self.known[_key(names, fitted)] for names in sets}

    def _learn(self, key: str, error: float) -> None:
        self.known[key] = error
        if math.isfinite(error):
            self.told(key, error)


def _key(names: Sequence[str], fitted: Sequence[Batch]) -> str:
    return f"{' '.join(names)} on {sum(len(b[0]) for b in fitted)}"


def _innermost(blocks: Sequence[Block]) -> list[Block]:
    """Of blocks that share weights, those that hold fewest."""
    found: list[Block] = []
    for block in sorted(blocks, key=lambda b: len(b.weights)):
        if not any(set(block.weights) & set(b.weights) for b in found):
            found.append(block)
    return found


def _can_go(model: nn.Module, example: Batch, block: Block) -> bool:
    """Whether the network can be read without the block, and still has layers."""
    try:
        return bool(weighted(capture(drop_blocks(model, [block.name], example), example)))
    except NotEquivalent:
        return False


@torch.no_grad()
def outputs(model: nn.Module, example: Batch, batches: Sequence[Batch]) -> list[list[torch.Tensor]]:
    """All floating-point tensors that a network gives, batch by batch."""
    module = capture(model, example).module  # in eval mode, whatever the model is in
    found = [tree_leaves(module(*b)) for b in batches]
    return [[y for y in leaves if isinstance(y, torch.Tensor) and y.is_floating_point()] for leaves in found]
