"""What a network costs without running it: parameters, multiply-accumulates, and the sizes of its layers."""

import math
import operator
from dataclasses import dataclass

import torch
from torch import fx, nn

from penjing.graph import Graph
from penjing.graph.walk import shape_of

aten = torch.ops.aten
_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
_TRANSPOSED = {getattr(aten, f"conv_transpose{n}d").default for n in (1,)} | {
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
}
_KINDS = {
    **dict.fromkeys(_CONVOLUTIONS, "conv"),
    **dict.fromkeys(_TRANSPOSED, "transposed conv"),
    aten.linear.default: "linear",
}


@dataclass(frozen=True)
class Layer:
    """A layer with weights.

    Attributes:
        name: Of its module, or of its weight where that belongs to none.
        widths: Inputs and outputs.
        macs: Multiply-accumulates for one sample.
    """

    name: str
    kind: str
    widths: tuple[int, int]
    kernel: str
    groups: int
    macs: int


def parameters(model: nn.Module) -> int:
    """How many numbers are trained, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def layers(graph: Graph) -> list[Layer]:
    """The convolutions and linear layers, in the order they run."""
    batch = graph.example[0].shape[0]
    return [_layer(graph, n, batch) for n in graph.module.graph.nodes if n.target in _KINDS and _weight(n).op == "get_attr"]


def macs(graph: Graph) -> int:
    """Multiply-accumulates of all convolutions and linear layers, for one sample."""
    return sum(layer.macs for layer in layers(graph))


def _layer(graph: Graph, node: fx.Node, batch: int) -> Layer:
    name = str(_weight(node).target)
    shape = tuple(operator.attrgetter(name)(graph.module).shape)
    out = shape_of(node.meta["val"])
    groups = _groups(node)
    if node.target in _TRANSPOSED:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        work, widths = math.prod(shape_of(source.meta["val"])) * math.prod(shape[1:]), (shape[0], shape[1] * groups)
    else:
        work, widths = math.prod(out) * math.prod(shape[1:]), (shape[1] * groups, shape[0])
    kernel = "x".join(str(k) for k in shape[2:])
    return Layer(name.removesuffix(".weight"), _KINDS[node.target], widths, kernel, groups, work // batch)


def _weight(node: fx.Node) -> fx.Node:
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    return weight


def _groups(node: fx.Node) -> int:
    place = 6 if node.target in _CONVOLUTIONS else 6 if node.target in _TRANSPOSED else len(node.args)
    groups = node.args[place] if len(node.args) > place else 1
    assert isinstance(groups, int)
    return groups
