"""For models with sizes written into ``forward``: give the pruned copy the exported graph, sizes rewritten, as its forward.

The copy keeps its class, modules, parameter names and modes: dropout, batch norm and torch's own attention ask the very modules
they belong to whether they are in training, and how. What is lost is Python: hooks of inner modules, and branches that only
training takes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from penjing.errors import ModelError, NotEquivalent
from penjing.graph import Channels, Graph
from penjing.graph.kept import copied
from penjing.graph.labels import Labels, Sheets, Weight, narrow, sheets_of, varies
from penjing.plan import ChannelPlan

aten = torch.ops.aten
MODES: dict[Any, int] = {  # where an operation says whether it is in training
    aten.batch_norm.default: 5,
    aten.instance_norm.default: 5,
    aten.dropout.default: 2,
    aten.feature_dropout.default: 2,
    aten.alpha_dropout.default: 2,
    aten.feature_alpha_dropout.default: 2,
}


def with_rewritten_forward(small: nn.Module, graph: Graph, channels: Channels, plan: ChannelPlan) -> nn.Module:
    """``small``, a touched copy of the model that ``graph`` was read from, with a forward that fits.

    The module is changed: its class becomes a subclass of its own, whose ``forward`` is the graph.

    Raises:
        NotEquivalent: The graph is of one batch size only.
    """
    if not graph.dynamic:
        raise NotEquivalent(
            f"the forward of {type(small).__name__} has sizes written into it and cannot be rewritten, since it reads for one "
            "batch size only, as len(x) or int(x.shape[0]) make it; write x.shape[0], or leave these layers whole with exclude"
        )
    module = graph.module
    rewritten, places = copied(module.graph)
    sizes = Sizes(channels, plan)
    for node in module.graph.nodes:
        if node.op == "call_function":
            sizes.rewrite(node, places[node])
    return with_forward(small, module, rewritten)


def drop_assertions(graph: fx.Graph) -> None:
    """Take out what nobody reads, in place: torch asserts the precision and the sizes that the original has now."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)


def _ask_for_the_mode(graph: fx.Graph, node: fx.Node, modules: Mapping[str, nn.Module]) -> None:
    if node.op != "call_function":
        return
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    owner = str(stack[-1][0]) if stack else ""
    place = MODES.get(node.target)
    if place is not None and len(node.args) > place and node.args[place] is False:
        if node.target is aten.batch_norm.default and _called(graph, node, modules):
            return
        with graph.inserting_before(node):
            mode = graph.create_node("get_attr", f"{owner}.training" if owner else "training")
        _put(node, place, mode)
    elif isinstance(modules.get(owner), nn.MultiheadAttention):
        _drop_as_asked(graph, node, owner)


