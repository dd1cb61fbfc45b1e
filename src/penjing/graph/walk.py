"""Walk the graph once, carrying for every value a tensor of labels: which channel each of its elements belongs to.

A *label* is a number that stands for one index of one dimension of one parameter. Where two labelled channels meet
(added, normalized together, multiplied by a weight) their labels are *joined*; channels whose labels are joined live or
die together. Numbers below zero mark elements that belong to no channel. What must not be cut is *frozen*, with the reason.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

NONE = -2  # the label of an element that belongs to no channel
INPUT = -1  # the same, of the model's input


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer of the model, before it is clear what its dimensions mean."""

    name: str
    shape: tuple[int, ...]


Labels = Tensor  # int64, of the value's own shape; dimensions along which nothing changes are expanded, at no cost
Rule = Callable[..., Any]  # (ledger, node, *args, **kwargs) -> labels of the output


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

    def labels_of(self, weight: Weight, dim: int) -> Labels:
        """One label for every index of a dimension; the same at every call. Shape ``(size,)``."""
        size = weight.shape[dim]
        if (weight.name, dim) not in self.first:
            self.first[weight.name, dim] = self.count
            self.shapes[weight.name] = weight.shape
            self.count += size
        start = self.first[weight.name, dim]
        return torch.arange(start, start + size)

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

    def vector(self, labels: Labels, dim: int, reason: str) -> Labels:
        """One label for every index of ``dim``: elements that share an index are joined. Shape ``(size,)``."""
        size = labels.shape[dim]
        rows = narrow(labels).movedim(dim, 0)
        rows = rows.reshape(rows.shape[0], -1)
        if rows.shape[1] > 1:
            rows = rows.sort(dim=1, descending=True).values  # NONE goes last
            self.join(rows[:, :1].expand_as(rows), rows, reason)
        return rows[:, 0].expand(size)

    def value(self, weight: Weight) -> Labels:
        """The labels of a parameter that is used as a value: known when only one of its dimensions is longer than 1."""
        long = [d for d, n in enumerate(weight.shape) if n > 1]
        if len(long) != 1:
            self.freeze_weight(weight, "used as a value with several dimensions")
            return unlabelled(weight.shape)
        shape = [1] * len(weight.shape)
        shape[long[0]] = -1
        return self.labels_of(weight, long[0]).view(shape)

    def freeze_weight(self, weight: Weight, reason: str) -> None:
        """Nothing of this parameter may be cut."""
        for dim in range(len(weight.shape)):
            self.freeze(self.labels_of(weight, dim), reason)


class Walk(fx.Interpreter):
    """Run the graph on labels: ``rules`` says for each operation what comes out; what it does not know, freezes.

    ``constants`` are the tensors of the graph that the model does not own: nothing can be cut from them.
    """

    def __init__(
        self, module: fx.GraphModule, rules: dict[Any, Rule], ledger: Ledger, constants: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(module)
        self.rules, self.ledger, self.constants = rules, ledger, constants

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 - fx's signature
        value = operator.attrgetter(target)(self.module)
        if not isinstance(value, Tensor):  # a part of the graph that runs in a mode of its own
            return value
        return unlabelled(value.shape) if target in self.constants else Weight(str(target), tuple(value.shape))

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("placeholder", "get_attr"):
            return super().run_node(n)
        if n.op == "call_function" and not n.users:  # an assertion: what nobody reads decides nothing
            return None
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        labelled: list[Labels | Weight] = []
        fx.node.map_aggregate((args, kwargs), lambda a: labelled.append(a) if isinstance(a, Tensor | Weight) else None)
        if n.op == "output":
            for x in labelled:
                if isinstance(x, Tensor):
                    self.ledger.freeze(x, "model output")
                else:
                    self.ledger.freeze_weight(x, "model output")
            return args[0]
        about_sizes = isinstance(n.meta.get("val"), torch.SymInt | torch.SymBool | int)
        if n.target is operator.getitem or about_sizes:
            return n.target(*args, **kwargs)  # type: ignore[operator]
        if not labelled:  # a number, or a constant made on the spot: its values are no labels
            return fx.node.map_aggregate(n.target(*args, **kwargs), _unlabelled)  # type: ignore[operator]
        rule = self.rules.get(n.target)
        if rule is None:
            return self._unknown(n, labelled)
        if isinstance(args[0], Weight):
            args = (self.ledger.value(args[0]), *args[1:])
        return rule(self.ledger, n, *args, **kwargs)

    def _unknown(self, node: fx.Node, labelled: list[Labels | Weight]) -> Any:
        for x in labelled:
            if isinstance(x, Tensor):
                self.ledger.freeze(x, f"{node.target} has no rule")
            else:
                self.ledger.freeze_weight(x, f"{node.target} has no rule")
        return fx.node.map_aggregate(node.meta["val"], _unlabelled)


def _unlabelled(value: Any) -> Any:
    return unlabelled(shape_of(value)) if isinstance(value, Tensor) else value


def unlabelled(shape: Sequence[int], label: int = NONE) -> Labels:
    """Labels of a value without channels."""
    return torch.full((), label).expand(tuple(shape))


def shape_of(value: Tensor) -> tuple[int, ...]:
    """The shape that a traced value had with the example's batch size."""
    return tuple(int(s.node.hint) if isinstance(s, torch.SymInt) else int(s) for s in value.shape)


def out_shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's (first) output."""
    value = node.meta["val"]
    return shape_of(value[0] if isinstance(value, tuple | list) else value)


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
