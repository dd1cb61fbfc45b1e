"""Whole residual blocks as groups that can go: what is added to a shortcut is left out, and the shortcut stays.

Dropping a block saves its launches and its memory traffic too, which thinner layers do not (Wang & Wu 2023,
arXiv:2303.14177).
"""

import copy
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from penjing.errors import DataError, NotEquivalent, PlanError, RecipeError
from penjing.graph import Graph, as_inputs, capture, check_weights
from penjing.graph.kept import copied
from penjing.graph.walk import behind
from penjing.plan import ChannelPlan
from penjing.prune.rewrite import with_forward
from penjing.prune.verify import TOLERANCE, compared, doubled
from penjing.task import inputs_and_target


@dataclass(frozen=True)
class Block:
    """A branch that is added to what it was computed from.

    Attributes:
        name: What its parameters' names begin with, or the first of them.
        add: The node that adds it to its shortcut.
        shortcut: Which argument of ``add`` stays.
        weights: Parameters and buffers that nothing else reads.
    """

    name: str
    add: str
    shortcut: int
    weights: tuple[str, ...]


def find_blocks(graph: Graph) -> list[Block]:
    """The residual blocks with an identity shortcut, which is as large as the sum, in the order the model computes."""
    found = []
    for node in graph.module.graph.nodes:
        if node.target is torch.ops.aten.add.Tensor and len(node.all_input_nodes) == 2 and not node.kwargs:
            a, b = node.args
            for shortcut, branch in ((a, b), (b, a)):
                weights = _own_weights(node, shortcut, branch) if _alike(shortcut, node) else ()
                if weights:
                    found.append((node, int(shortcut is b), weights))
    names = [_common(weights) for _, _, weights in found]
    twice = Counter(names)
    return [
        Block(name if name and twice[name] == 1 else weights[0], node.name, shortcut, weights)
        for name, (node, shortcut, weights) in zip(names, found, strict=True)
    ]


def _alike(a: fx.Node, b: fx.Node) -> bool:
    """Whether two values have the same shape; an unknown batch is the same as itself."""
    values = [node.meta.get("val") if isinstance(node, fx.Node) else None for node in (a, b)]
    one, two = ([str(n) for n in v.shape] if isinstance(v, Tensor) else None for v in values)
    return one is not None and one == two


def named(blocks: Sequence[Block], names: Sequence[str]) -> list[Block]:
    """The blocks of these names, or first weights: where one of several in a module has gone, the other's name changes.

    Raises:
        PlanError: There is no such block; says which there are.
    """
    held = {b.weights[0]: b for b in blocks} | {b.name: b for b in blocks}
    if unknown := [name for name in names if name not in held]:
        there = sorted(b.name for b in blocks)
        raise PlanError(f"the plan drops the block {unknown[0]!r}, which the model does not have; it has {there}")
    return [held[name] for name in names]


def _own_weights(add: fx.Node, shortcut: fx.Node, branch: fx.Node) -> tuple[str, ...]:
    """What only the branch between ``shortcut`` and ``add`` reads; empty when it is no such branch."""
    whole = behind(branch)
    inside = [n for n in whole - behind(shortcut) if n.op != "placeholder"]
    computed = {n for n in inside if n.op != "get_attr"}
    if shortcut not in whole or any(u not in computed and u is not add for n in computed for u in n.users):
        return ()
    order = {n: i for i, n in enumerate(add.graph.nodes)}
    own = [n for n in inside if n.op == "get_attr" and all(u in computed for u in n.users)]
    return tuple(dict.fromkeys(str(n.target) for n in sorted(own, key=lambda n: (min(order[u] for u in n.users), order[n]))))


def _common(names: Sequence[str]) -> str:
    paths = [PurePosixPath(*n.split(".")[:-1]) for n in names]
    shared = [p for p in [paths[0], *paths[0].parents] if all(other.is_relative_to(p) for other in paths)]
    return ".".join(shared[0].parts)