def _called(graph: fx.Graph, node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Put the call of a batch norm in the place of its operation, if it is one's: its momentum may be a count of batches."""
    tensors = [n for n in node.args[1:5] if isinstance(n, fx.Node)]
    owner = str(tensors[-1].target).rpartition(".")[0] if tensors else ""
    if {str(n.target).rpartition(".")[0] for n in tensors} != {owner} or not isinstance(modules.get(owner), _BatchNorm):
        return False
    with graph.inserting_before(node):
        layer = graph.create_node("get_attr", owner)
        node.replace_all_uses_with(graph.call_function(normed, (layer, node.args[0])))
    for gone in (node, *tensors):
        if not gone.users:
            graph.erase_node(gone)
    return True


def normed(layer: _BatchNorm, x: Tensor) -> Tensor:
    """What a batch norm makes of ``x``; not what a subclass does besides, which is in the graph."""
    out: Tensor = _BatchNorm.forward(layer, x)
    return out


def _drop_as_asked(graph: fx.Graph, node: fx.Node, owner: str) -> None:
    """In eval mode, in which graphs are read, nothing is left of the dropout of attention's weights."""
    if node.target is aten.scaled_dot_product_attention.default:
        with graph.inserting_before(node):
            share = graph.call_function(dropout_now, (graph.create_node("get_attr", owner),))
        node.args, node.kwargs = node.args[:4], {**node.kwargs, "dropout_p": share}
    elif node.target is aten.softmax.int:
        with graph.inserting_after(node):
            dropped = graph.call_function(dropped_now, (layer := graph.create_node("get_attr", owner), node))
        dropped.prepend(layer)
        node.replace_all_uses_with(dropped, delete_user_cb=lambda user: user is not dropped)


def dropout_now(layer: nn.MultiheadAttention) -> float:
    """The share that it drops in the mode that it is in."""
    return layer.dropout if layer.training else 0.0


def dropped_now(layer: nn.MultiheadAttention, weights: Tensor) -> Tensor:
    """The weights of attention after the dropout that there is in this mode."""
    return F.dropout(weights, layer.dropout) if layer.training else weights


def _ask_for_the_sizes(graph: fx.Graph) -> None:
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    with graph.inserting_after(inputs[-1]):
        for node in inputs:
            size = tuple(int(n) if is_concrete_int(n) else None for n in node.meta["val"].shape)
            graph.call_function(check_size, (node, node.name, size))


def check_size(x: Tensor, name: str, size: Sequence[int | None]) -> None:
    """Refuse an input of another size than a graph was read with; None is any.

    Raises:
        ModelError: It is of another.
    """
    if x.ndim != len(size) or any(n is not None and n != m for n, m in zip(size, x.shape, strict=True)):
        takes = ", ".join("any" if n is None else str(n) for n in size)
        raise ModelError(
            f"the input {name} has shape {list(x.shape)}; this pruned model runs its exported graph, which takes [{takes}] "
            "alone; prune it with an example of the size that it gets"
        )


def with_forward(small: nn.Module, module: fx.GraphModule, graph: fx.Graph) -> nn.Module:
    """Make ``graph``, which was made from that of ``module``, the forward of ``small``; the class becomes one of its own.

    It takes inputs of the sizes that the graph was read with alone, since every size that the model asks for is a number in it.
    """
    drop_assertions(graph)
    _ask_for_the_sizes(graph)
    modules = dict(small.named_modules(remove_duplicate=False))
    for node in list(graph.nodes):
        _ask_for_the_mode(graph, node, modules)
    for name in {str(n.target) for n in graph.nodes if n.op == "get_attr" and "." not in str(n.target)}:
        if not hasattr(small, name):  # a constant of the graph, or a part of it
            value = getattr(module, name)
            small.register_buffer(name, value.clone(), persistent=False) if isinstance(value, Tensor) else setattr(
                small, name, value
            )
    specs = {name: getattr(module, name) for name in ("_in_spec", "_out_spec") if hasattr(module, name)}
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, f"<rewritten forward of {type(small).__name__}>", "exec"), scope)
    own = type(small)
    body = {**specs, "forward": scope["forward"], "rewritten": True, "__doc__": own.__doc__}
    small.__class__ = type(own.__name__, (own,), body)
    return small


class Sizes:
    """What the sizes in a graph become under a plan."""

    def __init__(self, channels: Channels, plan: ChannelPlan) -> None:
        self.ledger = channels.ledger
        self.alive = channels.alive(plan.keep)

    def rewrite(self, node: fx.Node, copy: fx.Node) -> None:
        """Put the new sizes into ``copy``, a copy of ``node``."""
        rule = _REWRITES.get(node.target)
        if rule is not None:
            rule(self, node, copy)

    def of(self, node: Any) -> list[int] | None:
        """The sizes of a value; None of one that is not a tensor."""
        value = self.ledger.values.get(node.name) if isinstance(node, fx.Node) else None
        if isinstance(value, Weight):
            return list(value.shape)
        if not isinstance(value, Tensor | Sheets):
            return None
        return [min((self._along(s, d) for s in sheets_of(value)), default=n) for d, n in enumerate(value.shape)]

    def kept(self, node: Any, dim: int) -> Tensor | None:
        """Which indices of a dimension stay; None when the channels do not lie along it."""
        value = self.ledger.values.get(node.name) if isinstance(node, fx.Node) else None
        for sheet in sheets_of(value) if isinstance(value, Tensor | Sheets) else ():
            if varies(sheet, dim % sheet.ndim):
                mask = self._mask(sheet).movedim(dim, 0)
                return mask.reshape(mask.shape[0], -1).any(1)
        return None

    def _mask(self, labels: Labels) -> Tensor:
        small = narrow(labels)
        return torch.where(small >= 0, self.alive[small.clamp_min(0)], True)

    def _along(self, labels: Labels, dim: int) -> int:
        if not varies(labels, dim):
            return labels.shape[dim]
        mask = self._mask(labels)
        if self.ledger.free_dim(labels) == dim:
            return int(mask.sum(dim).max())
        return int(mask.movedim(dim, 0).reshape(mask.shape[dim], -1).any(1).sum())


def _put(copy: fx.Node, place: int, value: Any) -> None:
    copy.args = tuple(value if i == place else a for i, a in enumerate(copy.args))


def _shape(sizes: Sizes, node: fx.Node, copy: fx.Node) -> None:
    """``view(x, shape)`` and its kind: the sizes of the result."""
    new, asked = sizes.of(node), node.args[1]
    assert isinstance(asked, list | tuple)
    if new is not None and len(new) == len(asked):
        given = copy.args[1]
        assert isinstance(given, list | tuple)
        shaped = [n if isinstance(a, int) and a != -1 else g for a, g, n in zip(asked, given, new, strict=True)]
        before = sizes.ledger.values[node.name].shape
        changed = [d for d, a in enumerate(asked) if isinstance(a, fx.Node) and new[d] != before[d]]
        if len(changed) == 1 and -1 not in shaped:  # computed with a size of channels, such as of batch times channels
            shaped[changed[0]] = -1
        if list(given) != shaped:
            _put(copy, 1, shaped)


