"""Put the statistics of a pruned network right again: batch norms re-estimated, or folded ones matched to the original's.

``reestimate`` is channel-wise REPAIR (Jordan et al. 2023, arXiv:2211.08403) for networks with batch norm: every norm gets the
mean and variance of what now reaches it. ``rescale`` does the same where the norms are folded into the layers.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from penjing.errors import DataError
from penjing.graph import Graph, as_inputs, capture
from penjing.graph.walk import behind
from penjing.plan import ChannelPlan
from penjing.progress import Progress, silent
from penjing.prune.pair import Pair, put_back
from penjing.prune.refit import refit
from penjing.score.flow import Batch, Flow, calibration, tensor_of
from penjing.score.products import Norm, Product, norm_of

EXTREME = 4.0  # standard deviations that differ by more than this factor are not matched


def reestimate(model: nn.Module, example: Tensor | Sequence[Tensor], data: Iterable[Any]) -> nn.Module:
    """A copy of ``model`` whose batch norms hold the mean and unbiased variance of what reaches them on the data.

    As a pass in train mode with ``momentum=None`` would, but every norm sees the output of norms that use the statistics of
    all the data, as they will in eval mode, not of one batch. Nothing but ``running_mean`` and ``running_var`` changes.
    Norms whose statistics serve more than one place are left alone.

    Args:
        data: Batches of inputs, or of ``(inputs, target)``, whose targets are not looked at; a few hundred samples.

    Raises:
        DataError: There is no data, or the model does not take it, or it leads to values that are not finite.
        ModelError: The model cannot be read.
    """
    graph = capture(model, as_inputs(example))
    norms = _norms(graph)
    flow = Flow(graph, calibration(data, graph))
    for node in flow.nodes:
        if node in norms:
            source = node.all_input_nodes[0]
            _set_statistics(graph, norms[node], *statistics(flow[source], 1, norms[node].mean))
        flow.compute(node)
        flow.drop(node)
    fresh = copy.deepcopy(model)
    put_back(graph, fresh)
    return fresh


def _norms(graph: Graph) -> dict[fx.Node, Norm]:
    found = {n: norm for n in graph.module.graph.nodes if (norm := norm_of(n)) is not None}
    times = [norm.mean for norm in found.values()]
    return {n: norm for n, norm in found.items() if times.count(norm.mean) == 1}


@torch.no_grad()
def _set_statistics(graph: Graph, norm: Norm, mean: Tensor, variance: Tensor) -> None:
    tensor_of(graph, norm.mean).copy_(mean)
    tensor_of(graph, norm.variance).copy_(variance)


def statistics(values: Sequence[Tensor], dim: int, name: str) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel over all batches, in float64: shapes ``(channels,)``.

    Raises:
        DataError: They are not finite; ``name`` says where.
    """
    rows = [v.movedim(dim, 0).flatten(1) for v in values]
    rows = [r.to(torch.promote_types(r.dtype, torch.float32)) for r in rows]
    count = sum(r.shape[1] for r in rows)
    mean = torch.stack([r.sum(1, dtype=torch.float64) for r in rows]).sum(0) / count
    squares = [(r - mean.to(r)[:, None]).square().sum(1, dtype=torch.float64) for r in rows]
    variance = torch.stack(squares).sum(0) / max(1, count - 1)
    if not (mean.isfinite().all() and variance.isfinite().all()):
        raise DataError(f"what reaches {name} on the calibration data is NaN or infinite; look for inputs out of range")
    return mean, variance


def rescale(
    small: nn.Module, model: nn.Module, plan: ChannelPlan, example: Tensor | Sequence[Tensor], data: Iterable[Any]
) -> nn.Module:
    """A copy of ``small`` whose layers give each channel the mean and standard deviation that it has in ``model``.

    For networks whose batch norms are folded: layers with a bias that another layer reads later; those in front of a batch
    norm are left alone, and the last ones, whose output is what the network says. Where a channel's deviations differ by more
    than a factor of ``EXTREME``, one of them is next to dead, and only the mean is matched.

    Raises:
        PlanError: ``small`` is not what ``plan`` makes of ``model``.
        DataError: There is no data, or the model does not take it, or it leads to values that are not finite.
        ModelError: A network cannot be read.
    """
    pair = Pair.of(model, small, plan, as_inputs(example))
    batches = calibration(data, pair.dense)
    chosen = _inner(pair)
    dense, pruned = Flow(pair.dense, batches), Flow(pair.small, batches)
    for node in dense.nodes:
        twin = pair.twin.get(node)
        dense.compute(node)
        if twin is not None and twin not in pruned:
            pruned.compute(twin)
        if node in chosen:
            wide, ours = pair.layers[node]
            wanted = [pair.kept(wide, y) for y in dense[node]]
            _match(pair.small, ours, pruned[ours.node], wanted)
            pruned.compute(ours.node)
        dense.drop(node)
        if twin is not None:
            pruned.drop(twin)
    scaled = copy.deepcopy(small)
    put_back(pair.small, scaled)
    return scaled


