"""Scores from what the channels carry and what the output makes of it: these need data.

Multiply a value by a *gate* of ones, one for every sample and channel. The gate's gradient is what the loss of that sample
changes by, to first order, per share of the channel that goes: ``sum a * dl/da`` over the channel's values. At a layer's
input it equals ``sum w * dl/dw`` over the weights that read the channel, at its output over those that make it. So one
backward pass tells every sample apart, and no gradient of a weight is computed.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from penjing.errors import DataError, ModelError
from penjing.score.evidence import Evidence, Scores
from penjing.score.sites import Site, Sites, Tapped, all_sites, batch_of, reading_sites

Objective = Callable[[object, object, int], Tensor]  # (output, target, samples) -> sum over the samples of each one's loss


def activation_energy(evidence: Evidence) -> Scores:
    """Mean square of the channel's values where layers read it, over samples, positions and layers. Needs no labels.

    Channels that no layer reads are looked at where they are made; what neither is seen of scores 1.

    Raises:
        DataError: There is no data, or the model does not take it.
    """
    sites = reading_sites(evidence)
    total: dict[Site, Tensor] = {}
    count: dict[Site, int] = {}

    def add(site: Site, value: Tensor) -> Tensor:
        others = [d for d in range(value.ndim) if d != site.place % value.ndim]
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        squares = wide.square().sum(others, dtype=torch.float64).cpu()
        total[site] = total.get(site, 0) + site.fold(squares)
        count[site] = count.get(site, 0) + value.numel() // site.size
        return value

    tapped = Tapped(evidence.graph.module, _distinct(sites), add)
    with torch.no_grad():
        for inputs, _ in evidence.batches():
            tapped.outputs(inputs)
    means = {
        name: [(total[site] / count[site])[index].mean(1) for site, index in found if site in total]
        for name, found in sites.items()
    }
    return {g.name: _mean_or_ones(means[g.name], g.channels) for g in evidence.channels.groups}


def taylor(evidence: Evidence) -> Scores:
    """Mean over the samples of ``|sum w * dl/dw|``, over all weights that make, scale, shift or read the channel. Needs labels.

    First order, jointly for the group (Molchanov et al. 2019, arXiv:1906.10771, with a sum over the group inside). The size
    is taken sample by sample: the mean gradient of a trained network is near zero, and how samples are batched must not
    matter. ``evidence.loss`` is taken as the mean over the samples of a batch. Single factors beside the layers and norms,
    such as a learned layer scale, are left out. Channels that pass none of those score 1.

    Raises:
        DataError: There is no data, it has no labels, or the model does not take it.
        ModelError: The samples of a batch cannot be told apart.
    """

    def loss(output: object, target: object, samples: int) -> Tensor:
        if target is None:
            raise DataError("taylor needs labels, and data yields inputs alone; give (inputs, target) pairs, or use fisher")
        return evidence.loss(output, target) * samples

    return _mean_over_samples(evidence, all_sites(evidence), loss, torch.abs)


def fisher(evidence: Evidence, *, seed: int = 0) -> Scores:
    """Half the mean square of the gate's gradient, summed first over all layers that read the channel. Needs no labels.

    The second-order cost of the channel (Theis et al. 2018, arXiv:1801.05787; Liu et al. 2021, arXiv:2108.00708). Labels are
    drawn from the model's own softmax, which makes it the true Fisher information. An output that is not ``(N, K)`` with
    ``K > 1``, and so no logits, is taken as the mean of a Gaussian: its gradient is taken against standard normal numbers.
    Channels that no layer reads are gated where they are made; those of which neither is seen score 1.

    Args:
        seed: Of the labels drawn, which depend on the order of the samples, not on how they are batched.

    Raises:
        DataError: There is no data, or the model does not take it.
        ModelError: The samples of a batch cannot be told apart.
    """
    generators: list[torch.Generator] = []

    def surprise(output: object, _target: object, _samples: int) -> Tensor:
        leaves = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]
        while len(generators) < len(leaves):  # one each, so that what is drawn for one output does not shift the others
            generators.append(torch.Generator().manual_seed(seed + len(generators)))
        drawn = [_drawn(x, g) for x, g in zip(leaves, generators, strict=False)]
        return torch.stack([d.double() for d in drawn]).sum() if drawn else torch.zeros(())

    return _mean_over_samples(evidence, reading_sites(evidence), surprise, lambda g: g.square() / 2)


def _drawn(output: Tensor, generator: torch.Generator) -> Tensor:
    """A scalar whose gradient is, in expectation of its square, the Fisher information of the output."""
    if output.ndim == 2 and output.shape[1] > 1:
        logs = F.log_softmax(output, 1)
        chance = torch.rand(len(output), 1, generator=generator, dtype=torch.float64)
        labels = (logs.detach().double().cpu().exp().cumsum(1) < chance).sum(1).clamp_max(output.shape[1] - 1)
        return -logs.gather(1, labels[:, None].to(output.device)).sum()
    rows = [torch.randn(output.shape[1:], generator=generator) for _ in range(len(output) if output.ndim else 1)]
    return (output * torch.stack(rows).reshape(output.shape).to(output)).sum()


def _mean_over_samples(evidence: Evidence, sites: Sites, objective: Objective, size: Callable[[Tensor], Tensor]) -> Scores:
    """The mean of ``size`` of each sample's gate gradients, which are summed over the sites of a group."""
    total = {g.name: torch.zeros(g.channels, dtype=torch.float64) for g in evidence.channels.groups if sites[g.name]}
    samples = 0
    for inputs, target in _told_apart(evidence, sites):
        found = _gate_gradients(evidence, sites, objective, inputs, target)
        samples += len(inputs[0])
        for name in total:
            gradients = torch.stack([found[site][:, index].sum(2) for site, index in sites[name]]).sum(0)
            total[name] += size(gradients).sum(0)  # (samples, channels) -> (channels,)
    return {
        g.name: total[g.name] / samples if g.name in total else torch.ones(g.channels, dtype=torch.float64)
        for g in evidence.channels.groups
    }


