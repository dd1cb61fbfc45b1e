"""Operations that torch's table of ONNX operators lacks, written in those that it has.

Torch would find this out by tracing the whole network once more, which is half the time that writing a file takes.
"""

import operator
import sys
from collections.abc import Callable

from torch import fx
from torch import ops as torch_ops

from penjing.export.windows import WINDOWS, means_of_windows
from penjing.quant.editable import argument
from penjing.quant.fold import replace_by

aten = torch_ops.aten


def spell_out(module: fx.GraphModule) -> None:
    """Rewrite ``module`` in place; what it computes in eval mode stays the same. What is not known here is left to torch."""
    for node in [n for n in module.graph.nodes if n.target in SPELLED]:
        with module.graph.inserting_before(node):
            new = SPELLED[node.target](module.graph, node)
        if new is not None:
            new.meta = dict(node.meta)
            replace_by(node, new)
    module.recompile()


def _batch_norm(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    x, weight, bias, mean, variance, training, momentum, eps = node.args[:8]
    if training or mean is None or variance is None:
        return None
    given = (x, weight, bias, mean, variance, momentum, eps)
    three = graph.call_function(aten._native_batch_norm_legit_no_training.default, given)
    three.meta = {k: v for k, v in node.meta.items() if k != "val"}
    return graph.call_function(operator.getitem, (three, 0))


def _pool(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """A mean where one value of each map is left, a pool of fixed windows where these tile the map."""
    x, size = node.args[:2]
    assert isinstance(x, fx.Node)
    assert isinstance(size, list | tuple)
    if all(n == 1 for n in size):
        return graph.call_function(aten.mean.dim, (x, [-1 - d for d in range(len(size))], True))
    given = list(x.meta["val"].shape[-len(size) :]) if "val" in x.meta else []
    if not given or not all(isinstance(n, int) and n % m == 0 for n, m in zip(given, size, strict=True)):
        return None
    window = [n // m for n, m in zip(given, size, strict=True)]
    return graph.call_function(WINDOWS[len(size)], (x, window, window))


def _circular(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The other end of the map put before and behind it, which not every runtime knows as a kind of padding."""
    if "circular" not in node.args:
        return None
    x, pads = node.args[:2]
    assert isinstance(x, fx.Node)
    assert isinstance(pads, list | tuple)
    for i, (before, behind) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        dim, parts = -1 - i, [x]
        if before:
            parts.insert(0, graph.call_function(aten.slice.Tensor, (x, dim, -before, sys.maxsize)))
        if behind:
            parts.append(graph.call_function(aten.slice.Tensor, (x, dim, 0, behind)))
        x = graph.call_function(aten.cat.default, (parts, dim))
    return x


def _selected(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The same elements by an index of all dims: OpenVINO (2026.4) moves a selection into weights, turned around."""
    x, dim, index = node.args[:3]
    if not isinstance(x, fx.Node) or "val" not in x.meta or not isinstance(dim, int):
        return None
    before = [None] * (dim % x.meta["val"].ndim)
    return graph.call_function(aten.index.Tensor, (x, [*before, index]))


def _narrowed(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """A part that is counted from the end as a slice: torch (2.13) writes an end of 0 where the part is the last one."""
    x, dim, start, length = node.args
    if not isinstance(start, int) or not isinstance(length, int) or start >= 0:
        return None
    return graph.call_function(aten.slice.Tensor, (x, dim, start, start + length or sys.maxsize))


def _leaky(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A randomized ReLU outside training: its slope is the middle one."""
    x, low, high = node.args[0], argument(node, 1, 1 / 8), argument(node, 2, 1 / 3)
    return graph.call_function(aten.leaky_relu.default, (x, (low + high) / 2))  # type: ignore[operator]


def _attention(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Attention of one head without a dim for heads, as that of one of them."""

    def is_without(given: object) -> bool:
        return isinstance(given, fx.Node) and "val" in given.meta and given.meta["val"].ndim == 3

    if not is_without(node.args[0]):
        return None
    args = [graph.call_function(aten.unsqueeze.default, (a, 1)) if is_without(a) else a for a in node.args]
    found = graph.call_function(aten.scaled_dot_product_attention.default, tuple(args), node.kwargs)
    return graph.call_function(aten.squeeze.dim, (found, 1))


SPELLED: dict[object, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    aten.batch_norm.default: _batch_norm,
    aten.adaptive_avg_pool1d.default: _pool,
    aten.adaptive_avg_pool2d.default: _pool,
    aten.adaptive_avg_pool3d.default: _pool,
    **dict.fromkeys(WINDOWS.values(), means_of_windows),
    aten.pad.default: _circular,
    aten.rrelu.default: _leaky,
    aten.index_select.default: _selected,
    aten.narrow.default: _narrowed,
    aten.scaled_dot_product_attention.default: _attention,
}
