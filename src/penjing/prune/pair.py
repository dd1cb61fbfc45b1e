"""A network and what a plan makes of it, side by side: the same operations in the same order, on fewer channels.

Residual blocks that the plan drops have no counterpart; the sum that ended one has its shortcut's.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from penjing.errors import PlanError
from penjing.graph import Graph, capture, own_tensors
from penjing.plan import ChannelPlan, Keep
from penjing.prune.blocks import Block, find_blocks, named
from penjing.score.products import Product, products

_BELONG = "give the network that prune_channels made of this model with this plan"


@dataclass(frozen=True)
class Pair:
    """The graphs of a network and of what a plan makes of it.

    Attributes:
        keep: What the plan keeps of every tensor that the graphs read, by each of its names.
        twin: The pruned network's node for each of the original's that has one.
        layers: By the original's node: the layer in both, where it is a matrix product of its own.
    """

    dense: Graph
    small: Graph
    keep: Keep
    twin: Mapping[fx.Node, fx.Node]
    layers: Mapping[fx.Node, tuple[Product, Product]]

    @classmethod
    def of(cls, model: nn.Module, small: nn.Module, plan: ChannelPlan, example: tuple[Tensor, ...]) -> "Pair":
        """Read both and lay them side by side.

        Raises:
            PlanError: ``small`` is not what ``plan`` makes of ``model``.
            ModelError: A network cannot be read.
        """
        dense, pruned = capture(model, example), capture(small, example)
        gone = _dropped(dense, plan.blocks)
        twin = _twins(dense, pruned, gone)
        keep = _by_every_name(model, plan)
        for name in {str(n.target) for n in twin if n.op == "get_attr"} - dense.constants:
            _check_shape(name, part_of(dense, name), part_of(pruned, name), keep.get(name, {}))
        ours = products(pruned)
        layers = {n: (p, ours[twin[n]]) for n, p in products(dense).items() if twin.get(n) in ours}
        return cls(dense, pruned, keep, twin, layers)

    def kept(self, product: Product, y: Tensor) -> Tensor:
        """Of the original's value with the channels of a layer's output, those that stay."""
        index = self._written(product, y)
        if index is None:
            return y
        return y.index_select(1 if product.kernel else y.ndim - 1, torch.tensor(index, device=y.device))

    def _written(self, product: Product, y: Tensor) -> Sequence[int] | None:
        """Which channels of a layer's output stay; None where all do."""
        kept = self.keep.get(product.weight, {})
        if not (product.transposed and product.groups > 1):
            return kept.get(product.writes)
        if kept.keys().isdisjoint((0, 1)):
            return None
        each = y.shape[1] // product.groups  # dim 1 of the weight holds the outputs of one group, the same for all
        depthwise = product.columns == product.taps
        groups = kept.get(0, range(product.groups)) if depthwise else range(product.groups)
        return [g * each + i for g in groups for i in kept.get(1, range(each))]


def _dropped(graph: Graph, names: Sequence[str]) -> dict[fx.Node, Block]:
    """The blocks that go, by the sum that ends each."""
    nodes = {n.name: n for n in graph.module.graph.nodes}
    return {nodes[b.add]: b for b in named(find_blocks(graph), names)} if names else {}


def _twins(dense: Graph, small: Graph, gone: Mapping[fx.Node, Block]) -> dict[fx.Node, fx.Node]:
    a, b = _needed(dense, gone), _needed(small, {})
    for x, y in zip(a, b, strict=False):
        if x.op != y.op or (x.op in ("call_function", "get_attr") and _kind(x) != _kind(y)):
            raise PlanError(f"the pruned model computes {y.target} where the original computes {x.target}; {_BELONG}")
    if len(a) != len(b):
        raise PlanError(f"the pruned model computes {len(b)} operations, the original {len(a)}; {_BELONG}")
    twin = dict(zip(a, b, strict=True))
    for add in dense.module.graph.nodes:
        if add in gone:
            twin[add] = twin[_shortcut(add, gone)]
    return twin


def _kind(node: fx.Node) -> Any:
    """What a node does; parts of unequal sizes were equal before some channels went."""
    aten = torch.ops.aten
    parted = (aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default)
    return "split" if node.target in parted else node.target


def _shortcut(add: fx.Node, gone: Mapping[fx.Node, Block]) -> fx.Node:
    value = add.args[gone[add].shortcut]
    assert isinstance(value, fx.Node)
    return value


def _needed(graph: Graph, gone: Mapping[fx.Node, Block]) -> list[fx.Node]:
    """What is computed when these sums hand on their shortcuts; without tensors that nothing reads."""
    found: set[fx.Node] = set()
    for node in reversed(graph.module.graph.nodes):
        if node in found or (not node.users and node.op != "get_attr") or node.op == "placeholder":
            found.update([_shortcut(node, gone)] if node in gone else [node, *node.all_input_nodes])
    return [n for n in graph.module.graph.nodes if n in found and n not in gone]


def _by_every_name(model: nn.Module, plan: ChannelPlan) -> Keep:
    """The plan with an entry for all names of a tensor that has several."""
    own = own_tensors(model)
    keep = {id(own[name]): dims for name, dims in plan.keep.items() if name in own}
    return {name: keep[id(value)] for name, value in own.items() if id(value) in keep}


def _check_shape(name: str, was: Any, now: Any, kept: Mapping[int, tuple[int, ...]]) -> None:
    if not isinstance(was, Tensor) or not isinstance(now, Tensor):
        return
    expected = tuple(len(kept[d]) if d in kept else n for d, n in enumerate(was.shape))
    if expected != tuple(now.shape):
        raise PlanError(f"{name} of the pruned model has shape {tuple(now.shape)}, not {expected}; {_BELONG}")


def part_of(graph: Graph, name: str) -> Any:
    """What a graph holds under a name: a tensor, or a part that runs in a mode of its own."""
    return operator.attrgetter(name)(graph.module)


def put_back(graph: Graph, module: nn.Module) -> None:
    """Copy the tensors that a graph reads into the module that it was captured from, in place."""
    own = own_tensors(module)
    with torch.no_grad():
        for name in {str(n.target) for n in graph.module.graph.nodes if n.op == "get_attr"} & own.keys():
            own[name].copy_(part_of(graph, name))
