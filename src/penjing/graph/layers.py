"""The layers with weights: where they are in the graph, which dimensions of a weight meet what, and what they cost."""

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from penjing.graph.capture import Graph
from penjing.graph.walk import arguments, shape_of

aten = torch.ops.aten


CONVOLUTIONS: frozenset[Any] = frozenset(
    {getattr(aten, f"conv{n}d").default for n in (1, 2, 3)}
    | {getattr(aten, f"conv{n}d").padding for n in (1, 2, 3)}  # padding="same"
)
TRANSPOSED: frozenset[Any] = frozenset(
    {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
)
LINEAR: Any = aten.linear.default
KINDS: dict[Any, str] = {
    **dict.fromkeys(CONVOLUTIONS, "conv"),
    **dict.fromkeys(TRANSPOSED, "transposed conv"),
    LINEAR: "linear",
}


@dataclass(frozen=True)
class Weighted:
    """A convolution or linear layer as a node of the graph.

    Attributes:
        weight: The name of its weight.
        shape: ``(O, I / groups, ...)``, of a transposed convolution ``(I, O / groups, ...)``.
    """

    node: fx.Node
    weight: str
    shape: tuple[int, ...]
    kind: str
    groups: int

    @property
    def reads(self) -> int:
        """The dimension of the weight that meets the input's channels."""
        return 0 if self.kind == "transposed conv" else 1

    @property
    def writes(self) -> int:
        """The dimension of the weight that gives the output's channels."""
        return 1 - self.reads

    @property
    def place(self) -> int:
        """The dimension of input and output that channels lie along."""
        return -1 if self.kind == "linear" else 1

    @property
    def widths(self) -> tuple[int, int]:
        """How many channels go in and come out."""
        i, o = self.shape[self.reads], self.shape[self.writes]
        return (i, o * self.groups) if self.kind == "transposed conv" else (i * self.groups, o)


@dataclass(frozen=True)
class Layer:
    """A layer with weights.

    Attributes:
        name: Of its module, or of its weight where that belongs to none.
        widths: Inputs and outputs.
        macs: Multiply-accumulates for one sample.
        weight: The name of its weight.
        shape: Of its weight.
    """

    name: str
    kind: str
    widths: tuple[int, int]
    kernel: str
    groups: int
    macs: int
    weight: str
    shape: tuple[int, ...]


def weighted(graph: Graph) -> list[Weighted]:
    """The convolutions and linear layers whose weight is the model's own, in the order they run."""
    return [_weighted(graph, n) for n in graph.module.graph.nodes if n.target in KINDS and _weight(n).op == "get_attr"]


def layers(graph: Graph) -> list[Layer]:
    """The convolutions and linear layers with what they cost, in the order they run; those whose weight is computed too."""
    every = [_weighted(graph, n) for n in graph.module.graph.nodes if n.target in KINDS]
    batch = next((x.shape[0] for x in graph.example if x.ndim), 1)
    return [_layer(w, batch) for w in every]


def macs(graph: Graph) -> int:
    """Multiply-accumulates of all convolutions and linear layers, for one sample."""
    return sum(layer.macs for layer in layers(graph))


def macs_without(layers: Iterable[Layer], lost: Mapping[tuple[str, int], int]) -> int:
    """Multiply-accumulates after a cut, without cutting or reading the model again.

    A layer's cost is in proportion to both dimensions of its weight. The number of positions is taken to stay, which fails
    only where channels become positions on the way.

    Args:
        lost: ``{(parameter, dim): indices that go}``.
    """
    total = 0
    for layer in layers:
        sizes = layer.shape[:2]
        kept = [n - lost.get((layer.weight, d), 0) for d, n in enumerate(sizes)]
        total += layer.macs // math.prod(sizes) * math.prod(kept)
    return total


def _weighted(graph: Graph, node: fx.Node) -> Weighted:
    weight = _weight(node)
    groups = arguments(node).get("groups", 1)
    if isinstance(groups, fx.Node):  # as many as there are samples, where each has its own weights
        groups = groups.meta["val"].node.hint if isinstance(groups.meta["val"], torch.SymInt) else groups.meta["val"]
    assert isinstance(groups, int)
    shape = _shape(graph, weight) if weight.op == "get_attr" else shape_of(weight.meta["val"])
    return Weighted(node, _made_of(graph, weight, shape), shape, KINDS[node.target], groups)


def _made_of(graph: Graph, weight: fx.Node, shape: tuple[int, ...]) -> str:
    """The parameter that a weight is, or is computed from (standardized, say); where none has its shape, the weight itself."""
    todo, seen = [weight], set[fx.Node]()
    for node in todo:
        if node.op == "get_attr" and _shape(graph, node) == shape:
            return str(node.target)
        todo += [n for n in node.all_input_nodes if n not in seen]
        seen.update(node.all_input_nodes)
    return weight.name


def _shape(graph: Graph, node: fx.Node) -> tuple[int, ...]:
    return tuple(operator.attrgetter(str(node.target))(graph.module).shape)


def _weight(node: fx.Node) -> fx.Node:
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    return weight


def layer_name(weight: str) -> str:
    """What a layer is called, by its weight: as its module, also where torch computes that weight; or as the weight."""
    owner = weight.partition(".parametrizations.")[0] if ".parametrizations." in weight else weight.rpartition(".")[0]
    return owner or weight


def _layer(layer: Weighted, batch: int) -> Layer:
    source = layer.node.args[0] if layer.kind == "transposed conv" else layer.node
    assert isinstance(source, fx.Node)
    if layer.kind != "linear" and source.meta["val"].ndim < len(layer.shape):
        batch = 1  # a sample alone
    # Every value of the output sums over the input's channels; of a transposed convolution every input value is spread.
    work = math.prod(shape_of(source.meta["val"])) * math.prod(layer.shape[1:]) // batch
    kernel = "x".join(str(k) for k in layer.shape[2:])
    name = layer_name(layer.weight)
    return Layer(name, layer.kind, layer.widths, kernel, layer.groups, work, layer.weight, layer.shape)
