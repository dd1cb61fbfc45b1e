"""Scores from the weights alone: no data needed."""

from collections.abc import Mapping

import torch
from torch import Tensor

from penjing.graph import Group
from penjing.score.evidence import Evidence, Scores


def l2_norm(evidence: Evidence) -> Scores:
    """Root of the summed squares of every weight that leaves with the channel (after Li et al. 2017, arXiv:1608.08710).

    Every axis is divided by its own mean over the channels first, so that a long one does not drown the others.
    """
    weights = evidence.weights
    return {group.name: _l2(group, weights) for group in evidence.channels.groups}


def _l2(group: Group, weights: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(group.channels, dtype=torch.float64)
    for axis in group.axes:
        weight = weights.get(axis.name)
        if weight is None or weight.ndim < 2:  # the scale and shift of a norm say little beside the weights they follow
            continue
        squares = weight.detach().double().movedim(axis.dim, 0)[axis.index].square().flatten(1).sum(1).cpu()
        total += squares / squares.mean().clamp_min(torch.finfo(torch.float64).tiny)
    return total.sqrt()