def block_effects(graph: Graph, blocks: Sequence[Block], data: Iterable[Any]) -> dict[str, float]:
    """What leaving each block out does to the output: the norm of the change over the norm of the output.

    Args:
        data: Batches of inputs, or of ``(inputs, target)``; labels are not looked at.

    Raises:
        DataError: There is no batch.
    """
    changed, total, batches = dict.fromkeys((b.name for b in blocks), 0.0), 0.0, 0
    with torch.no_grad():
        for batch in data:
            given, _ = inputs_and_target(batch, len(graph.example))
            inputs = tuple(x.to(like.device) for x, like in zip(given, graph.example, strict=True))
            whole = _leaves(fx.Interpreter(graph.module).run(*inputs))
            total += sum(float(x.double().square().sum()) for x in whole)
            batches += 1
            for block in blocks:
                left = _leaves(Without(graph.module, [block]).run(*inputs))
                changed[block.name] += sum(float((a - b).double().square().sum()) for a, b in zip(left, whole, strict=True))
    if not batches:
        raise DataError("data is empty: it yields no batch; give a few hundred images to judge blocks by")
    return {b.name: math.sqrt(changed[b.name] / max(total, 1e-30)) for b in blocks}


def plan_blocks(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    count: int,
    data: Iterable[Any],
) -> ChannelPlan:
    """Choose ``count`` residual blocks to leave out, one by one: each time the one whose absence changes the output least.

    Args:
        example: Inputs as the model takes them; only their shapes matter.
        count: How many blocks go.
        data: Batches of inputs, or of ``(inputs, target)``; labels are not looked at.

    Raises:
        RecipeError: The model has fewer blocks.
        DataError: There is no data.
    """
    check_weights(model)
    graph = capture(model, as_inputs(example))
    names = [b.name for b in find_blocks(graph)]
    if not 1 <= count <= len(names):
        raise RecipeError(f"count is {count}; the model has {len(names)} residual blocks with an identity shortcut: {names}")
    batches, gone = list(data), list[str]()
    for _ in range(count):
        blocks = find_blocks(graph)
        effects = block_effects(graph, blocks, batches)
        if not effects:
            raise RecipeError(f"count is {count}; after {gone}, which held others inside, the model has no residual block left")
        least = min(blocks, key=lambda block: effects[block.name])
        gone.append(least.name if least.name in names else least.weights[0])  # the last of several in one module
        graph = capture(drop_blocks(model, gone, example), as_inputs(example))
    return ChannelPlan({}, tuple(gone))


def drop_blocks(model: nn.Module, names: Sequence[str], example: Tensor | Sequence[Tensor]) -> nn.Module:
    """A copy of ``model`` without these residual blocks, its forward the exported graph that leaves them out.

    Raises:
        PlanError: There is no such block; says which there are.
        NotEquivalent: The copy computes something else.
    """
    graph = capture(model, as_inputs(example))
    gone = named(find_blocks(graph), names)
    smaller, places = copied(graph.module.graph)
    by_name = {n.name: n for n in graph.module.graph.nodes}
    for block in gone:
        add = places[by_name[block.add]]
        kept = add.args[block.shortcut]
        assert isinstance(kept, fx.Node)
        add.replace_all_uses_with(kept)
    smaller.eliminate_dead_code()
    small = with_forward(_without(copy.deepcopy(model), {w for b in gone for w in b.weights}), graph.module, smaller)
    error, _, _ = compared(Without(doubled(graph.module), gone), small, graph.example)
    if error > TOLERANCE:
        raise NotEquivalent(f"the model without {[b.name for b in gone]} differs from what it should be by {error:.1e}")
    return small


class Without(fx.Interpreter):
    """Run a graph with some blocks adding nothing."""

    def __init__(self, module: fx.GraphModule, blocks: Sequence[Block]) -> None:
        super().__init__(module)
        self.shortcuts = {b.add: b.shortcut for b in blocks}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.shortcuts:
            return self.fetch_args_kwargs_from_env(n)[0][self.shortcuts[n.name]]
        return super().run_node(n)


def _without(small: nn.Module, names: set[str]) -> nn.Module:
    """Take out the parameters that nothing reads any more, and the counters of norms that have gone with them."""
    for path, _, leaf in (name.rpartition(".") for name in names):
        owner = small.get_submodule(path)
        for held in (owner._parameters, owner._buffers):
            if leaf in held:
                held[leaf] = None
        if "num_batches_tracked" in owner._buffers and owner._buffers.get("running_mean") is None:
            owner._buffers["num_batches_tracked"] = None
            vars(owner)["track_running_stats"] = False  # else it wants a counter whenever a state is loaded
    return small


def _leaves(output: Any) -> list[Tensor]:
    return [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]