def _inner(pair: Pair) -> set[fx.Node]:
    """The layers with a bias and no norm behind them that some layer depends on."""
    before = behind(*(source for node in pair.layers for source in node.all_input_nodes))
    return {n for n, (p, _) in pair.layers.items() if n in before and p.bias is not None and p.norm is None}


@torch.no_grad()
def _match(graph: Graph, product: Product, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    dim = 1 if product.kernel else -1
    mean, variance = statistics(found, dim, product.weight)
    target, spread = statistics(wanted, dim, product.weight)
    ratio = (spread / variance.clamp_min(1e-300)).sqrt()
    ratio = torch.where((ratio < EXTREME) & (ratio > 1 / EXTREME), ratio, torch.ones_like(ratio))
    weight, bias = tensor_of(graph, product.weight), tensor_of(graph, str(product.bias))
    shift = target - ratio * (mean - bias.double())
    matrix = product.matrix(weight) * ratio.to(weight).view(product.groups, -1, 1)
    weight.copy_(product.unmatrix(matrix, weight.shape))
    bias.copy_(shift)


def repair(
    small: nn.Module,
    model: nn.Module,
    plan: ChannelPlan,
    example: Tensor | Sequence[Tensor],
    data: Iterable[Any],
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """The best of ``small``, ``refit`` and ``refit`` with its statistics put right: whose output is nearest to ``model``'s.

    Statistics are put right by ``reestimate`` where there is batch norm and by ``rescale`` where there is none. What is nearest
    is judged on one tenth of the samples, which nothing else looks at, by the squared error.

    Args:
        data: Batches of inputs, or of ``(inputs, target)``, whose targets are not looked at; a few hundred samples.

    Raises:
        PlanError: ``small`` is not what ``plan`` makes of ``model``.
        DataError: There is no data, or the model does not take it, or it leads to values that are not finite.
        ModelError: A network cannot be read.
    """
    inputs = as_inputs(example)
    graph = capture(model, inputs)
    fitted, apart = _parted(calibration(data, graph), graph.dynamic)
    found = [small, refit(small, model, plan, example, fitted, seed=seed, progress=progress)]
    if any(norm_of(n) is not None for n in graph.module.graph.nodes):
        found.append(reestimate(found[1], example, fitted))
    else:
        found.append(rescale(found[1], model, plan, example, fitted))
    errors = [_distance(candidate, model, apart) for candidate in found]
    best = found[errors.index(min(errors))]
    return copy.deepcopy(small) if best is small else best


def _parted(batches: Sequence[Batch], any_size: bool) -> tuple[list[Batch], list[Batch]]:
    """The batches to fit on, and one tenth to judge by; where there is a single batch or sample, it is both."""
    if any_size and sum(len(b[0]) for b in batches) >= len(batches) * 10:
        cuts = [len(b[0]) - len(b[0]) // 10 for b in batches]
        pairs = [(_some(b, slice(c)), _some(b, slice(c, None))) for b, c in zip(batches, cuts, strict=True)]
        return [a for a, _ in pairs], [b for _, b in pairs if len(b[0])]
    judged = max(1, len(batches) // 10)
    return list(batches[:-judged]) or list(batches), list(batches[-judged:])


def _some(batch: Batch, which: slice) -> Batch:
    """These samples; inputs that are not of samples are whole."""
    return tuple(x[which] if x.ndim and len(x) == len(batch[0]) else x for x in batch)


@torch.no_grad()
def _distance(candidate: nn.Module, model: nn.Module, batches: Sequence[Batch]) -> float:
    """The squared error of all outputs, in eval mode, each as a share of the original's square."""
    a, b = (copy.deepcopy(m).eval() for m in (candidate, model))
    error = size = 0.0
    for batch in batches:
        for x, y in zip(tree_leaves(a(*batch)), tree_leaves(b(*batch)), strict=True):
            if isinstance(y, Tensor) and y.is_floating_point():
                error += float((x - y).double().square().sum())
                size += float(y.double().square().sum())
    return error / max(size, 1e-300)
