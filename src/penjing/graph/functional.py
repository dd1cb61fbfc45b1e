"""Make an exported graph functional without decomposing it: nothing is written in place, nothing runs in a mode of its own.

``torch.export`` can do so by itself (``run_decompositions``), which takes as long as the export and is left for the few
graphs that this cannot mend.
"""

import operator

import torch
from torch import fx

aten = torch.ops.aten
_NAMED = {
    getattr(getattr(aten, n), o)
    for n in ("view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "expand", "slice", "select", "split", "chunk",
              "unbind", "flatten", "unflatten", "detach", "alias", "split_with_sizes", "narrow", "expand_as", "view_as", "t",
              "movedim", "diagonal", "unfold", "reshape_as", "contiguous", "to", "dropout", "feature_dropout")
    if hasattr(aten, n) for o in getattr(aten, n).overloads()
} | {operator.getitem}  # fmt: skip


def make_functional(module: fx.GraphModule) -> bool:
    """Put functional operations in the place of those that write into their argument; False where that is not enough."""
    _inline_modes(module)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and _writes(node) and not _replaced(module.graph, node):
            return False
    module.graph.lint()
    return True


def _is_view(node: fx.Node) -> bool:
    """Whether a value may lie in the memory of its argument."""
    schema = getattr(node.target, "_schema", None)
    return node.target in _NAMED or (schema is not None and any(r.alias_info is not None for r in schema.returns))


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _replaced(graph: fx.Graph, node: fx.Node) -> bool:
    """``x.add_(y)`` as ``add(x, y)``, which everybody who reads ``x`` later reads in its place."""
    assert isinstance(node.target, torch._ops.OpOverload)
    name, overload = node.target._schema.name.removeprefix("aten::"), node.target._overloadname
    packet = getattr(aten, name.removesuffix("_"), None)
    written = node.args[0]
    if not name.endswith("_") or packet is None or overload not in packet.overloads() or not isinstance(written, fx.Node):
        return False
    if not _has_one_name(written):
        return False  # its other names would have to change with it
    before, after = _readers(graph, written, node)
    if any(_is_view(reader) for reader in before):
        return False
    with graph.inserting_before(node):
        fresh = graph.call_function(getattr(packet, overload), node.args, node.kwargs)
    fresh.meta = dict(node.meta)
    node.replace_all_uses_with(fresh)
    for reader in after:
        reader.replace_input_with(written, fresh)
    graph.erase_node(node)
    return True


def _has_one_name(node: fx.Node) -> bool:
    """Whether nobody else sees the memory of a value: it is no view, or the only one of something that nobody else reads."""
    while _is_view(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        if len(node.users) > 1:
            return False
    return node.op == "call_function" and not _writes(node)


def restore_norms(module: fx.GraphModule) -> None:
    """Put one operation, as everybody else knows it, in the place of the three values a decomposed batch norm gives."""
    for node in list(module.graph.nodes):
        if node.target is aten._native_batch_norm_legit_no_training.default:
            *given, momentum, eps = node.args
            with module.graph.inserting_before(node):
                norm = module.graph.call_function(aten.batch_norm.default, (*given, False, momentum, eps, False))
            for value in list(node.users):
                norm.meta = dict(value.meta)
                value.replace_all_uses_with(norm)
                module.graph.erase_node(value)
            module.graph.erase_node(node)


def _readers(graph: fx.Graph, written: fx.Node, at: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    """Who reads ``written`` before and who after ``at``."""
    order = {n: i for i, n in enumerate(graph.nodes)}
    others = [u for u in written.users if u is not at]
    return [u for u in others if order[u] < order[at]], [u for u in others if order[u] > order[at]]


def _inline_modes(module: fx.GraphModule) -> None:
    """A part that runs with autocast switched off does what it would do outside, where nobody switches it on."""
    for node in list(module.graph.nodes):
        if getattr(node.target, "__name__", "") == "wrap_with_autocast" and node.args[2] is False:
            _, _, _, _, body, *given = node.args
            assert isinstance(body, fx.Node)
            inner = operator.attrgetter(str(body.target))(module)
            with module.graph.inserting_before(node):
                values = dict(zip([n for n in inner.graph.nodes if n.op == "placeholder"], given, strict=True))
                result = module.graph.graph_copy(inner.graph, values)
            _use_parts(node, result)
            module.graph.erase_node(node)
            if not body.users:
                module.graph.erase_node(body)
                module.delete_submodule(str(body.target))


def _use_parts(node: fx.Node, result: object) -> None:
    """What was taken out of the part's outputs is the very node inside it that gave it."""
    if not isinstance(result, tuple | list):
        assert isinstance(result, fx.Node)
        node.replace_all_uses_with(result)
        return
    for user in list(node.users):
        assert user.target is operator.getitem
        place = user.args[1]
        assert isinstance(place, int)
        user.replace_all_uses_with(result[place])
        user.graph.erase_node(user)
