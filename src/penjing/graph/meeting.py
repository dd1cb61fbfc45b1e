"""The rule for element-wise operations: labels of operands that meet are joined."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from penjing.graph.labels import NONE, Labels, Ledger, Sheets, Value, Weight, bound, narrow, sheets_of, tidy, unlabelled
from penjing.graph.walk import out_shape

aten = torch.ops.aten


def elementwise(ledger: Ledger, node: fx.Node, *args: Any, **kwargs: Any) -> Value:
    """Any function of aligned elements; sizes of 1 are broadcast and say nothing about channels."""
    operands: list[Value] = []
    for a in (*args, *kwargs.values()):
        if isinstance(a, Weight):
            operands.append(ledger.value(a))
        elif isinstance(a, Tensor | Sheets):
            operands.append(a)
    shape = out_shape(node)
    out = met(ledger, operands, str(node.target), shape)
    if node.target is aten.add.Tensor and sum(any(bool((s >= 0).any()) for s in sheets_of(x)) for x in operands) > 1:
        ledger.sums += [narrow(s)[narrow(s) >= 0] for s in sheets_of(out)]
    return out


def prelu(ledger: Ledger, node: fx.Node, x: Value, slope: Weight | Value) -> Value:
    """A slope for every channel, or one for all."""
    if isinstance(slope, Weight):
        slope = ledger.value(slope)
    if x.ndim > 2 and slope.ndim == 1:
        slope = bound([s.view(-1, *[1] * (x.ndim - 2)) for s in sheets_of(slope)], (*slope.shape, *[1] * (x.ndim - 2)))
    return met(ledger, [x, slope], str(node.target), out_shape(node))


def met(ledger: Ledger, operands: Sequence[Value], reason: str, shape: tuple[int, ...]) -> Value:
    """Join what lies at the same place; what varies along other dimensions becomes a sheet of its own."""
    sizes = [_sizes(x, len(shape)) for x in operands]
    out: list[Labels] = [torch.full((1,) * len(shape), NONE)]
    owners: list[set[int]] = [set()]  # which operands a sheet was met in
    so_far = [1] * len(shape)
    for n, (operand, full) in enumerate(zip(operands, sizes, strict=True)):
        left = list(range(len(out)))  # sheets of one operand say different things: each meets another of what was before
        for sheet in sheets_of(operand):
            beside = [i for i in left if not _apart(ledger, out[i], so_far, sheet, full)]
            if not beside:
                out.append(sheet)
                owners.append({n})
                continue
            partner = next((i for i in beside if _share_a_dim(ledger, out[i], sheet)), beside[0])
            out[partner] = _meet(ledger, out[partner], so_far, sheet, full, reason)
            owners[partner].add(n)
            left.remove(partner)
        so_far = [max(pair) for pair in zip(so_far, full, strict=True)]
    if len(out) > 1:
        others = [[full for n, full in enumerate(sizes) if n not in own] for own in owners]
        out = [_alone(ledger, s, beside, reason) for s, beside in zip(out, others, strict=True)]
    return bound([tidy(s.expand(shape)) for s in out], shape)


def _apart(ledger: Ledger, a: Labels, sizes_a: Sequence[int], b: Labels, sizes_b: Sequence[int]) -> bool:
    """Whether both have channels, along dimensions in which the other one has size 1, as an outer product has."""
    a, b = _aligned(a, len(sizes_a)), _aligned(b, len(sizes_b))
    along_a, along_b = ledger.along(a), ledger.along(b)
    if not along_a or not along_b or set(along_a) & set(along_b):
        return False
    return (all(sizes_b[d] == 1 for d in along_a) and all(sizes_a[d] == 1 for d in along_b)) or _weights(a, b)


def _weights(a: Labels, b: Labels) -> bool:
    """Whether each varies along a dimension of its own, as the sheets of one weight do."""
    return not bool((narrow(a) < 0).any()) and not bool((narrow(b) < 0).any())


def _share_a_dim(ledger: Ledger, a: Labels, b: Labels) -> bool:
    return not set(ledger.along(a)).isdisjoint(ledger.along(_aligned(b, a.ndim)))


def _aligned(x: Labels, ndim: int) -> Labels:
    return x.reshape((1,) * (ndim - x.ndim) + tuple(x.shape)) if x.ndim < ndim else x


def _alone(ledger: Ledger, sheet: Labels, others: Sequence[list[int]], reason: str) -> Labels:
    """Freeze a sheet beside values of these sizes that it was not met in, where one of them has a size of its own along it."""
    along = [d - sheet.ndim for d in ledger.along(sheet)]
    if any(full[d] > 1 for full in others for d in along):
        ledger.freeze(sheet, f"{reason} with a value of fixed size")
        return torch.full((1,) * sheet.ndim, NONE)
    return sheet


def _meet(ledger: Ledger, x: Labels, full_x: Sequence[int], y: Labels, full_y: Sequence[int], reason: str) -> Labels:
    a, b = torch.broadcast_tensors(narrow(x), narrow(y))
    a, b = _unless_spread(ledger, a, full_x, b, reason), _unless_spread(ledger, b, full_y, a, reason)
    for one, other, full in ((a, b, full_y), (b, a, full_x)):
        # A labelled one beside an unlabelled other may be cut only along dims that the other is broadcast along.
        lone = (one >= 0) & (other < 0)
        if bool(lone.any()) and any(full[d] > 1 for d in ledger.along(one)):
            ledger.freeze(one[lone], f"{reason} with a value of fixed size")
    both = (a >= 0) & (b >= 0)
    if bool(both.any()):
        ledger.join(a[both], b[both], reason)
    return torch.where(a >= 0, a, b).expand([max(sizes) for sizes in zip(full_x, full_y, strict=True)])


def _unless_spread(ledger: Ledger, x: Labels, sizes: Sequence[int], beside: Labels, reason: str) -> Labels:
    """A single channel that all of the others meet, such as a map of attention, must stay, and says nothing about them."""
    if not any(sizes[d] == 1 for d in ledger.along(beside)) or not bool((x >= 0).any()):
        return x
    ledger.freeze(x, f"{reason} with all of the channels")
    return unlabelled(x.shape)


def _sizes(x: Value, ndim: int) -> list[int]:
    return [1] * (ndim - x.ndim) + list(x.shape)
