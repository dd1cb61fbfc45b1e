"""Rules for operations that move elements about: the labels move as the elements do.

Sizes that are written into the graph (``view(B, 64, -1)``, ``x[:, :32]``) do no harm: where the model itself does not take
them from its inputs, the exported graph is handed back with these sizes rewritten.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from penjing.graph.labels import NONE, Labels, Ledger, Sheets, Value, Weight, bound, narrow, sheets_of, tidy, unlabelled, varies
from penjing.graph.walk import Rule, out_shape

aten = torch.ops.aten


def per_sheet(rule: Callable[..., Any], ragged: bool = False) -> Rule:
    """The rule for values of several sheets too, one by one; unless ``ragged``, balanced rows keep the same places."""

    def all_sheets(ledger: Ledger, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Any:
        sheets = sheets_of(x)
        if not ragged:
            sheets = tuple(ledger.squared(s, str(node.target)) for s in sheets)
        moved = [rule(ledger, node, s, *args, **kwargs) for s in sheets]
        if isinstance(moved[0], list | tuple):
            return [bound(parts, parts[0].shape) for parts in zip(*moved, strict=True)]
        return bound(moved, moved[0].shape)

    return all_sheets


def moved(ledger: Ledger, node: fx.Node, x: Labels, *args: Any, **kwargs: Any) -> Any:
    """Permute, squeeze, repeat: the operation itself, run on the labels."""
    args = fx.node.map_aggregate(args, lambda a: ledger.value(a) if isinstance(a, Weight) else a)
    kwargs = {k: v for k, v in kwargs.items() if k != "memory_format"}
    out = node.target(x, *args, **kwargs)  # type: ignore[operator]
    return [tidy(m) for m in out] if isinstance(out, list | tuple) else tidy(out)


def gathered(ledger: Ledger, node: fx.Node, parts: Sequence[Any], dim: int = 0) -> Value:
    """Concatenate and stack: labels beside labels; what lies across must keep the same size in every part."""
    given = [ledger.value(p) if isinstance(p, Weight) else p for p in parts]
    values: list[Labels] = [v for v in given if not isinstance(v, Sheets)]
    if len(values) < len(given):
        for v in given:
            ledger.freeze_value(v, f"{node.target} of values with several kinds of channels")
        return unlabelled(out_shape(node))
    if node.target is aten.stack.default:
        values = [v.unsqueeze(dim) for v in values]
    values = [v for v in values if v.shape[0] or v.ndim > 1]  # torch lets an empty vector stand beside anything
    dim %= values[0].ndim
    for across in range(values[0].ndim):
        if across != dim and any(varies(v, across) for v in values):
            _balanced(ledger, values, across, f"{node.target} of parts")
    return tidy(torch.cat(values, dim))


def _balanced(ledger: Ledger, parts: Sequence[Labels], dim: int, reason: str) -> None:
    """Equally many channels of every part stay; fixed where a part has none."""
    if not all(varies(p, dim) for p in parts):
        for p in parts:
            ledger.freeze(p, f"{reason} of fixed size")
        return
    ledger.balance(torch.stack([ledger.vector(p, dim, reason) for p in parts]))


def reshaped(ledger: Ledger, node: fx.Node, x: Labels, *_: Any) -> Labels:
    """View, flatten: blocks that the channels are cut into stay equal, and where the order needs it, keep the same places."""
    shape = out_shape(node)
    free = ledger.free_dim(x)
    if free is not None and not _keeps_order(x, free, shape):
        x = ledger.squared(x, str(node.target))
    x = tidy(x)
    out = tidy(x.reshape(shape))  # not view: expanded labels have no memory layout to keep
    for before, after in _factors(tuple(x.shape), shape):
        cut = [d for d in after if varies(out, d)]
        if len(cut) > 1 and _whole(x, before, math.prod(shape[d] for d in cut[:-1]), flat=cut[-1] == len(shape) - 1):
            out = _in_blocks(ledger, node, out, cut).expand(shape)
    return out


def _whole(x: Labels, dims: list[int], blocks: int, *, flat: bool) -> bool:
    """Whether blocks of these dimensions hold whole channels of one sample; with all of their positions when ``flat``."""
    lead = [d for d in dims if varies(x, d)]
    if len(lead) != 1 or x.shape[lead[0]] % blocks or any(x.shape[d] > 1 for d in dims if d < lead[0]):
        return False
    return flat or all(x.shape[d] == 1 for d in dims if d > lead[0])


def _in_blocks(ledger: Ledger, node: fx.Node, out: Labels, cut: list[int]) -> Labels:
    """One of the dimensions that the channels were cut into gets shorter; the sizes of the others are the model's own."""
    asked = node.args[1] if len(node.args) > 1 and isinstance(node.args[1], list | tuple) else []
    unsaid = [d for d in cut if len(asked) == out.ndim and asked[d] == -1]
    if unsaid:
        free = unsaid[0]
    elif out.ndim > 3 and cut == list(range(1, out.ndim)):  # a vector that becomes an image, whose sides stay
        free = cut[0]
    else:
        free = max(reversed(cut), key=lambda d: out.shape[d])
    others = [d for d in cut if d != free]
    if free != cut[-1] or not all(varies(out, d) for d in cut):  # the order of the elements: the same places in every block
        return ledger.joined(out, others, f"{node.target} into blocks")
    rows = narrow(out)
    rows = rows.reshape(-1, rows.shape[free])
    if bool((rows < 0).any()) or rows.shape[0] != math.prod(out.shape[d] for d in others):
        return ledger.joined(out, others, f"{node.target} into blocks")
    ledger.balance(rows)
    return out