def _unflatten(sizes: Sizes, node: fx.Node, copy: fx.Node) -> None:
    new, dim, asked = sizes.of(node), node.args[1], node.args[2]
    assert isinstance(asked, list | tuple)
    assert isinstance(dim, int)
    if new is not None:
        dim %= len(new) - len(asked) + 1
        shaped = [n if isinstance(a, int) and a != -1 else a for a, n in zip(asked, new[dim : dim + len(asked)], strict=True)]
        if list(asked) != shaped:
            _put(copy, 2, shaped)


def _parts(sizes: Sizes, node: fx.Node, copy: fx.Node) -> None:
    """Split and chunk: by the sizes of the parts, unless these are still what was asked for."""
    dim = node.args[2] if len(node.args) > 2 else 0
    kept = sizes.kept(node.args[0], int(dim))  # type: ignore[arg-type]
    parts = sizes.ledger.values[node.name]
    if kept is None or bool(kept.all()):
        return
    lengths = [p.shape[int(dim)] for p in parts]  # type: ignore[arg-type]
    new = [int(k.sum()) for k in kept.split(lengths)]
    if node.target is aten.chunk.default and len(set(new)) == 1:
        return
    copy.target = aten.split_with_sizes.default
    copy.args = (copy.args[0], new, dim)


def _slice(sizes: Sizes, node: fx.Node, copy: fx.Node) -> None:
    dim = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
    kept = sizes.kept(node.args[0], dim)
    if kept is None or bool(kept.all()):
        return
    ends = [node.args[i] if len(node.args) > i else None for i in (2, 3)]
    start, stop, _ = slice(*ends).indices(len(kept))
    new = [int(kept[:start].sum()), int(kept[:stop].sum())]
    old = [None if e is None else slice(None, e).indices(int(kept.sum()))[1] for e in ends]
    if (old[0] or 0) != new[0] or (old[1] if old[1] is not None else int(kept.sum())) != new[1]:
        copy.args = (copy.args[0], dim, *new)


def _narrow(sizes: Sizes, node: fx.Node, copy: fx.Node) -> None:
    dim, start, length = (int(n) for n in node.args[1:4])  # type: ignore[arg-type]
    kept = sizes.kept(node.args[0], dim)
    if kept is not None and not bool(kept.all()):
        start %= len(kept)
        first = int(kept[:start].sum())
        copy.args = (copy.args[0], dim, first, int(kept[: start + length].sum()) - first)


def _select(sizes: Sizes, node: fx.Node, copy: fx.Node) -> None:
    dim, index = int(node.args[1]), int(node.args[2])  # type: ignore[arg-type]
    kept = sizes.kept(node.args[0], dim)
    if kept is not None and int(kept[: index % len(kept)].sum()) != index % len(kept):
        _put(copy, 2, int(kept[: index % len(kept)].sum()))


def _normalized(sizes: Sizes, node: fx.Node, copy: fx.Node) -> None:
    new, asked = sizes.of(node), node.args[1]
    assert isinstance(asked, list | tuple)
    if new is not None and list(asked) != new[-len(asked) :]:
        _put(copy, 1, new[-len(asked) :])


def _groups(place: int) -> Callable[[Sizes, fx.Node, fx.Node], None]:
    """As many groups as channels before, as many after."""

    def rewrite(sizes: Sizes, node: fx.Node, copy: fx.Node) -> None:
        source = node.args[0]
        after = sizes.of(source)
        groups = node.args[place] if len(node.args) > place else 1
        if not isinstance(source, fx.Node) or after is None or groups == 1:
            return
        if groups == sizes.ledger.values[source.name].shape[1] != after[1]:
            _put(copy, place, after[1])

    return rewrite


_REWRITES: dict[Any, Callable[[Sizes, fx.Node, fx.Node], None]] = {
    **dict.fromkeys([aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default], _shape),
    aten.unflatten.int: _unflatten,
    **dict.fromkeys([aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default], _parts),
    aten.slice.Tensor: _slice,
    aten.narrow.default: _narrow,
    aten.select.int: _select,
    **dict.fromkeys([aten.layer_norm.default, aten.rms_norm.default], _normalized),
    aten.group_norm.default: _groups(1),
    **{
        getattr(getattr(aten, f"conv{kind}{n}d"), overload): _groups(6)
        for n in (1, 2, 3)
        for kind, overloads in (("", ("default", "padding")), ("_transpose", ("default" if n == 1 else "input",)))
        for overload in overloads
    },
}
