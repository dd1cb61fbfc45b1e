"""What each operation does to channel labels: one short rule each, in one table.

A rule is ``(ledger, node, *args, **kwargs) -> labels of the output``; values are label tensors, parameters are ``Weight``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from penjing.graph.walk import NONE, Labels, Ledger, Rule, Weight, narrow, out_shape, tidy, unlabelled

aten = torch.ops.aten
FIXED = "what it reads is fixed"


# Structure: the operation itself, run on the labels.


def structure(ledger: Ledger, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """View, permute, concatenate, slice: labels move as the elements do."""
    args = fx.node.map_aggregate(args, lambda a: ledger.value(a) if isinstance(a, Weight) else a)
    kwargs = {k: v for k, v in kwargs.items() if k != "memory_format"}
    moved = node.target(*args, **kwargs)  # type: ignore[operator]
    return [tidy(m) for m in moved] if isinstance(moved, list | tuple) else tidy(moved)


def reshaped(ledger: Ledger, node: fx.Node, x: Labels | Weight, shape: Sequence[int]) -> Labels:
    """View: when it cuts the channels into blocks, every block keeps the same ones, so that the blocks stay equal."""
    x = tidy(ledger.value(x) if isinstance(x, Weight) else x)
    out = tidy(x.reshape(tuple(shape)))  # not view: expanded labels have no memory layout to keep
    for before, after in _factors(tuple(x.shape), tuple(out.shape)):
        cut = [d for d in after if out.shape[d] > 1]
        if len(cut) > 1 and sum(_varies(x, d) for d in before) == 1 and all(x.shape[d] == 1 or _varies(x, d) for d in before):
            out = _joined(ledger, out, cut[:-1], f"{node.target} into blocks").expand(tuple(out.shape))
    return out


def _factors(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Which dimensions of a reshaped value became which: the shortest runs of equal products."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        left, right = [i], [j]
        p, q = before[i], after[j]
        i, j = i + 1, j + 1
        while p != q:
            if p < q:
                left.append(i)
                p, i = p * before[i], i + 1
            else:
                right.append(j)
                q, j = q * after[j], j + 1
        runs.append((left, right))
    return runs


def shuffled(ledger: Ledger, node: fx.Node, x: Labels, groups: int) -> Labels:
    """Channel shuffle: the blocks that it mixes keep the same channels, so that they stay equal."""
    x = tidy(x)
    if _varies(x, 1):
        blocks = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
        ledger.join(blocks[:, :1].expand_as(blocks), blocks, f"{node.target} of blocks")
    return tidy(node.target(x, groups))  # type: ignore[operator]


def spread(ledger: Ledger, node: fx.Node, x: Labels, factor: int) -> Labels:
    """Pixel shuffle: the channels that make one larger channel stay or go together, so that their number stays a multiple."""
    x = tidy(x)
    if _varies(x, 1):
        squares = x.reshape(x.shape[0], -1, factor**2, *x.shape[2:])
        ledger.join(squares[:, :, :1].expand_as(squares), squares, f"{node.target} into squares")
    return tidy(node.target(x, factor))  # type: ignore[operator]


def parted(ledger: Ledger, node: fx.Node, x: Labels | Weight, size: Any, dim: int = 0) -> list[Labels]:
    """Split: equal parts of the channels keep the same ones; parts of other sizes are written into the model and frozen."""
    x = tidy(ledger.value(x) if isinstance(x, Weight) else x)
    parts = [tidy(p) for p in node.target(x, size, dim)]  # type: ignore[operator]
    if not _varies(x, dim % x.ndim):
        return parts
    if len({p.shape[dim] for p in parts}) > 1:
        ledger.freeze(x, f"{node.target} into parts of different sizes")
        return [unlabelled(p.shape) for p in parts]
    for p in parts[1:]:
        ledger.join(parts[0].contiguous(), p.contiguous(), f"{node.target} into parts")
    return [parts[0] for _ in parts]


def picked(ledger: Ledger, node: fx.Node, x: Labels | Weight, dim: int = 0, *args: Any, **kwargs: Any) -> Labels:
    """Slice or select: harmless along positions; along channels the places are written into the model, so they are frozen."""
    x = tidy(ledger.value(x) if isinstance(x, Weight) else x)
    if _varies(x, dim % x.ndim) and out_shape(node) != tuple(x.shape):
        ledger.freeze(x, f"{node.target} of the channels")
        return unlabelled(out_shape(node))
    return tidy(node.target(x, dim, *args, **kwargs))  # type: ignore[operator]


def chosen(ledger: Ledger, node: fx.Node, x: Labels, dim: int, index: Weight | Labels) -> Labels:
    """Select by a list: as ``picked``, but the list is a value too and must stay as it is."""
    ledger.freeze_weight(index, "used as an index") if isinstance(index, Weight) else ledger.freeze(index, "used as an index")
    if _varies(x, dim % x.ndim):
        ledger.freeze(x, f"{node.target} of the channels")
        return unlabelled(out_shape(node))
    return x.narrow(dim, 0, 1).expand(out_shape(node))


def turned(ledger: Ledger, node: fx.Node, x: Labels, *args: Any) -> Labels:
    """Flip and roll, the dimensions last: harmless along positions, frozen along channels; ``roll`` without any flattens."""
    dims = args[-1] if len(args) > 1 or node.target is aten.flip.default else range(x.ndim)
    if any(_varies(x, d % x.ndim) for d in dims):
        ledger.freeze(x, f"{node.target} of the channels")
        return unlabelled(out_shape(node))
    return x


def padded(ledger: Ledger, node: fx.Node, x: Labels, pad: Sequence[int], *_: Any, **__: Any) -> Labels:
    """New elements belong to the channel they are beside; a dimension that channels lie along is frozen: its size is fixed."""
    short = tidy(x)
    for i in range(len(pad) // 2):
        dim = x.ndim - 1 - i
        if (pad[2 * i] or pad[2 * i + 1]) and short.stride(dim) != 0 and short.shape[dim] > 1:
            ledger.freeze(x, f"{node.target} pads the channels")
            return unlabelled(out_shape(node))
    return narrow(short).expand(out_shape(node))


# Element-wise: labels of operands that meet are joined.


def elementwise(ledger: Ledger, node: fx.Node, *args: Any, **kwargs: Any) -> Labels:
    """Any function of aligned elements; sizes of 1 are broadcast and say nothing about channels."""
    operands: list[Labels] = []
    values = [*args, *kwargs.values()]
    for a in values:
        if isinstance(a, Weight):
            operands.append(ledger.value(a))
        elif isinstance(a, Tensor):
            operands.append(a)
    shape = out_shape(node)
    out = torch.full((1,) * len(shape), NONE)
    for operand in operands:
        out = _meet(ledger, out, operand, str(node.target), shape)
    if node.target is aten.add.Tensor and len([x for x in operands if (x >= 0).any()]) > 1:
        ledger.sums.append(narrow(out)[narrow(out) >= 0])
    return tidy(out.expand(shape))


def _meet(ledger: Ledger, out: Labels, operand: Labels, reason: str, shape: tuple[int, ...]) -> Labels:
    a, b = narrow(out), narrow(operand)
    full_a, full_b = _sizes(out, len(shape)), _sizes(operand, len(shape))
    a, b = torch.broadcast_tensors(a, b)
    a, b = _unless_spread(ledger, a, full_a, b, reason), _unless_spread(ledger, b, full_b, a, reason)
    for x, y, full_y in ((a, b, full_b), (b, a, full_a)):
        # A labelled x beside an unlabelled y may be cut only along dims that y is broadcast along.
        lone = (x >= 0) & (y < 0)
        if lone.any() and any(full_y[d] > 1 and _varies(x, d) for d in range(x.ndim)):
            ledger.freeze(x[lone], f"{reason} with a value of fixed size")
    both = (a >= 0) & (b >= 0)
    if both.any():
        ledger.join(a[both], b[both], reason)
    return torch.where(a >= 0, a, b).expand([max(sizes) for sizes in zip(full_a, full_b, strict=True)])


def _unless_spread(ledger: Ledger, x: Labels, sizes: Sequence[int], beside: Labels, reason: str) -> Labels:
    """A single channel that all of the others meet, such as a map of attention, must stay, and says nothing about them."""
    if not any(n == 1 and _varies(beside, d) for d, n in enumerate(sizes)) or not (x >= 0).any():
        return x
    ledger.freeze(x, f"{reason} with all of the channels")
    return unlabelled(x.shape)


def _sizes(x: Labels, ndim: int) -> list[int]:
    return [1] * (ndim - x.ndim) + list(x.shape)


def _varies(x: Labels, dim: int) -> bool:
    return x.shape[dim] > 1 and bool((x != x.narrow(dim, 0, 1)).any())


# Contraction: the input's channels meet the weight's, the output has the weight's output channels.


def convolution(
    ledger: Ledger,
    node: fx.Node,
    x: Labels,
    weight: Weight | Labels,
    bias: Weight | Labels | None = None,
    stride: Any = 1,  # noqa: ARG001 - aten's signature, as the next ones
    padding: Any = 0,  # noqa: ARG001
    dilation: Any = 1,  # noqa: ARG001
    groups: int = 1,
) -> Labels:
    """Convolution of any rank and grouping; weight ``(O, I / groups, ...)``."""
    if not isinstance(weight, Weight) or len(weight.shape) != x.ndim:  # without a batch, dimension 1 is a position
        return _computed_weight(ledger, node, x, weight, bias)
    inputs = ledger.vector(x, 1, f"{node.target} slides along the channels")
    out = ledger.labels_of(weight, 0)
    _meet_grouped(ledger, inputs, out, weight, groups, str(node.target))
    _add_bias(ledger, out, bias)
    return out.view(1, -1, *[1] * (x.ndim - 2)).expand(out_shape(node))


def transposed_convolution(
    ledger: Ledger,
    node: fx.Node,
    x: Labels,
    weight: Weight | Labels,
    bias: Weight | Labels | None = None,
    stride: Any = 1,  # noqa: ARG001 - aten's signature, as the next ones
    padding: Any = 0,  # noqa: ARG001
    output_padding: Any = 0,  # noqa: ARG001
    groups: int = 1,
    dilation: Any = 1,  # noqa: ARG001
) -> Labels:
    """Transposed convolution; weight ``(I, O / groups, ...)``. Grouped ones are frozen."""
    if not isinstance(weight, Weight) or groups != 1 or len(weight.shape) != x.ndim:
        return _computed_weight(ledger, node, x, weight, bias)
    inputs = ledger.vector(x, 1, f"{node.target} slides along the channels")
    ledger.join(inputs, ledger.labels_of(weight, 0), FIXED)
    ledger.reads.add((weight.name, 0))
    out = ledger.labels_of(weight, 1)
    _add_bias(ledger, out, bias)
    return out.view(1, -1, *[1] * (x.ndim - 2)).expand(out_shape(node))


def linear(ledger: Ledger, node: fx.Node, x: Labels, weight: Weight | Labels, bias: Weight | Labels | None = None) -> Labels:
    """``x @ weight.T + bias`` over the last dimension; weight ``(O, I)``."""
    if not isinstance(weight, Weight):
        return _computed_weight(ledger, node, x, weight, bias)
    inputs = ledger.vector(x, x.ndim - 1, f"{node.target} over a dimension that is not the channels")
    ledger.join(inputs, ledger.labels_of(weight, 1), FIXED)
    ledger.reads.add((weight.name, 1))
    out = ledger.labels_of(weight, 0)
    _add_bias(ledger, out, bias)
    return out.expand(out_shape(node))


def _meet_grouped(ledger: Ledger, inputs: Labels, out: Labels, weight: Weight, groups: int, reason: str) -> None:
    if weight.shape[1] == 1 and groups == len(inputs) and groups > 1:  # depthwise: each output belongs to one input
        ledger.join(inputs.repeat_interleave(len(out) // groups), out, FIXED)
        return
    # Every group keeps the same inputs and the same outputs, since the weight is one rectangle.
    per_group = ledger.labels_of(weight, 1)
    ledger.join(inputs.view(groups, -1), per_group.expand(groups, -1), FIXED)
    ledger.reads.add((weight.name, 1))
    if groups > 1:
        blocks = out.view(groups, -1)
        ledger.join(blocks, blocks[:1].expand_as(blocks), reason)


def _add_bias(ledger: Ledger, out: Labels, bias: Weight | Labels | None) -> None:
    if isinstance(bias, Weight):
        ledger.join(out, ledger.labels_of(bias, 0), "bias")
    elif bias is not None:
        ledger.freeze(out, "its bias is computed")
        ledger.freeze(bias, "used as a bias")


def _computed_weight(ledger: Ledger, node: fx.Node, *values: Weight | Labels | None) -> Labels:
    for v in values:
        if isinstance(v, Weight):
            ledger.freeze_weight(v, f"{node.target} has no rule for this form")
        elif v is not None:
            ledger.freeze(v, f"{node.target} has no rule for this form")
    return unlabelled(out_shape(node))


# Normalization, pooling, reduction.


def batch_norm(ledger: Ledger, node: fx.Node, x: Labels, *parameters: Any) -> Any:
    """Each channel by itself: its scale, shift, mean and variance go with it."""
    channels = ledger.vector(x, 1, f"{node.target} over values that are not channels")
    for p in parameters:
        if isinstance(p, Weight):
            ledger.join(channels, ledger.labels_of(p, 0), f"{node.target} with a value of fixed size")
        elif isinstance(p, Tensor):
            ledger.freeze(x, f"{node.target} with a computed parameter")
    out = channels.view(1, -1, *[1] * (x.ndim - 2)).expand(out_shape(node))
    return (out, None, None) if isinstance(node.meta["val"], tuple | list) else out


def pooling(ledger: Ledger, node: fx.Node, x: Labels, *_: Any, **__: Any) -> Any:
    """Mixes positions, never channels; channels that lie along the positions are joined."""
    shape = out_shape(node)
    changed = [d for d in range(x.ndim) if d >= 2 or x.shape[d] != shape[d]]
    out = _joined(ledger, x, changed, str(node.target)).expand(shape)
    return (out, unlabelled(shape)) if isinstance(node.meta["val"], tuple | list) else out


def reduction(ledger: Ledger, node: fx.Node, x: Labels, dim: Any = None, keepdim: bool = False, **_: Any) -> Labels:
    """Sum, mean, extremes: what is reduced together lives or dies together."""
    dims = (
        list(range(x.ndim))
        if dim is None or dim == []
        else [d % x.ndim for d in (dim if isinstance(dim, list | tuple) else [dim])]
    )
    out = _joined(ledger, x, dims, str(node.target))
    if not keepdim:
        for d in sorted(dims, reverse=True):
            out = out.squeeze(d)
    return out.expand(out_shape(node))


def normalized_along(ledger: Ledger, node: fx.Node, x: Labels, dim: int, *_: Any, **__: Any) -> Labels:
    """Softmax: harmless along positions; along channels every one of them changes the others."""
    if _varies(tidy(x), dim % x.ndim):
        ledger.freeze(x, f"{node.target} along the channels")
        return unlabelled(out_shape(node))
    return x


def _joined(ledger: Ledger, x: Labels, dims: Sequence[int], reason: str) -> Labels:
    """Join the labels along ``dims`` and cut these to size 1."""
    x = narrow(tidy(x))
    for d in dims:
        if x.shape[d] > 1:
            first = x.narrow(d, 0, 1)
            ledger.join(first.expand_as(x), x, f"{reason} over the channels")
            x = first
    return x


def _overloads(*names: str) -> list[Any]:
    """Every overload of the named aten operations that this torch has."""
    packets = [getattr(aten, n) for n in names if hasattr(aten, n)]
    return [getattr(p, o) for p in packets for o in p.overloads()]


_STRUCTURE = _overloads(
    "flatten", "unflatten", "permute", "transpose", "t", "movedim", "squeeze", "unsqueeze", "expand", "expand_as", "cat",
    "stack", "pixel_unshuffle", "clone", "contiguous", "alias", "detach", "lift_fresh_copy",
)  # fmt: skip
_ELEMENTWISE = _overloads(
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "sigmoid", "tanh", "hardtanh",
    "hardsigmoid", "hardswish", "log_sigmoid", "exp", "log", "sqrt", "rsqrt", "square", "abs", "neg", "sign", "erf", "sin",
    "cos", "reciprocal", "clamp", "clamp_min", "clamp_max", "pow", "add", "sub", "rsub", "mul", "div", "maximum", "minimum",
    "where", "dropout", "feature_dropout", "_to_copy", "to", "softsign", "hardshrink", "softshrink",
    "threshold", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "floor", "ceil", "round",
    "addcmul",
)  # fmt: skip
_POOLING = _overloads(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "reflection_pad1d",
    "reflection_pad2d", "replication_pad2d",
)  # fmt: skip

RULES: dict[Any, Rule] = {
    **dict.fromkeys(_STRUCTURE, structure),
    **dict.fromkeys([aten.view.default, aten._unsafe_view.default, aten.reshape.default], reshaped),
    **dict.fromkeys(_overloads("split", "split_with_sizes", "chunk"), parted),
    **dict.fromkeys(_overloads("slice", "select", "narrow"), picked),
    **dict.fromkeys(_overloads("index_select"), chosen),
    **dict.fromkeys(_overloads("flip", "roll"), turned),
    **dict.fromkeys(_overloads("channel_shuffle"), shuffled),
    **dict.fromkeys(_overloads("pixel_shuffle"), spread),
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_POOLING, pooling),
    **dict.fromkeys(_overloads("sum", "mean", "amax", "amin"), reduction),
    **dict.fromkeys(_overloads("softmax", "_softmax", "log_softmax", "_log_softmax"), normalized_along),
    **dict.fromkeys(_overloads("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(_overloads("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed_convolution),
    **dict.fromkeys(_overloads("linear"), linear),
    **dict.fromkeys(_overloads("batch_norm", "_native_batch_norm_legit_no_training"), batch_norm),
    **dict.fromkeys(_overloads("constant_pad_nd", "pad"), padded),
}  # fmt: skip
