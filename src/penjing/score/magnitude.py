"""Scores from the weights alone: no data needed."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from penjing.graph import Group
from penjing.score.evidence import Evidence, Scores
from penjing.score.sites import norm_scales


def l1_norm(evidence: Evidence) -> Scores:
    """Sum of the sizes of every weight that leaves with the channel (after Li et al. 2017, arXiv:1608.08710).

    Every axis is divided by its own mean over the channels first, so that a long one does not drown the others.
    """
    return _over_axes(evidence, torch.abs)


def l2_norm(evidence: Evidence) -> Scores:
    """Root of the summed squares of every weight that leaves with the channel (after Li et al. 2017, arXiv:1608.08710).

    Every axis is divided by its own mean over the channels first, so that a long one does not drown the others.
    """
    return {name: total.sqrt() for name, total in _over_axes(evidence, torch.square).items()}


def bn_scale(evidence: Evidence) -> Scores:
    """Size of the channel's scale in the norms it passes, their mean where it passes several (Network Slimming).

    Liu et al. 2017, arXiv:1708.06519; it presumes training that drives scales to zero, or at least decays them. Groups
    that pass no norm with a scale are scored by ``l2_norm`` divided by its mean, which is as large as a scale of 1.
    """
    scales, weights, norms = norm_scales(evidence.graph), evidence.weights, l2_norm(evidence)
    scores: dict[str, Tensor] = {}
    for group in evidence.channels.groups:
        sizes = [
            weights[a.name].detach().double().abs().cpu()[a.index].mean(1)
            for a in group.axes
            if a.name in scales and a.name in weights
        ]
        scores[group.name] = torch.stack(sizes).mean(0) if sizes else _over_mean(norms[group.name])
    return scores


def _over_axes(evidence: Evidence, size: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    weights = evidence.weights
    return {group.name: _sum_over_axes(group, weights, size) for group in evidence.channels.groups}


def _sum_over_axes(group: Group, weights: Mapping[str, Tensor], size: Callable[[Tensor], Tensor]) -> Tensor:
    total = torch.zeros(group.channels, dtype=torch.float64)
    for axis in group.axes:
        weight = weights.get(axis.name)
        if weight is None or weight.ndim < 2:  # the scale and shift of a norm say little beside the weights they follow
            continue
        others = [d for d in range(weight.ndim) if d != axis.dim]
        amounts = size(weight.detach().double()).sum(others).cpu()  # of every index, before they are gathered: no large copy
        total += _over_mean(amounts[axis.index].sum(1))
    return total


def _over_mean(amounts: Tensor) -> Tensor:
    return amounts / amounts.mean().clamp_min(torch.finfo(torch.float64).tiny)
