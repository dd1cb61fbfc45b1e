"""Rules for norms, reductions, softmax and pooling: what mixes channels does so with those that are left."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from penjing.graph.labels import Labels, Ledger, Sheets, Value, Weight, bound, narrow, sheets_of, tidy, unlabelled, varies
from penjing.graph.meeting import met
from penjing.graph.walk import arguments, out_shape


def batch_norm(ledger: Ledger, node: fx.Node, x: Value, *parameters: Any) -> Any:
    """Each channel by itself: its scale, shift, mean and variance go with it."""
    if len(parameters) > 4 and parameters[4] is True:  # its own statistics: a mean over all but the channels
        x = bound([_mixed(ledger, node, s, [d for d in range(x.ndim) if d != 1], keep=True) for s in sheets_of(x)], x.shape)
    through = [s for s in sheets_of(x) if not varies(s, 1) and any(varies(s, d) for d in range(x.ndim))]
    own = bound([s for s in sheets_of(x) if all(s is not t for t in through)], x.shape)
    channels = ledger.vector(own, 1, f"{node.target} over values that are not channels")
    for p in parameters:
        if isinstance(p, Weight | Tensor | Sheets):
            labels = ledger.labels_of(p, 0) if isinstance(p, Weight) else ledger.vector(p, 0, str(node.target))
            ledger.join(channels, labels, f"{node.target} with a value of fixed size")
    shape = out_shape(node)
    out = bound([channels.view(1, -1, *[1] * (x.ndim - 2)).expand(shape), *through], shape)
    return (out, None, None) if isinstance(node.meta["val"], tuple | list) else out


def instance_norm(ledger: Ledger, node: fx.Node, x: Value, *parameters: Any) -> Any:
    """Each channel of each sample by itself."""
    return batch_norm(ledger, node, x, *[p for p in parameters if isinstance(p, Weight | Tensor | Sheets)])


def group_norm(ledger: Ledger, node: fx.Node, x: Value, groups: int, *parameters: Any) -> Labels:
    """Every group of channels by itself: equally many of each stay, and the statistics are theirs."""
    channels = ledger.vector(x, 1, f"{node.target} over values that are not channels")
    for p in parameters:
        if isinstance(p, Weight | Tensor):
            labels = ledger.labels_of(p, 0) if isinstance(p, Weight) else ledger.vector(p, 0, str(node.target))
            ledger.join(channels, labels, f"{node.target} with a value of fixed size")
    out = channels.view(1, -1, *[1] * (x.ndim - 2)).expand(out_shape(node))
    if groups < len(channels):
        ledger.balance(channels.view(groups, -1))
        ledger.mix(node.name, out)
    return out


def layer_norm(ledger: Ledger, node: fx.Node, x: Value, shape: Sequence[int], *parameters: Any) -> Value:
    """Over the last dimensions, whose channels are averaged over."""
    dims = list(range(x.ndim - len(shape), x.ndim))
    sheets = [_mixed(ledger, node, s, dims, keep=True) for s in sheets_of(x)]
    values = [ledger.value(p) if isinstance(p, Weight) else p for p in parameters if isinstance(p, Weight | Tensor | Sheets)]
    return met(ledger, [bound(sheets, x.shape), *values], str(node.target), tuple(x.shape))


def weight_norm(ledger: Ledger, node: fx.Node, v: Value, g: Weight | Value, dim: int = 0) -> Value:
    """A weight's direction and length: a norm over all dimensions but one."""
    others = [d for d in range(v.ndim) if d != dim % v.ndim]
    sheets = [_mixed(ledger, node, s, others, keep=True) for s in sheets_of(v)]
    lengths = ledger.value(g) if isinstance(g, Weight) else g
    return met(ledger, [bound(sheets, v.shape), lengths], str(node.target), tuple(v.shape))


def pooling(ledger: Ledger, node: fx.Node, x: Labels, *_: Any, **__: Any) -> Any:
    """Mixes positions, never channels; channels that lie along the positions are frozen."""
    shape = out_shape(node)
    changed = [d for d in range(x.ndim) if d >= 2 or x.shape[d] != shape[d]]
    if any(varies(x, d) for d in changed):
        ledger.freeze(x, f"{node.target} along the channels")
        out = unlabelled(shape)
    else:
        for d in changed:
            x = x.narrow(d, 0, 1)
        out = x.expand(shape)
    return (out, out) if isinstance(node.meta["val"], tuple | list) else out  # and where they were, which goes with them


