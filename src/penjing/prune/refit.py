"""Repair a pruned network without labels: every layer is fitted, by least squares, to what the original gives there.

Layers are refitted in the order they run, each on what the pruned network feeds it by then, so that it also makes up for
errors made before it (He et al. 2017, arXiv:1707.06168; ThiNet, Luo et al. 2017, arXiv:1707.06342). The target is the
original's output at that layer, before any activation, for the channels that stay. Where the output is added to a value that
is known by then, as at the end of a residual block, the target is what makes the *sum* right. Both networks run side by side,
node by node, over all calibration data, so one pass does it.

A layer without a bias gives the constant to the batch norm behind it, by its running mean; without either there is none.
Sums are followed through ``layer (-> batch norm) -> add`` when nobody else reads what lies between.
"""

import copy
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from penjing.errors import RecipeError
from penjing.graph import Graph, as_inputs
from penjing.graph.layers import layer_name
from penjing.plan import ChannelPlan
from penjing.progress import Progress, silent
from penjing.prune.pair import Pair, put_back
from penjing.score.flow import Batch, Flow, calibration, tensor_of
from penjing.score.gram import Moments, least_squares, places, squared_error
from penjing.score.products import Norm, Product

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
HELD_BACK = 0.1  # share of the samples that refitted weights are judged by
FEW = 20  # fewer samples are too few to hold some of them back: positions are held back instead
SAME = 1e-5  # an error below this share of the largest value is rounding
aten = torch.ops.aten


@dataclass(frozen=True)
class Fit:
    """How a layer came out.

    Attributes:
        before: Squared error of the pruned layer's output on samples that were held back, as a share of its variance.
        after: The same with the weights that it has now; ``before`` where no fit was better.
        ridge: The one that was taken; None where the weights were left as they were.
    """

    layer: str
    before: float
    after: float
    ridge: float | None