def _keeps_order(x: Labels, free: int, shape: tuple[int, ...]) -> bool:
    """Whether rows of different places come out in the order in which they would be cut: no row dimension varies faster."""
    before, after = next(run for run in _factors(tuple(x.shape), shape) if free in run[0])
    out = tidy(x.reshape(shape))
    return sum(varies(out, d) for d in after) == 1 and not any(varies(x, d) for d in before if d > free)


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


def retyped(ledger: Ledger, node: fx.Node, x: Weight | Value, other: Weight | Value) -> Value:  # noqa: ARG001
    """The type of another value, nothing else of it."""
    return ledger.value(x) if isinstance(x, Weight) else x


def expanded_as(ledger: Ledger, node: fx.Node, x: Value, other: Weight | Value) -> Value:
    """Copies along the channels of another value: every channel has its own."""
    other = ledger.value(other) if isinstance(other, Weight) else other
    shape = out_shape(node)
    sheets = [s.expand(shape) for s in sheets_of(x)]
    grown = [d for d in range(len(shape)) if ([1] * (len(shape) - x.ndim) + list(x.shape))[d] == 1 < shape[d]]
    given = [s for s in sheets_of(other) if any(varies(s, d) for d in grown)]
    sheets += [_only_along(ledger, s, grown, str(node.target)).expand(shape) for s in given]
    return bound(sheets, shape)


def _only_along(ledger: Ledger, labels: Labels, dims: list[int], reason: str) -> Labels:
    return ledger.joined(labels, [d for d in range(labels.ndim) if d not in dims], reason)


def shuffled(ledger: Ledger, node: fx.Node, x: Labels, groups: int) -> Labels:
    """Channel shuffle: the blocks that it mixes keep the same channels, so that they stay equal."""
    x = tidy(x)
    if varies(x, 1):
        blocks = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
        ledger.join(blocks[:, :1].expand_as(blocks), blocks, f"{node.target} of blocks")
    return tidy(node.target(x, groups))  # type: ignore[operator]


def spread(ledger: Ledger, node: fx.Node, x: Labels, factor: int) -> Labels:
    """Pixel shuffle: the channels that make one larger channel stay or go together, so that their number stays a multiple."""
    x = tidy(x)
    if varies(x, 1):
        squares = x.reshape(x.shape[0], -1, factor**2, *x.shape[2:])
        ledger.join(squares[:, :, :1].expand_as(squares), squares, f"{node.target} into squares")
    return tidy(node.target(x, factor))  # type: ignore[operator]


def parted(ledger: Ledger, node: fx.Node, x: Labels, size: Any, dim: int = 0) -> list[Labels]:
    """Split: equal parts of the channels stay equal, since that is how most models ask for them."""
    x = tidy(x)
    dim %= x.ndim
    if varies(x, dim) and ledger.free_dim(x) == dim:
        x = tidy(ledger.squared(x, str(node.target)))
    parts = [tidy(p) for p in node.target(x, size, dim)]  # type: ignore[operator]
    if not varies(x, dim) or len({p.shape[dim] for p in parts}) > 1 or ledger.free_dim(x) is not None:
        return parts
    rows = [narrow(p) for p in parts]
    if len({r.shape for r in rows}) > 1 or any(bool((r < 0).any()) for r in rows):
        return parts  # some are fixed: their sizes are rewritten
    if rows[0].numel() != rows[0].shape[dim]:
        for p in parts[1:]:
            ledger.join(parts[0].contiguous(), p.contiguous(), f"{node.target} into parts")
        return parts
    ledger.balance(torch.stack([r.flatten() for r in rows]))
    return parts


def taken_apart(ledger: Ledger, node: fx.Node, x: Labels, dim: int = 0) -> list[Labels]:
    """Unbind: one by one along positions or balanced rows; single channels stay."""
    if varies(x, dim) and ledger.free_dim(x) in (None, dim % x.ndim):
        ledger.freeze(x, f"{node.target} of single channels")
        return [unlabelled(s.shape) for s in x.unbind(dim)]
    return [tidy(s) for s in x.unbind(dim)]


