"""Make one convolution of several that do the work of one: the same function, with less to run and nothing between to round.

Sums of convolutions of one input, as in a re-parameterizable block (RepVGG, arXiv:2101.03697), are one convolution. A scaling
behind a concatenation of convolutions, as in a mixed convolution (arXiv:1907.09595), folds into each of them. Convolutions of
all parts of a value, concatenated again, are one in groups.
"""

import operator
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from penjing.graph.layers import CONVOLUTIONS
from penjing.graph.walk import each
from penjing.quant.editable import Editable, argument, editable
from penjing.quant.fold import NORM, Scaling, read_scaling, replace_by, tidy
from penjing.quant.place import names_of

aten = torch.ops.aten
SPLITS = frozenset({aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default})


def merge(module: fx.GraphModule) -> None:
    """Rewrite a folded ``module`` in place, until nothing merges any more."""
    for node in list(module.graph.nodes):
        scaling = read_scaling(module, node)
        if scaling and _into_parts(module, scaling):
            replace_by(node, scaling.source)
    for node in list(module.graph.nodes):
        if node.target is aten.add.Tensor and not node.kwargs and len(node.args) == 2:
            merged = _merged(module, node)
            if merged is not None:
                replace_by(node, merged)
        if node.target is aten.cat.default and argument(node, 1, 0) == 1:
            _grouped(module, node)
    tidy(module)


def _into_parts(module: fx.GraphModule, scaling: Scaling) -> bool:
    """Fold a scaling into every convolution of the concatenation before it; whether all of them can take it."""
    cat = scaling.source
    if cat.target is not aten.cat.default or len(cat.users) > 1 or argument(cat, 1, 0) != 1 or scaling.dim not in (None, 1):
        return False
    parts = cat.args[0]
    assert isinstance(parts, list | tuple)
    layers = [editable(module, p) for p in parts if isinstance(p, fx.Node) and len(p.users) == 1]
    found = [layer for layer in layers if layer is not None and layer.place(layer.node.meta["val"]) == 1]
    if len({layer.node for layer in found}) < len(parts):
        return False
    whole = cat.meta["val"].shape[1]
    sizes = [layer.node.meta["val"].shape[1] for layer in found]
    scales, shifts = (t.expand(whole).split(sizes) for t in (scaling.scale, scaling.shift))
    for layer, scale, shift in zip(found, scales, shifts, strict=True):
        layer.weight = layer.weight * layer.along(scale, layer.output)
        layer.bias = layer.bias * scale + shift
        layer.store()
    return True


def _merged(module: fx.GraphModule, add: fx.Node) -> fx.Node | None:
    """One convolution for the sum of two of the same input, or of one and a norm of its input."""
    first, second = add.args[:2]
    if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)) or first is second:
        return None
    if str(first.meta["val"].shape) != str(second.meta["val"].shape):  # one is spread over the other's places
        return None
    for one, other in ((first, second), (second, first)):
        wide = _branch(module, one)
        if wide is None:
            continue
        narrow = _branch(module, other) or _as_convolution(module, other, wide)
        if narrow is not None and _sum_into(wide, narrow):
            return one
    return None


def _branch(module: fx.GraphModule, node: fx.Node) -> Editable | None:
    layer = editable(module, node) if node.target in CONVOLUTIONS and len(node.users) == 1 else None
    return layer if layer is not None and isinstance(argument(node, 4, 0), int | list | tuple) else None


def _as_convolution(module: fx.GraphModule, node: fx.Node, like: Editable) -> Editable | None:
    """A batch norm of the other branch's input as a convolution of one position."""
    scaling = read_scaling(module, node) if node.target is NORM and len(node.users) == 1 else None
    if scaling is None or scaling.source is not like.node.args[0] or set(_pair(like, 3, 1)) != {1}:
        return None
    channels = scaling.scale.numel()
    within = channels // like.groups
    if like.weight.shape[:2] != (channels, within):
        return None
    weight = torch.zeros(channels, within, *[1] * (like.weight.ndim - 2), dtype=torch.float64)
    weight[torch.arange(channels), torch.arange(channels) % within] = scaling.scale.view(-1, *[1] * (like.weight.ndim - 2))
    return replace(like, weight=weight, bias=scaling.shift)


