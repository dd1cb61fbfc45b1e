"""Operations that torch's table of ONNX operators lacks, written in those that it has.

Torch would find this out by tracing the whole network once more, which is half the time that writing a file takes.
"""

import operator
from collections.abc import Callable

from torch import fx
from torch import ops as torch_ops

aten = torch_ops.aten


def spell_out(module: fx.GraphModule) -> None:
    """Rewrite ``module`` in place; what it computes in eval mode stays the same. What is not known here is left to torch."""
    for node in [n for n in module.graph.nodes if n.target in SPELLED]:
        with module.graph.inserting_before(node):
            new = SPELLED[node.target](module.graph, node)
        if new is not None:
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            module.graph.erase_node(node)
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
    return graph.call_function(_WINDOWS[len(size)], (x, window, window))


_WINDOWS = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}
SPELLED: dict[object, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    aten.batch_norm.default: _batch_norm,
    aten.adaptive_avg_pool1d.default: _pool,
    aten.adaptive_avg_pool2d.default: _pool,
    aten.adaptive_avg_pool3d.default: _pool,
}
