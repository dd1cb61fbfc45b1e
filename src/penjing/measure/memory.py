"""The least memory that one inference needs: all weights, and the values that are alive at the same time."""

import math
import operator
from collections.abc import Iterable

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from penjing.graph import Graph
from penjing.graph.walk import out_shape, shape_of
from penjing.quant.insert import FIXED
from penjing.quant.targets import PASSING

_SAME = PASSING | {operator.getitem}  # they show another value anew, and need no memory of their own


def peak_memory(graph: Graph | fx.GraphModule, batch: int = 1) -> int:
    """Bytes of the weights, and of the values alive while the operation runs that needs most; runtimes take more than that.

    Values and weights that go into a grid have one byte a number, as the file holds them; all others what their type has.
    """
    module = graph.module if isinstance(graph, Graph) else graph
    nodes = list(module.graph.nodes)
    last = _last_uses(nodes)
    one = next((out_shape(n)[0] for n in nodes if n.op == "placeholder"), 1)
    alive: dict[fx.Node, float] = {}
    most = 0.0
    for i, node in enumerate(nodes):
        if node.op not in ("get_attr", "output"):
            alive[node] = _bytes(node) * batch / one
        most = max(most, sum(alive.values()))
        for done in [n for n in alive if last[n] <= i]:
            del alive[done]
    return round(most) + sum(_weight(module, n) for n in nodes if n.op == "get_attr" and n.users)


def _last_uses(nodes: Iterable[fx.Node]) -> dict[fx.Node, int]:
    """When a value is read for the last time, itself or as what only shows it anew."""
    order = {n: i for i, n in enumerate(nodes)}
    last: dict[fx.Node, int] = {}
    for node in reversed(order):
        last[node] = max((last[u] if _is_shown(u) else order[u] for u in node.users), default=order[node])
    return last


def _is_shown(node: fx.Node) -> bool:
    return node.op == "call_function" and (node.target in _SAME or node.target in FIXED)


def _bytes(node: fx.Node) -> float:
    if _is_shown(node):
        return 0
    size = 1 if node.users and all(u.target in FIXED for u in node.users) else None
    leaves = [v for v in tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
    return sum(math.prod(shape_of(v)) * (size or v.element_size()) for v in leaves)


def _weight(module: fx.GraphModule, node: fx.Node) -> int:
    value = operator.attrgetter(str(node.target))(module)
    if not isinstance(value, Tensor) or value.ndim == 0:
        return 0
    return value.numel() * (1 if any(u.target in FIXED for u in node.users) else value.element_size())
