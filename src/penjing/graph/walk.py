"""Walk the graph once, carrying for every value a tensor of labels: which channel each of its elements belongs to.

A *label* is a number that stands for one index of one dimension of one parameter. Where two labelled channels meet
(added, normalized together, multiplied by a weight) their labels are *joined*; channels whose labels are joined live or
die together. Numbers below zero mark elements that belong to no channel. What must not be cut is *frozen*, with the reason.
"""

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from penjing.graph.labels import Ledger, Sheets, Weight, sheets_of, unlabelled

Rule = Callable[..., Any]  # (ledger, node, *args, **kwargs) -> labels of the output


class Walk(fx.Interpreter):
    """Run the graph on labels: ``rules`` says for each operation what comes out; what it does not know, freezes.

    ``constants`` are the tensors of the graph that the model does not own: nothing can be cut from them.
    """

    def __init__(
        self, module: fx.GraphModule, rules: Mapping[Any, Rule], ledger: Ledger, constants: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.rules, self.ledger, self.constants = rules, ledger, constants

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 - fx's signature
        value = operator.attrgetter(target)(self.module)
        if not isinstance(value, Tensor):  # a part of the graph that runs in a mode of its own
            return value
        return unlabelled(value.shape) if target in self.constants else Weight(str(target), tuple(value.shape))

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n) if n.op in ("placeholder", "get_attr") else self._computed(n)
        self.ledger.values[n.name] = value
        return value

    def _computed(self, n: fx.Node) -> Any:
        if n.op == "call_function" and not n.users:  # an assertion: what nobody reads decides nothing
            return None
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        labelled: list[Any] = []
        fx.node.map_aggregate((args, kwargs), lambda a: labelled.append(a) if _is_value(a) else None)
        if n.op == "output":
            for x in labelled:
                self.ledger.freeze_value(x, "model output")
            return args[0]
        about_sizes = isinstance(n.meta.get("val"), torch.SymInt | torch.SymBool | int)
        if n.target is operator.getitem or about_sizes:
            return n.target(*(sheets_of(a)[0] if isinstance(a, Sheets) else a for a in args), **kwargs)  # type: ignore[operator]
        if not labelled:  # a number, or a constant made on the spot: its values are no labels
            return fx.node.map_aggregate(n.target(*args, **kwargs), _unlabelled)  # type: ignore[operator]
        rule = self.rules.get(n.target)
        if rule is None:
            return self._unknown(n, labelled)
        if isinstance(args[0], Weight):
            args = (self.ledger.value(args[0]), *args[1:])
        return rule(self.ledger, n, *args, **kwargs)

    def _unknown(self, node: fx.Node, labelled: list[Any]) -> Any:
        for x in labelled:
            self.ledger.freeze_value(x, f"{node.target} has no rule")
        return fx.node.map_aggregate(node.meta["val"], _unlabelled)


def _is_value(a: Any) -> bool:
    return isinstance(a, Tensor | Weight | Sheets)


def _unlabelled(value: Any) -> Any:
    return unlabelled(shape_of(value)) if isinstance(value, Tensor) else value


def shape_of(value: Tensor) -> tuple[int, ...]:
    """The shape that a traced value had with the example's batch size."""
    return tuple(int(s.node.hint) if isinstance(s, torch.SymInt) else int(s) for s in value.shape)


def out_shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's (first) output."""
    value = node.meta["val"]
    return shape_of(value[0] if isinstance(value, tuple | list) else value)


def behind(*ends: fx.Node, until: Collection[fx.Node] = ()) -> set[fx.Node]:
    """These nodes and all that they are computed from, up to those of ``until``, which are left out."""
    found, waiting = set[fx.Node](), list(ends)
    while waiting:
        node = waiting.pop()
        if node not in found and node not in until:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def arguments(node: fx.Node) -> dict[str, Any]:
    """What an operation is given, by the names of its schema, with its defaults."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {a.name: a.default_value for a in schema if a.has_default_value()}
    return {**given, **dict(zip((a.name for a in schema), node.args, strict=False)), **node.kwargs}


def each(value: int | Iterable[int], rank: int) -> list[int]:
    """What an operation is given for all of its ``rank`` dims, as one number or as a list, as one number for each."""
    values = [value] if isinstance(value, int) else [int(v) for v in value]
    return values * rank if len(values) == 1 else values