def unpooling(ledger: Ledger, node: fx.Node, x: Labels, places: Value, *_: Any) -> Any:
    """Back to where the maxima were, each channel by itself."""
    return pooling(ledger, node, sheets_of(met(ledger, [x, places], str(node.target), tuple(x.shape)))[0])


def sampled(ledger: Ledger, node: fx.Node, x: Labels, grid: Weight | Value, *_: Any) -> Any:
    """Pixels of every channel from anywhere."""
    ledger.freeze_value(grid, f"{node.target} with places from channels")
    return pooling(ledger, node, x)


def reduction(ledger: Ledger, node: fx.Node, x: Value, dim: Any = None, keepdim: bool = False, *_: Any, **__: Any) -> Value:
    """Sum, mean, extremes: along positions nothing; along channels, of those that are left."""
    return _reduced(ledger, node, x, dim, bool(keepdim or node.kwargs.get("keepdim", False)))


def deviation(ledger: Ledger, node: fx.Node, x: Value, *_: Any, **__: Any) -> Value:
    """Variance and standard deviation, whose overloads have their arguments in different places."""
    given = arguments(node)
    return _reduced(ledger, node, x, given.get("dim"), bool(given.get("keepdim", False)))


def vector_norm(
    ledger: Ledger, node: fx.Node, x: Value, _order: Any = 2, dim: Any = None, keepdim: bool = False, **__: Any
) -> Value:
    """A norm, the dimensions after its order."""
    return _reduced(ledger, node, x, dim, bool(keepdim or node.kwargs.get("keepdim", False)))


def extremes(ledger: Ledger, node: fx.Node, x: Value, dim: int, keepdim: bool = False) -> Any:
    """Values and where they are; a place along the channels, if anybody asks for it, means nothing once some are gone."""
    asked = any(user.users and user.args[1] != 0 for user in node.users)
    if asked and any(varies(s, dim % x.ndim) for s in sheets_of(x)):
        ledger.freeze_value(x, f"{node.target} says which channel")
        x = unlabelled(x.shape)
    out = _reduced(ledger, node, x, dim, keepdim)
    return [out, unlabelled(out.shape)]


def moments(ledger: Ledger, node: fx.Node, x: Value, dim: Any = None, *_: Any, **__: Any) -> list[Value]:
    """Spread and mean in one."""
    every = dim is None or isinstance(dim, bool)
    keepdim = bool(node.kwargs.get("keepdim", False)) or node.args[3:4] == (True,)
    out = _reduced(ledger, node, x, None if every else dim, keepdim)
    return [out, out]


def _reduced(ledger: Ledger, node: fx.Node, x: Value, dim: Any, keepdim: bool) -> Value:
    every = dim is None or dim == []
    dims = list(range(x.ndim)) if every else [d % x.ndim for d in (dim if isinstance(dim, list | tuple) else [dim])]
    sheets = [_mixed(ledger, node, s, dims, keep=False) for s in sheets_of(x)]
    if not keepdim:
        for d in sorted(dims, reverse=True):
            sheets = [s.squeeze(d) if s.shape[d] == 1 else s.select(d, 0) for s in sheets]
    shape = out_shape(node)
    return bound([s.expand(shape) for s in sheets], shape)


def softmax(ledger: Ledger, node: fx.Node, x: Labels, dim: int, *_: Any, **__: Any) -> Labels:
    """Shares of a whole: along channels, of those that are left."""
    return _mixed(ledger, node, x, [dim % x.ndim], keep=True).expand(x.shape)


def _mixed(ledger: Ledger, node: fx.Node, labels: Labels, dims: Sequence[int], *, keep: bool) -> Labels:
    """Note that the node mixes what varies along ``dims``, which have size 1 afterwards unless they are kept."""
    labels = tidy(labels)
    free = ledger.free_dim(labels)
    across = [d for d in dims if varies(labels, d)]
    if across and free is not None and free not in across:  # rows are mixed place by place: the same places in each
        labels = ledger.joined(labels, across, str(node.target)).expand(labels.shape)
        across = []
    if across:
        others = [d for d in range(labels.ndim) if d not in dims and varies(labels, d)]
        if others and free is None:
            ledger.freeze(labels, f"{node.target} over values that are not channels")
        else:
            ledger.mix(node.name, labels)
        if not keep:
            return unlabelled([1 if d in dims else n for d, n in enumerate(labels.shape)])
    if keep:
        return labels
    small = narrow(labels)
    for d in dims:
        small = small.narrow(d, 0, 1)
    return small.expand([1 if d in dims else n for d, n in enumerate(labels.shape)])
