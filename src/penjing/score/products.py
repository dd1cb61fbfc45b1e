"""Layers as matrix products: a convolution of any rank, stride, dilation and grouping, a transposed one, a linear layer.

All are ``y = W x + b`` for the rows ``x`` that they read, one a position. A transposed convolution reads its input with zeros
between the positions.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from penjing.graph import Graph
from penjing.graph.layers import KINDS, LINEAR, TRANSPOSED
from penjing.graph.walk import arguments, each
from penjing.score.flow import tensor_of
from penjing.score.windows import Pads, padded, pads_of_spread, spread, unfolded

aten = torch.ops.aten


@dataclass(frozen=True)
class Norm:
    """A batch norm in eval mode: the node, the names of its tensors, and its ``eps``."""

    node: fx.Node
    weight: str | None
    bias: str | None
    mean: str
    variance: str
    eps: float


@dataclass(frozen=True)
class Product:
    """A layer as ``y = W x + b``; all shapes below are of one group of its channels, groups first.

    Attributes:
        source: The node that it reads.
        reads: The dimension of its weight that sums over the input's channels.
        intercept: The name of the tensor that can take a constant up: its bias, or the mean of the norm behind it.
        norm: The batch norm that alone reads its output, if there is one.
        columns: How many numbers a row holds, without the one.
        padding: In front of and behind every position dimension.
    """

    node: fx.Node
    source: fx.Node
    weight: str
    bias: str | None
    norm: Norm | None
    columns: int
    groups: int = 1
    transposed: bool = False
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: Pads = ()

    @property
    def reads(self) -> int:
        return 0 if self.transposed else 1

    @property
    def writes(self) -> int:
        """The dimension of its weight that is the output's channels."""
        return 1 - self.reads

    @property
    def intercept(self) -> str | None:
        return self.bias or (self.norm.mean if self.norm else None)

    @property
    def taps(self) -> int:
        """How many columns an input channel has."""
        return math.prod(self.kernel)

    def positions(self, y: Tensor) -> int:
        """How many rows the layer reads for each sample of an output ``y``."""
        return y[0].numel() // y.shape[1 if self.kernel else -1]

    def matrix(self, weight: Tensor) -> Tensor:
        """The layer's weight as ``(groups, outputs, columns)``; a channel's columns lie side by side."""
        if not self.transposed:
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        parts = weight.flip(list(range(2, weight.ndim))).reshape(self.groups, -1, weight.shape[1], self.taps)
        return parts.transpose(1, 2).flatten(2)

    def unmatrix(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """The weight of the given shape that ``matrix`` was made from."""
        if not self.transposed:
            return matrix.reshape(tuple(shape))
        parts = matrix.reshape(*matrix.shape[:2], -1, self.taps).transpose(1, 2)
        return parts.reshape(tuple(shape)).flip(list(range(2, len(shape))))

    def rows(self, x: Tensor, at: Tensor) -> Tensor:
        """What the layer reads at some places, and a one: ``(groups, places, columns + 1)``.

        ``at`` counts through samples and positions, positions fastest.
        """
        if not self.kernel:
            read = x.reshape(-1, x.shape[-1])[at][None]
        else:
            windows = self._windows(x)
            rank = len(self.kernel)
            sample, *position = torch.unravel_index(at, (len(x), *windows.shape[2 : 2 + rank]))
            index: Any = (sample, slice(None), *position)  # index tensors on both sides of a slice put the places first
            read = windows[index].reshape(len(at), self.groups, -1).transpose(0, 1)
        return torch.cat([read, read.new_ones(*read.shape[:2], 1)], 2)

    def outputs(self, y: Tensor, at: Tensor) -> Tensor:
        """The values that the layer gives at those places: ``(groups, places, outputs)``."""
        flat = y if not self.kernel else y.movedim(1, -1)
        return flat.reshape(-1, flat.shape[-1])[at].reshape(len(at), self.groups, -1).transpose(0, 1)

    def _windows(self, x: Tensor) -> Tensor:
        """A view ``(samples, channels, positions..., kernel...)``."""
        if not self.transposed:
            return unfolded(padded(x, self.padding), self.kernel, self.stride, self.dilation)
        return unfolded(padded(spread(x, self.stride), self.padding), self.kernel, (1,) * len(self.kernel), self.dilation)


def products(graph: Graph) -> dict[fx.Node, Product]:
    """The layers of a graph that are matrix products with a weight of the model's own, in the order they run.

    Left out: weights that are computed, that belong to no parameter, or that are used more than once.
    """
    found = (_product(graph, node) for node in graph.module.graph.nodes)
    return {p.node: p for p in found if p and _used_once(graph, p.weight)}


def _product(graph: Graph, node: fx.Node) -> Product | None:
    if node.target not in KINDS:
        return None
    given = arguments(node)
    source, weight, bias = given["input"], given["weight"], given["bias"]
    names = [None if n is None else str(n.target) for n in (weight, bias)]
    if any(n is not None and (n.op != "get_attr" or str(n.target) in graph.constants) for n in (weight, bias)):
        return None
    shape = tensor_of(graph, str(names[0])).shape
    norm = None if node.target is LINEAR and node.meta["val"].ndim != 2 else norm_behind(node)
    rank = source.meta["val"].ndim
    if node.target is LINEAR:
        return Product(node, source, str(names[0]), names[1], norm, shape[1]) if rank > 1 else None
    if len(shape) != rank:  # without a batch
        return None
    kernel, groups, transposed = tuple(shape[2:]), given["groups"], node.target in TRANSPOSED
    stride, dilation = (tuple(each(given[n], len(kernel))) for n in ("stride", "dilation"))
    return Product(
        node, source, str(names[0]), names[1], norm,
        columns=(shape[0] // groups if transposed else shape[1]) * math.prod(kernel),
        groups=groups, transposed=transposed, kernel=kernel, stride=stride, dilation=dilation,
        padding=_padding(given, kernel, dilation, transposed),
    )  # fmt: skip


def _padding(given: Mapping[str, Any], kernel: Sequence[int], dilation: Sequence[int], transposed: bool) -> Pads:
    """What to pad in front and behind, so that plain windows see what the operation sees."""
    if given["padding"] == "same":
        wide = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((w // 2, w - w // 2) for w in wide)
    sides = each(0 if given["padding"] == "valid" else given["padding"], len(kernel))
    if transposed:
        return pads_of_spread(kernel, dilation, sides, each(given["output_padding"], len(kernel)))
    return tuple((p, p) for p in sides)


def norm_of(node: fx.Node) -> Norm | None:
    """The node as a batch norm with statistics of its own, if it is one."""
    if node.target is not aten.batch_norm.default:
        return None
    given = arguments(node)
    names = {k: given[k] for k in ("weight", "bias", "running_mean", "running_var")}
    if given.get("training") or any(n is not None and n.op != "get_attr" for n in names.values()):
        return None
    if names["running_mean"] is None or names["running_var"] is None:
        return None
    weight, bias, mean, variance = (None if n is None else str(n.target) for n in names.values())
    return Norm(node, weight, bias, str(mean), str(variance), given["eps"])


def norm_behind(node: fx.Node) -> Norm | None:
    """The batch norm that alone reads a node, if there is one, and if its statistics serve nobody else."""
    norm = norm_of(next(iter(node.users))) if len(node.users) == 1 else None
    if norm is None or norm.node.all_input_nodes[0] is not node:
        return None
    uses = [n for n in node.graph.nodes if n.op == "get_attr" and str(n.target) == norm.mean]
    return norm if sum(len(n.users) for n in uses) == 1 else None


def _used_once(graph: Graph, name: str) -> bool:
    weight = tensor_of(graph, name)
    read = [n for n in graph.module.graph.nodes if n.op == "get_attr" and len(n.users)]
    return sum(len(n.users) for n in read if operator.attrgetter(str(n.target))(graph.module) is weight) == 1