def refit(
    small: nn.Module,
    model: nn.Module,
    plan: ChannelPlan,
    example: Tensor | Sequence[Tensor],
    data: Iterable[Any],
    *,
    ridges: Sequence[float] = RIDGES,
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """A copy of ``small`` whose layers give, as well as they can, what those of ``model`` do.

    No layer gets worse by it: one tenth of the samples is held back from every fit, and where the layer's old weights do
    better there, they stay. Then all samples are fitted. Left alone are weights that are used more than once or computed.

    Args:
        small: What ``prune_channels(model, plan, example)`` gave.
        data: Batches of inputs, or of ``(inputs, target)``, whose targets are not looked at; a few hundred samples.
        ridges: How strongly a layer is held to its old weights, as shares of its inputs' mean square; the best of them
            on the samples held back is taken.

    Raises:
        PlanError: ``small`` is not what ``plan`` makes of ``model``.
        DataError: There is no data, or the model does not take it, or it leads to values that are not finite.
        RecipeError: A ridge is not above zero.
        ModelError: A network cannot be read.
    """
    if not ridges or not all(0 < r < math.inf for r in ridges):
        raise RecipeError(f"ridges are {list(ridges)}; give positive shares, e.g. (0.001, 0.01)")
    pair = Pair.of(model, small, plan, as_inputs(example))
    batches = calibration(data, pair.dense)
    refitted = copy.deepcopy(small)
    with progress("refitting", len(pair.layers)) as advance:
        for fit in _march(pair, batches, tuple(ridges), torch.Generator().manual_seed(seed)):
            advance(f"{fit.layer}: error {fit.before:.3f} -> {fit.after:.3f}")
    put_back(pair.small, refitted)
    return refitted


def _march(pair: Pair, batches: Sequence[Batch], ridges: Sequence[float], generator: torch.Generator) -> Iterator[Fit]:
    """Run both networks side by side, and change the small one's weights on the way."""
    dense, small = Flow(pair.dense, batches), Flow(pair.small, batches)
    for node in dense.nodes:
        dense.compute(node)
        twin = pair.twin.get(node)
        if twin is not None and twin not in small:
            small.compute(twin)
        if node in pair.layers:
            target = _targets(pair, node, dense, small)
            gathered = _gathered(pair.layers[node][1], small, target, generator)
            if gathered is not None:
                yield _improved(pair.small, pair.layers[node][1], *gathered, ridges)
                small.compute(pair.layers[node][1].node)
        dense.drop(node)
        if twin is not None:
            small.drop(twin)


def _targets(pair: Pair, node: fx.Node, dense: Flow, small: Flow) -> list[Tensor]:
    """What the pruned layer should give, batch by batch."""
    product = pair.layers[node][0]
    targets = [pair.kept(product, y) for y in dense[node]]
    added = _added(node, product.norm)
    if added is None or added not in dense:
        return targets
    whole, cut = dense[added], small[pair.twin[added]]
    if [(a.shape, b.shape) for a, b in zip(whole, cut, strict=True)] != [
        (y.shape, t.shape) for y, t in zip(dense[node], targets, strict=True)
    ]:  # something is broadcast
        return targets
    scale = _scale(pair.small, pair.layers[node][1].norm, targets[0])
    return [t + (pair.kept(product, a) - b) * scale for t, a, b in zip(targets, whole, cut, strict=True)]


def _added(node: fx.Node, norm: Norm | None) -> fx.Node | None:
    """What a layer's output is added to, if it is used for nothing else."""
    end = node if norm is None else norm.node
    while len(end.users) == 1:
        user = next(iter(end.users))
        if user.target is aten.add.Tensor and user.kwargs.get("alpha", 1) == 1:
            others = [a for a in user.args if isinstance(a, fx.Node) and a is not end]
            return others[0] if len(others) == 1 else None
        if not _passes(user):
            return None
        end = user
    return None


def _passes(node: fx.Node) -> bool:
    """Whether a node hands its input on unchanged: the value of a norm among its by-products, a dropout in eval mode."""
    if node.target in (aten.dropout.default, aten.feature_dropout.default):
        return node.args[2] is False
    first = node.target is operator.getitem and len(node.args) > 1 and node.args[1] == 0
    return bool(first) or node.target in (aten.clone.default, aten.alias.default)


def _scale(graph: Graph, norm: Norm | None, like: Tensor) -> Tensor:
    """By how much an error behind the norm counts in front of it, per channel; zero where the norm lets nothing through."""
    if norm is None:
        return like.new_ones(())
    by = (tensor_of(graph, norm.variance) + norm.eps).rsqrt()
    if norm.weight is not None:
        by = by * tensor_of(graph, norm.weight)
    passed = by.abs() > 1e-4 * by.abs().max()
    return torch.where(passed, 1 / by, torch.zeros_like(by)).view(1, -1, *[1] * (like.ndim - 2)).detach()


def _gathered(
    product: Product, small: Flow, targets: Sequence[Tensor], generator: torch.Generator
) -> tuple[Moments, Moments] | None:
    """Moments of rows and targets, to fit and held back; None where the layer is right, or there is too little of either."""
    found = small[product.node]
    if all((y - t).abs().amax() <= SAME * t.abs().amax() for y, t in zip(found, targets, strict=True)):
        return None
    samples, use, back = sum(map(len, targets)), Moments(), Moments()
    lots = torch.randperm(samples, generator=generator).split([len(t) for t in targets])
    for x, target, lot in zip(small[product.source], targets, lots, strict=True):
        for at in places(product, target, samples, generator):
            rows, wanted = product.rows(x, at), product.outputs(target, at)
            drawn = lot[(at // product.positions(target)).cpu()] / samples
            if samples < FEW:
                drawn = torch.rand(len(at), generator=generator)
            apart = (drawn < HELD_BACK).to(at.device)
            use.add(rows[:, ~apart], wanted[:, ~apart])
            back.add(rows[:, apart], wanted[:, apart])
    (use + back).check(product.weight)
    return (use, back) if use.count and back.count else None


def _improved(graph: Graph, product: Product, use: Moments, back: Moments, ridges: Sequence[float]) -> Fit:
    """Give the layer the fit that does best on what was held back, if that is better than what it has."""
    weight = tensor_of(graph, product.weight)
    old = product.matrix(weight.detach().double().cpu())
    if product.bias is not None:
        bias = tensor_of(graph, product.bias).detach().double().cpu().view(*old.shape[:2], 1)
        old = torch.cat([old, bias], 2)
    elif product.norm is not None:
        old = torch.cat([old, old.new_zeros(*old.shape[:2], 1)], 2)
    before = best = squared_error(back, old)
    chosen: float | None = None
    for ridge in ridges:
        try:
            error = squared_error(back, least_squares(use, old, ridge, columns=product.columns))
        except RuntimeError:  # singular up to rounding
            continue
        if error < best:
            best, chosen = error, ridge
    if chosen is not None:
        _set(graph, product, least_squares(use + back, old, chosen, columns=product.columns))
    return Fit(layer_name(product.weight), before, best, chosen)


@torch.no_grad()
def _set(graph: Graph, product: Product, matrix: Tensor) -> None:
    weight = tensor_of(graph, product.weight)
    weight.copy_(product.unmatrix(matrix[:, :, : product.columns], weight.shape))
    if product.bias is not None:
        tensor_of(graph, product.bias).copy_(matrix[:, :, -1].flatten())
    elif product.norm is not None:
        tensor_of(graph, product.norm.mean).sub_(matrix[:, :, -1].flatten().to(weight))