def _gate_gradients(
    evidence: Evidence, sites: Sites, objective: Objective, inputs: tuple[Tensor, ...], target: object
) -> dict[Site, Tensor]:
    """For each site the gradient of its gate, of shape ``(samples, size)``."""
    gates: dict[Site, Tensor] = {}

    def gated(site: Site, value: Tensor) -> Tensor:
        shape = [1] * value.ndim
        shape[0], shape[site.place] = value.shape[0], value.shape[site.place]
        gates[site] = value.new_ones(shape).requires_grad_()
        return value * gates[site]

    samples = len(inputs[0])
    with torch.enable_grad():
        output = Tapped(evidence.graph.module, _distinct(sites), gated).outputs(inputs)
        loss = objective(output, target, samples)
    if not loss.requires_grad:  # no gate is on the way to the output
        return {site: torch.zeros(samples, site.size, dtype=torch.float64) for site in gates}
    gradients = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
    found = {}
    for (site, gate), gradient in zip(gates.items(), gradients, strict=True):
        rows = torch.zeros_like(gate) if gradient is None else gradient
        found[site] = site.fold(rows.detach().double().cpu().reshape(samples, -1, gate.shape[site.place]).sum(1))
    return found


def _told_apart(evidence: Evidence, sites: Sites) -> Iterator[tuple[tuple[Tensor, ...], object]]:
    """The batches; sample by sample where a layer's first dimension is not the samples, as when windows are folded into it."""
    size = len(evidence.graph.example[0])
    folded = next((site for site in _distinct(sites) if batch_of(site) != size), None)
    for inputs, target in evidence.batches():
        samples = len(inputs[0])
        if folded is None or samples == 1:
            yield inputs, target
        elif not evidence.graph.dynamic:
            raise ModelError(
                f"{folded.weight} does not see the samples of a batch one by one, and the model takes no other batch than the "
                "example's; use l2_norm or activation_energy"
            )
        else:
            for i in range(samples):
                one = partial(_sample, i=i, samples=samples)
                yield tuple(one(x) for x in inputs), tree_map(one, target)


def _sample(value: Any, i: int, samples: int) -> Any:
    """The part of a batched tensor that belongs to one sample; anything else as it is."""
    return value[i : i + 1] if isinstance(value, Tensor) and value.ndim and len(value) == samples else value


def _distinct(sites: Sites) -> list[Site]:
    return list(dict.fromkeys(site for found in sites.values() for site, _ in found))


def _mean_or_ones(values: list[Tensor], channels: int) -> Tensor:
    return torch.stack(values).mean(0) if values else torch.ones(channels, dtype=torch.float64)
