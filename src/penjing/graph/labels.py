"""Labels, and the ledger of what the walk finds out about them: which meet, which are frozen, which must stay in balance."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NONE = -2  # the label of an element that belongs to no channel
INPUT = -1  # the same, of the model's input

Labels = Tensor  # int64, of the value's own shape; dimensions along which nothing changes are expanded, at no cost


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer of the model, before it is clear what its dimensions mean."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Sheets:
    """A value each of whose elements belongs to several channels, as a weight's do: one tensor of labels for each."""

    sheets: tuple[Labels, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value."""
        return tuple(self.sheets[0].shape)

    @property
    def ndim(self) -> int:
        """Dimensions of the value."""
        return self.sheets[0].ndim


Value = Labels | Sheets


def sheets_of(value: Value) -> tuple[Labels, ...]:
    """Its tensors of labels."""
    return value.sheets if isinstance(value, Sheets) else (value,)


def bound(sheets: Sequence[Labels], shape: Sequence[int]) -> Value:
    """A value of these sheets; those without any label say nothing."""
    told = [s.expand(tuple(shape)) for s in sheets if bool((narrow(s) != NONE).any())]
    return Sheets(tuple(told)) if len(told) > 1 else told[0] if told else unlabelled(shape)


@dataclass
class Ledger:
    """What the walk has found: the labels handed out, which of them meet, which are frozen and why."""

    first: dict[tuple[str, int], int] = field(default_factory=dict)  # (parameter, dim) -> its first label
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    count: int = 0
    joins: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    frozen: list[tuple[Tensor, str]] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)  # labels of values that are added to one another
    reads: set[tuple[str, int]] = field(default_factory=set)  # dims of weights that meet a value's channels and sum over them
    mixes: dict[str, list[Labels]] = field(default_factory=dict)  # node -> labels that it mixes
    balances: list[Tensor] = field(default_factory=list)  # (rows, columns): equally many of every row stay
    row_of: dict[int, tuple[int, int]] = field(default_factory=dict)  # label -> (balance, row)
    kept: dict[tuple[str, int], str] = field(default_factory=dict)  # dims that stay, should they be labelled; and why
    values: dict[str, Any] = field(default_factory=dict)  # node -> its labels

    def labels_of(self, weight: Weight, dim: int) -> Labels:
        """One label for every index of a dimension; the same at every call. Shape ``(size,)``."""
        size = weight.shape[dim]
        if (weight.name, dim) not in self.first:
            self.first[weight.name, dim] = self.count
            self.shapes[weight.name] = weight.shape
            self.count += size
            if (weight.name, dim) in self.kept:
                self.keep(weight, dim, self.kept[weight.name, dim])
        start = self.first[weight.name, dim]
        return torch.arange(start, start + size)

    def keep(self, weight: Weight, dim: int, reason: str) -> None:
        """Freeze a dimension that is no channel, such as a kernel's rows, where another use takes it for one."""
        self.kept[weight.name, dim] = reason
        if (weight.name, dim) in self.first:
            self.freeze(self.labels_of(weight, dim), reason)

    def join(self, a: Labels, b: Labels, reason: str) -> None:
        """Elements of ``a`` and ``b`` (of one shape) live or die together; what meets no channel is frozen."""
        both = (a >= 0) & (b >= 0)
        self.joins.append((a[both], b[both]))
        for lone, why in (((a == INPUT) | (b == INPUT), "model input"), (~both, reason)):
            self.freeze(torch.cat([a[lone], b[lone]]), why)

    def freeze(self, labels: Labels, reason: str) -> None:
        """These channels must stay."""
        labels = narrow(labels).flatten()
        labels = labels[labels >= 0].unique()
        if len(labels):
            self.frozen.append((labels, reason))  # the first reason given is the one that is told

    def freeze_value(self, value: Weight | Value, reason: str) -> None:
        """Nothing of this value may be cut."""
        if isinstance(value, Weight):
            for dim in range(len(value.shape)):
                self.freeze(self.labels_of(value, dim), reason)
        else:
            for sheet in sheets_of(value):
                self.freeze(sheet, reason)

    def mix(self, node: str, labels: Labels) -> None:
        """The node sums, averages or compares over these channels: what is dropped takes no part in it."""
        if bool((narrow(labels) >= 0).any()):
            self.mixes.setdefault(node, []).append(labels)

    def balance(self, rows: Labels) -> None:
        """Equally many of every row stay; shape ``(rows, columns)``."""
        if rows.shape[0] < 2 or not bool((rows >= 0).any()):
            return
        for r, row in enumerate(rows.tolist()):
            self.row_of.update({label: (len(self.balances), r) for label in row if label >= 0})
        self.balances.append(rows.contiguous())

    def vector(self, value: Value, dim: int, reason: str) -> Labels:
        """One label for every index of ``dim``: elements that share an index are joined. Shape ``(size,)``.

        Of several sheets, the one that varies along ``dim``; the others are frozen.
        """
        sheets = sorted(sheets_of(value), key=lambda s: not varies(s, dim))
        for other in sheets[1:]:
            self.freeze(other, reason)
        rows = narrow(sheets[0]).movedim(dim, 0)
        rows = rows.reshape(rows.shape[0], -1)
        if rows.shape[1] > 1:
            rows = rows.sort(dim=1, descending=True).values  # NONE goes last
            self.join(rows[:, :1].expand_as(rows), rows, reason)
        return rows[:, 0].expand(sheets[0].shape[dim])

    def value(self, weight: Weight) -> Value:
        """The labels of a parameter that is used as a value: one sheet for every dimension longer than 1."""
        sheets = []
        for dim, size in enumerate(weight.shape):
            if size > 1:
                shape = [-1 if d == dim else 1 for d in range(len(weight.shape))]
                sheets.append(self.labels_of(weight, dim).view(shape))
        if not sheets and weight.shape:  # a channel of its own
            sheets = [self.labels_of(weight, 0).view(weight.shape)]
        return bound(sheets, weight.shape)

    def free_dim(self, labels: Labels) -> int | None:
        """Of labels that were cut into balanced rows, the dimension along which a row lies; None when they are not."""
        cut = [d for d in range(labels.ndim) if varies(labels, d)]
        if len(cut) < 2:
            return None
        origin = labels[(0,) * labels.ndim].item()
        free = []
        for d in cut:
            beside = labels[tuple(1 if e == d else 0 for e in range(labels.ndim))].item()
            rows = self.row_of.get(int(origin)), self.row_of.get(int(beside))
            if rows[0] is not None and rows[0] == rows[1]:
                free.append(d)
        return free[0] if len(free) == 1 else None

    def along(self, labels: Labels) -> list[int]:
        """The dimensions that get shorter when channels go: of balanced rows the one along which they lie."""
        free = self.free_dim(labels)
        return [d for d in range(labels.ndim) if varies(labels, d)] if free is None else [free]

    def squared(self, labels: Labels, reason: str) -> Labels:
        """Balanced rows that must keep the very same places: joined, so that labels vary along one dimension only."""
        free = self.free_dim(labels)
        if free is None:
            return labels
        return self.joined(labels, [d for d in range(labels.ndim) if d != free], reason).expand(labels.shape)

    def joined(self, labels: Labels, dims: Sequence[int], reason: str) -> Labels:
        """Join the labels along ``dims`` and cut these to size 1."""
        labels = narrow(tidy(labels))
        for d in dims:
            if labels.shape[d] > 1:
                first = labels.narrow(d, 0, 1)
                self.join(first.expand_as(labels), labels, f"{reason} over the channels")
                labels = first
        return labels


def unlabelled(shape: Sequence[int], label: int = NONE) -> Labels:
    """Labels of a value without channels."""
    return torch.full((), label).expand(tuple(shape))


def varies(labels: Labels, dim: int) -> bool:
    """Whether the labels change along a dimension."""
    if labels.shape[dim] < 2 or labels.stride(dim) == 0:
        return False
    labels = narrow(labels)
    return bool((labels != labels.narrow(dim, 0, 1)).any())


def narrow(labels: Labels) -> Labels:
    """Cut expanded dimensions back to size 1."""
    for dim, step in enumerate(labels.stride()):
        if step == 0 and labels.shape[dim] > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def tidy(labels: Labels) -> Labels:
    """Expand dimensions along which nothing changes, so that what follows costs little."""
    shape = labels.shape
    labels = narrow(labels)
    for dim, size in enumerate(labels.shape):
        if size > 1 and bool((labels == labels.narrow(dim, 0, 1)).all()):
            labels = labels.narrow(dim, 0, 1)
    return labels.expand(shape)
