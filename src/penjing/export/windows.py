"""Means over windows, written so that runtimes count what lies in a window as torch does.

They differ where the last window reaches beyond the map (``ceil_mode``), and torch's exporter drops a divisor of its own.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch import ops as torch_ops

from penjing.graph.walk import arguments, each

aten = torch_ops.aten
WINDOWS = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}


@dataclass(frozen=True)
class _Pool:
    """An average pool; what has a number for every dim of the positions is a list.

    Attributes:
        needs: How many positions the windows reach beyond the map at its end; None where its size is not known.
    """

    target: Any
    source: fx.Node
    kernel: list[int]
    step: list[int]
    around: list[int]
    ceil: bool
    zeros: bool
    divisor: int | None
    needs: list[int] | None

    @classmethod
    def of(cls, node: fx.Node) -> "_Pool":
        target: Any = node.target
        given = arguments(node)
        rank = next(n for n, known in WINDOWS.items() if known is target)
        kernel, around = each(given["kernel_size"], rank), each(given["padding"], rank)
        step = each(given["stride"] or kernel, rank)
        size, made = (list(v.meta["val"].shape[-rank:]) if "val" in v.meta else [None] for v in (given["self"], node))
        needs = None
        if all(isinstance(n, int) for n in (*size, *made)):
            needs = [(o - 1) * s + k - n - p for n, o, s, k, p in zip(size, made, step, kernel, around, strict=True)]
        return cls(
            target, given["self"], kernel, step, around, bool(given["ceil_mode"]), bool(given["count_include_pad"]),
            given.get("divisor_override"), needs,
        )  # fmt: skip


def means_of_windows(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The same mean without a divisor of its own, and without windows that are cut where zeros count; None: as it is."""
    pool = _Pool.of(node)
    inside = pool.needs is not None and all(n <= p for n, p in zip(pool.needs, pool.around, strict=True))
    cut = pool.ceil and not inside
    if cut and pool.needs is None and (pool.divisor is not None or any(pool.around)):
        return None  # nobody knows where the last window ends
    needs = pool.around if pool.needs is None else pool.needs
    if pool.divisor is not None:
        whole = _padded(graph, pool, needs if cut else pool.around)
        mean = graph.call_function(pool.target, (whole, pool.kernel, pool.step))
        return graph.call_function(aten.mul.Tensor, (mean, math.prod(pool.kernel) / pool.divisor))
    if not cut:
        given = (pool.source, pool.kernel, pool.step, pool.around, False, pool.zeros)
        return graph.call_function(pool.target, given) if pool.ceil else None
    if any(pool.around) and not pool.zeros:
        return None
    source = _padded(graph, pool, [min(n, p) for n, p in zip(needs, pool.around, strict=True)])
    return graph.call_function(pool.target, (source, pool.kernel, pool.step, [0] * len(needs), True, False))


def _padded(graph: fx.Graph, pool: _Pool, behind: list[int]) -> fx.Node:
    """The map with its zeros written out: ``around`` before it, as many as are asked for behind."""
    ends = [max(0, n) for n in behind]
    if not any((*pool.around, *ends)):
        return pool.source
    pads = [n for pair in zip(reversed(pool.around), reversed(ends), strict=True) for n in pair]
    return graph.call_function(aten.constant_pad_nd.default, (pool.source, pads, 0.0))