def _sum_into(wide: Editable, narrow: Editable) -> bool:
    """Add one convolution's weights to another's, where its window lies inside."""
    real = narrow.node is not wide.node
    if set(_pair(wide, 5, 1)) != {1}:
        return False
    if real and (
        narrow.node.args[0] is not wide.node.args[0]
        or narrow.groups != wide.groups
        or any(_pair(narrow, place, 1) != _pair(wide, place, 1) for place in (3, 5))
    ):
        return False
    pads = _pair(narrow, 4, 0) if real else [0] * (wide.weight.ndim - 2)
    around: list[int] = []
    for d, (mine, theirs) in enumerate(zip(_pair(wide, 4, 0), pads, strict=True)):
        before = mine - theirs
        after = wide.weight.shape[d + 2] - narrow.weight.shape[d + 2] - before
        if before < 0 or after < 0:
            return False
        around = [before, after, *around]
    wide.weight = wide.weight + torch.nn.functional.pad(narrow.weight, around)
    wide.bias = wide.bias + narrow.bias
    if real:
        _remember(wide, [narrow])
    wide.store()
    return True


def _grouped(module: fx.GraphModule, cat: fx.Node) -> None:
    """Convolutions of all the equal parts of one value, side by side again behind them, as one of so many more groups."""
    parts = cat.args[0]
    assert isinstance(parts, list | tuple)
    found = [_branch(module, p) for p in parts if isinstance(p, fx.Node)]
    layers = [layer for layer in found if layer is not None]
    if len(layers) < max(len(parts), 2) or len({layer.weight.shape for layer in layers}) > 1:
        return
    first = layers[0]
    if any(layer.node.args[3:] != first.node.args[3:] or layer.node.target is not first.node.target for layer in layers):
        return
    source = _split_by(layers)
    if source is None:
        return
    whole = replace(
        first, weight=torch.cat([layer.weight for layer in layers]), bias=torch.cat([layer.bias for layer in layers])
    )
    settings = [_pair(first, place, default) for place, default in ((3, 1), (4, 0), (5, 1))]
    weight, *bias = first.node.args[1:3]  # a bias may have no place among the arguments
    first.node.args = (source, weight, *(bias or [None]), *settings, first.groups * len(layers))
    first.node.target = first.node.target.overloadpacket.default  # type: ignore[union-attr]  # padding="valid" has another
    first.node.meta = dict(cat.meta)
    _remember(first, layers[1:])
    whole.store()
    replace_by(cat, first.node)


def _remember(kept: Editable, others: Sequence[Editable]) -> None:
    """Let the weight that stays answer to the names of those that went into it, too."""
    held = kept.node.args[1]
    assert isinstance(held, fx.Node)
    _, *more = names_of(kept.node)
    held.meta["computed of"] = (*more, *(name for other in others for name in names_of(other.node)))


def _split_by(layers: Sequence[Editable]) -> fx.Node | None:
    """What was split into the inputs of the layers, in order and without rest."""
    picks = [layer.node.args[0] for layer in layers]
    splits = {p.args[0] for p in picks if isinstance(p, fx.Node) and p.target is operator.getitem and len(p.users) == 1}
    split = next(iter(splits), None)
    if len(splits) != 1 or not isinstance(split, fx.Node) or split.target not in SPLITS or argument(split, 2, 0) != 1:
        return None
    order = [p.args[1] for p in picks if isinstance(p, fx.Node)]
    if order != list(range(len(layers))) or len(split.meta["val"]) != len(layers):
        return None
    source = split.args[0]
    assert isinstance(source, fx.Node)
    return source


def _pair(layer: Editable, place: int, default: int) -> list[int]:
    """An argument of a convolution, one number for each spatial dim."""
    given = argument(layer.node, place, default)
    assert isinstance(given, int | list | tuple)
    return each(given, layer.weight.ndim - 2)