def picked(ledger: Ledger, node: fx.Node, x: Labels, dim: int = 0, *args: Any, **kwargs: Any) -> Labels:
    """Slice or select: a run of channels; every second one cannot be asked for once some are gone.

    Of a parameter nothing may be cut: what one input leaves unread, such as the rest of a table of positions, others read.
    """
    x = tidy(x)
    dim %= x.ndim
    if varies(x, dim) and _of_a_parameter(ledger, node):
        ledger.freeze(x, f"{node.target} of a parameter")
    if ledger.free_dim(x) == dim:
        x = tidy(ledger.squared(x, str(node.target)))
    out: Labels = tidy(node.target(x, dim, *args, **kwargs))  # type: ignore[operator]
    step = node.args[4] if node.target is aten.slice.Tensor and len(node.args) > 4 else 1
    single = out.ndim < x.ndim or (out.shape[dim] == 1 < x.shape[dim])
    if varies(x, dim) and (step != 1 or (single and ledger.free_dim(x) is None)):
        ledger.freeze(x if step != 1 else out, f"{node.target} of single channels")
    return out


def _of_a_parameter(ledger: Ledger, node: fx.Node) -> bool:
    source = node.args[0] if node.args else None
    while isinstance(source, fx.Node) and source.target in (aten.slice.Tensor, aten.select.int, aten.narrow.default):
        source = source.args[0]
    return isinstance(source, fx.Node) and isinstance(ledger.values.get(source.name), Weight)


def gated(ledger: Ledger, node: fx.Node, x: Labels, dim: int = -1) -> Labels:
    """GLU: one half times a gate from the other, place by place."""
    one, other = (tidy(h) for h in tidy(x).chunk(2, dim))
    if varies(x, dim % x.ndim):
        ledger.join(one.contiguous(), other.contiguous(), str(node.target))
    return one


def chosen(ledger: Ledger, node: fx.Node, x: Labels, dim: int, index: Weight | Value) -> Labels:
    """Select by a list: harmless along positions; the list is a value too and must stay as it is."""
    ledger.freeze_value(index, "used as an index")
    if varies(x, dim % x.ndim):
        ledger.freeze(x, f"{node.target} of the channels")
        return unlabelled(out_shape(node))
    return x.narrow(dim, 0, 1).expand(out_shape(node))


def indexed(ledger: Ledger, node: fx.Node, x: Labels, indices: Sequence[Any]) -> Labels:
    """Select by lists: harmless along positions that lie together."""
    for index in indices:
        if index is not None:
            ledger.freeze_value(index, "used as an index")
    used = [d for d, i in enumerate(indices) if i is not None]
    if any(varies(x, d) for d in used) or len(used) != 1 or len(indices[used[0]].shape) != 1:
        ledger.freeze(x, f"{node.target} of the channels")
        return unlabelled(out_shape(node))
    return x.narrow(used[0], 0, 1).expand(out_shape(node))


def turned(ledger: Ledger, node: fx.Node, x: Labels, *args: Any) -> Labels:
    """Flip and roll, the dimensions last: harmless along positions, frozen along channels; ``roll`` without any flattens."""
    dims = args[-1] if len(args) > 1 or node.target is aten.flip.default else range(x.ndim)
    if any(varies(x, d % x.ndim) for d in dims):
        ledger.freeze(x, f"{node.target} of the channels")
        return unlabelled(out_shape(node))
    return x


def padded(ledger: Ledger, node: fx.Node, x: Labels, pad: Sequence[int], *_: Any, **__: Any) -> Labels:
    """New elements belong to the channel they are beside; those beside all channels are of fixed number and stay."""
    short = tidy(x)
    shape = out_shape(node)
    for i in range(len(pad) // 2):
        dim, (left, right) = x.ndim - 1 - i, (pad[2 * i], pad[2 * i + 1])
        if not (left or right) or not varies(short, dim):
            continue
        if left < 0 or right < 0 or (len(node.args) > 2 and isinstance(node.args[2], str) and node.args[2] != "constant"):
            ledger.freeze(x, f"{node.target} pads the channels")
            return unlabelled(shape)
        size = list(short.shape)
        beside = [torch.full((), NONE).expand([n if d == dim else s for d, s in enumerate(size)]) for n in (left, right)]
        short = tidy(torch.cat([beside[0], short, beside[1]], dim))
    grown = [d for d in range(x.ndim) if short.shape[d] != shape[d]]
    for d in grown:
        short = short.narrow(d, 0, 1)
    return short.expand(shape)


def unfolded(ledger: Ledger, node: fx.Node, x: Labels, kernel: Sequence[int], *_: Any) -> Labels:
    """``F.unfold``: every channel becomes as many as the kernel has places."""
    channels = ledger.vector(x, 1, f"{node.target} of values that are not channels")
    return channels.repeat_interleave(math.prod(kernel)).view(1, -1, 1).expand(out_shape(node))


def folded(ledger: Ledger, node: fx.Node, x: Labels, _size: Any, kernel: Sequence[int], *__: Any) -> Labels:
    """``F.fold``: as many channels as the kernel has places become one."""
    channels = ledger.vector(x, 1, f"{node.target} of values that are not channels").view(-1, math.prod(kernel))
    ledger.join(channels[:, :1].expand_as(channels), channels, f"{node.target} into one")
    return channels[:, 0].view(1, -1, 1, 1).expand(out_shape(node))
