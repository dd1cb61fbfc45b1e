"""Where the grids go: read the graph and the target's profile, return plain data, change nothing."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from penjing.quant.targets import CONVOLUTIONS, PASSING, WEIGHTED, Target

aten = torch.ops.aten


@dataclass(frozen=True)
class Placement:
    """Which weights and values get a grid.

    Attributes:
        weights: ``{weight node name: dim of its output channels}``.
        values: ``{value node name: name of the value whose grid it has}``; most have their own.
    """

    weights: dict[str, int]
    values: dict[str, str]


def place(module: fx.GraphModule, target: Target) -> Placement:
    """Give every weighted operation int8 weights and inputs, and what lies between them the grids its kernels need."""
    nodes = [n for n in module.graph.nodes if n.op in ("placeholder", "call_function") and _is_float(n)]
    weights = {
        n.args[1].name: WEIGHTED[n.target]
        for n in nodes
        if n.target in WEIGHTED and isinstance(n.args[1], fx.Node) and n.args[1].op == "get_attr"
    }
    values: dict[str, str] = {}
    for n in nodes:
        if _absorbed(n, target) or not (_read_as_integer(n, target) or _ends_convolution(n, target)):
            continue
        source = n.args[0] if n.target in PASSING else None
        values[n.name] = values.get(source.name, n.name) if isinstance(source, fx.Node) else n.name
    if target.shared_concat:
        _share(module, values)
    return Placement(weights, values)


def _share(module: fx.GraphModule, values: dict[str, str]) -> None:
    """Concatenated values take the grid of the concatenation, which sees the range of all."""
    for cat in reversed([n for n in module.graph.nodes if n.target is aten.cat.default]):
        for part in cat.all_input_nodes:
            if part.name in values and cat.name in values:
                old, new = values[part.name], values[cat.name]
                values.update({name: new for name, grid in values.items() if grid == old})


def _absorbed(node: fx.Node, target: Target) -> bool:
    """Whether the node's output never exists by itself: the next operation runs inside this one."""
    if len(node.users) != 1 or not (node.target in WEIGHTED or node.target in target.integer):
        return False
    (reader,) = node.users
    return reader.target in target.fused


def _read_as_integer(node: fx.Node, target: Target) -> bool:
    return any(reader.target in WEIGHTED or reader.target in target.integer for reader in _readers(node))


def _ends_convolution(node: fx.Node, target: Target) -> bool:
    """ONNX Runtime runs a convolution in int8 only when its output has a grid; OpenVINO takes the same file."""
    if node.target in target.fused and len(node.all_input_nodes[0].users) == 1:
        node = node.all_input_nodes[0]
    return node.target in CONVOLUTIONS


def _readers(node: fx.Node) -> list[fx.Node]:
    """Who reads the value, through operations that only move it."""
    return list(_walk_readers(node))


def _walk_readers(node: fx.Node) -> Iterator[fx.Node]:
    for reader in node.users:
        if reader.target in PASSING or reader.target is operator.getitem:
            yield from _walk_readers(reader)
        elif reader.op != "output":
            yield reader


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
