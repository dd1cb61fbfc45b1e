"""Filter pruning via the geometric median (FPGM, He et al. 2019, arXiv:1811.00250): what the others can stand in for goes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from penjing.graph import Group
from penjing.score.evidence import Evidence, Scores


def geometric_median(evidence: Evidence) -> Scores:
    """Summed Euclidean distance of each channel's own filters to those of all other channels of its group.

    A channel's own filters are the weights that make it, of all layers that do, one after the other, each layer divided by
    the mean length of its filters. What is near the median of the others is redundant, large or not; a filter of zeros is so
    only where the others lie around it. Channels that no layer makes score 1.
    """
    weights, reads = evidence.weights, evidence.channels.reads
    return {group.name: _distances(group, weights, reads) for group in evidence.channels.groups}


def _distances(group: Group, weights: Mapping[str, Tensor], reads: frozenset[tuple[str, int]]) -> Tensor:
    filters = []
    for axis in group.axes:
        weight = weights.get(axis.name)
        if weight is None or weight.ndim < 2 or (axis.name, axis.dim) in reads:
            continue
        own = weight.detach().double().movedim(axis.dim, 0)[axis.index].flatten(1).cpu()  # (channels, values)
        filters.append(own / own.norm(dim=1).mean().clamp_min(torch.finfo(torch.float64).tiny))
    if not filters:
        return torch.ones(group.channels, dtype=torch.float64)
    vectors = torch.cat(filters, 1)
    return torch.cdist(vectors, vectors).sum(1)
