"""Rules for operations that sum over channels: the input's channels meet the weight's, the output has the weight's others."""

from typing import Any

import torch
from torch import fx

from penjing.graph.labels import Labels, Ledger, Value, Weight, bound, sheets_of, unlabelled, varies
from penjing.graph.meeting import met
from penjing.graph.walk import out_shape

FIXED = "what it reads is fixed"


def convolution(
    ledger: Ledger,
    node: fx.Node,
    x: Value,
    weight: Weight | Value,
    bias: Weight | Value | None = None,
    stride: Any = 1,  # noqa: ARG001 - aten's signature, as the next ones
    padding: Any = 0,  # noqa: ARG001
    dilation: Any = 1,  # noqa: ARG001
    groups: int = 1,
) -> Labels:
    """Convolution of any rank and grouping; weight ``(O, I / groups, ...)``."""
    if len(weight.shape) != x.ndim:
        return _no_form(ledger, node, x, weight, bias)  # without a batch, dimension 1 is a position
    inputs = _read(ledger, node, x, 1)
    if weight.shape[1] == 1 and groups == len(inputs) and groups > 1:  # depthwise: each output belongs to one input
        [outputs] = _dims(ledger, node, weight, 0)
        ledger.join(inputs.repeat_interleave(len(outputs) // groups), outputs, FIXED)
    else:  # every group keeps the same of its inputs, since the weight is one rectangle
        outputs, per_group = _dims(ledger, node, weight, 0, 1)
        _meet(ledger, node, inputs, per_group.repeat(groups), weight, 1, x)
        ledger.balance(outputs.view(groups, -1))
    _add_bias(ledger, outputs, bias)
    return outputs.view(1, -1, *[1] * (x.ndim - 2)).expand(out_shape(node))


def transposed_convolution(
    ledger: Ledger,
    node: fx.Node,
    x: Value,
    weight: Weight | Value,
    bias: Weight | Value | None = None,
    stride: Any = 1,  # noqa: ARG001 - aten's signature, as the next ones
    padding: Any = 0,  # noqa: ARG001
    output_padding: Any = 0,  # noqa: ARG001
    groups: int = 1,
    dilation: Any = 1,  # noqa: ARG001
) -> Labels:
    """Transposed convolution; weight ``(I, O / groups, ...)``."""
    if len(weight.shape) != x.ndim:
        return _no_form(ledger, node, x, weight, bias)
    inputs = _read(ledger, node, x, 1)
    read, per_group = _dims(ledger, node, weight, 0, 1)
    if groups == len(inputs) > 1:  # depthwise: each output belongs to one input
        ledger.join(inputs, read, FIXED)
        ledger.freeze(per_group, f"{node.target} with one input a group")
        outputs = inputs.repeat_interleave(len(per_group))
    else:
        _meet(ledger, node, inputs, read, weight, 0, x)
        ledger.balance(inputs.view(groups, -1))
        outputs = per_group.repeat(groups)
    _add_bias(ledger, outputs, bias)
    return outputs.view(1, -1, *[1] * (x.ndim - 2)).expand(out_shape(node))


def linear(ledger: Ledger, node: fx.Node, x: Value, weight: Weight | Value, bias: Weight | Value | None = None) -> Value:
    """``x @ weight.T + bias`` over the last dimension; weight ``(O, I)``."""
    if len(weight.shape) != 2:
        return _no_form(ledger, node, x, weight, bias)
    rows = [s for s in sheets_of(x) if not varies(s, x.ndim - 1)]  # what lies along other dimensions goes through
    rows = [s for s in rows if any(varies(s, d) for d in range(x.ndim))]
    read = bound([s for s in sheets_of(x) if all(s is not r for r in rows)], x.shape)
    inputs = _read(ledger, node, read, x.ndim - 1)
    outputs, columns = _dims(ledger, node, weight, 0, 1)
    _meet(ledger, node, inputs, columns, weight, 1, read)
    _add_bias(ledger, outputs, bias)
    shape = out_shape(node)
    return bound([outputs.expand(shape), *(r.narrow(-1, 0, 1).expand(shape) for r in rows)], shape)


def matrix_product(ledger: Ledger, node: fx.Node, a: Value, b: Weight | Value) -> Value:
    """``a @ b``: the last dimension of ``a`` meets the one before the last of ``b``."""
    if isinstance(b, Weight):
        ledger.reads.add((b.name, max(0, len(b.shape) - 2)))
        b = ledger.value(b)
    if a.ndim < 2 or b.ndim < 2:
        return _no_form(ledger, node, a, b)
    return _product(ledger, node, a, b, out_shape(node))


def vector_product(ledger: Ledger, node: fx.Node, a: Value, b: Weight | Value) -> Value:
    """``a @ b`` with a vector ``b``, as spectral norm has it."""
    if isinstance(b, Weight):
        b = ledger.value(b)
    reason, shape = str(node.target), out_shape(node)
    read = [s for s in sheets_of(a) if varies(s, a.ndim - 1)]
    for s in read:
        ledger.mix(node.name, s)
    met(ledger, [bound([_facing(ledger, s, -2, reason) if a.ndim > 1 else s for s in read], b.shape), b], reason, b.shape)
    return bound([_without(ledger, s, -1).select(-1, 0).expand(shape) for s in sheets_of(a)] if shape else [], shape)


def product_sum(ledger: Ledger, node: fx.Node, bias: Weight | Value, a: Weight | Value, b: Weight | Value, **_: Any) -> Value:
    """``bias + a @ b``."""
    bias, a = (ledger.value(v) if isinstance(v, Weight) else v for v in (bias, a))
    out = matrix_product(ledger, node, a, b)
    return met(ledger, [bias, out], str(node.target), out_shape(node))


def attention(
    ledger: Ledger,
    node: fx.Node,
    q: Value,
    k: Weight | Value,
    v: Weight | Value,
    mask: Weight | Value | None = None,
    *_: Any,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """``softmax(q @ k.T + mask) @ v``; where the scale is left to torch it follows the width of the heads, which then stays."""
    if enable_gqa:
        return _no_form(ledger, node, q, k, v, mask)
    k, v = (ledger.value(x) if isinstance(x, Weight) else x for x in (k, v))
    for s in (*sheets_of(q), *sheets_of(k)):
        if scale is None and varies(s, s.ndim - 1):
            ledger.freeze(s, f"{node.target} with a scale that follows the width")
    shape = (*torch.broadcast_shapes(q.shape[:-2], k.shape[:-2]), q.shape[-2], k.shape[-2])
    scores = _product(ledger, node, q, _turned(k), shape)
    if mask is not None:
        given = ledger.value(mask) if isinstance(mask, Weight) else mask
        scores = met(ledger, [scores, given], str(node.target), shape)
    for s in sheets_of(scores):
        if varies(s, s.ndim - 1):
            ledger.freeze(s, f"{node.target} with a softmax over the channels")
    rows = [s for s in sheets_of(scores) if not varies(s, s.ndim - 1)]
    return _product(ledger, node, bound(rows, shape), v, out_shape(node))


def embedding(ledger: Ledger, node: fx.Node, weight: Value, index: Value, *_: Any, **__: Any) -> Value:
    """A row of a table for every number; the rows stay."""
    ledger.freeze_value(index, "used as an index")
    source = node.args[0]
    assert isinstance(source, fx.Node)
    known = ledger.values[source.name]
    if not isinstance(known, Weight):
        ledger.freeze_value(weight, f"{node.target} from a computed table")
        return unlabelled(out_shape(node))
    ledger.freeze(ledger.labels_of(known, 0), "used as an index")
    return ledger.labels_of(known, 1).expand(out_shape(node))


def _product(ledger: Ledger, node: fx.Node, a: Value, b: Value, shape: tuple[int, ...]) -> Value:
    _contract(ledger, node, a, b)
    rows = [_without(ledger, s, -1).narrow(-1, 0, 1) for s in sheets_of(a)]
    columns = [_without(ledger, s, -2).narrow(-2, 0, 1) for s in sheets_of(b)]
    return met(ledger, [bound(rows, rows[0].shape), bound(columns, columns[0].shape)], str(node.target), shape)


def _contract(ledger: Ledger, node: fx.Node, a: Value, b: Value) -> None:
    """Join the last dimension of ``a`` with the one before the last of ``b``, row by row where both have rows."""
    k = a.shape[-1]
    left = [s for s in sheets_of(a) if varies(s, a.ndim - 1)]
    right = [s for s in sheets_of(b) if varies(s, b.ndim - 2)]
    for s in left:
        ledger.mix(node.name, s)
    reason = str(node.target)
    facing_a = [_facing(ledger, s, -2, reason) for s in left] or [unlabelled((k,))]
    facing_b = [_facing(ledger, s, -1, reason) for s in right] or [unlabelled((k,))]
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    met(ledger, [bound(facing_a, facing_a[0].shape), bound(facing_b, facing_b[0].shape)], reason, (*lead, k))


def _facing(ledger: Ledger, labels: Labels, other: int, reason: str) -> Labels:
    """The labels without the dimension that is not summed over."""
    joined = ledger.joined(labels, [labels.ndim + other], reason)
    sizes = [n for d, n in enumerate(labels.shape) if d != labels.ndim + other]
    return joined.squeeze(labels.ndim + other).expand(sizes)


def _without(ledger: Ledger, labels: Labels, dim: int) -> Labels:
    """What is left of the labels once ``dim`` is summed over."""
    if varies(labels, labels.ndim + dim):
        others = [d for d in range(labels.ndim) if d != labels.ndim + dim and varies(labels, d)]
        if others and ledger.free_dim(labels) is None:
            ledger.freeze(labels, "several dimensions of channels")
        return unlabelled(labels.shape)
    return labels.narrow(dim, 0, 1)


def _turned(value: Value) -> Value:
    return bound([s.transpose(-1, -2) for s in sheets_of(value)], [*value.shape[:-2], value.shape[-1], value.shape[-2]])


def _read(ledger: Ledger, node: fx.Node, x: Value, dim: int) -> Labels:
    """The input's channels; those that lie along its positions are frozen, since the layer slides along them."""
    for sheet in sheets_of(x):
        along = [d for d in range(x.ndim) if d != dim and varies(sheet, d)]
        if along and not varies(sheet, dim):
            ledger.freeze(sheet, f"{node.target} slides along the channels")
            return unlabelled((x.shape[dim],))
    return ledger.vector(x, dim, f"{node.target} over values that are not channels")


def _dims(ledger: Ledger, node: fx.Node, weight: Weight | Value, *dims: int) -> list[Labels]:
    """One label for every index of these dimensions of a weight, computed or not; others are frozen where they are known."""
    if isinstance(weight, Weight):
        for d in set(range(len(weight.shape))) - set(dims):
            ledger.keep(weight, d, f"{node.target} slides over it")
        return [ledger.labels_of(weight, d) for d in dims]
    for sheet in sheets_of(weight):
        if not any(varies(sheet, d) for d in dims):
            ledger.freeze(sheet, f"{node.target} slides over it")
    told = [[s for s in sheets_of(weight) if varies(s, d)] for d in dims]
    return [
        ledger.vector(bound(s, weight.shape), d, f"{node.target} with a computed weight")
        if s
        else unlabelled((weight.shape[d],))
        for d, s in zip(dims, told, strict=True)
    ]


def _meet(ledger: Ledger, node: fx.Node, inputs: Labels, read: Labels, weight: Weight | Value, dim: int, x: Value) -> None:
    ledger.join(inputs, read, FIXED)
    if isinstance(weight, Weight):
        ledger.reads.add((weight.name, dim))
    for sheet in sheets_of(x):
        ledger.mix(node.name, sheet)


def _add_bias(ledger: Ledger, outputs: Labels, bias: Weight | Value | None) -> None:
    if isinstance(bias, Weight):
        ledger.join(outputs, ledger.labels_of(bias, 0), "bias")
    elif bias is not None:
        ledger.join(outputs, ledger.vector(bias, 0, "bias"), "a bias of fixed size")


def _no_form(ledger: Ledger, node: fx.Node, *values: Weight | Value | None) -> Labels:
    for v in values:
        if v is not None:
            ledger.freeze_value(v, f"{node.target} has no rule for this form")
    return unlabelled(out_shape(node))
