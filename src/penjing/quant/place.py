"""Where the grids go: read the graph and the target's profile, return plain data, change nothing."""

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, fx

from penjing.graph.layers import CONVOLUTIONS, TRANSPOSED
from penjing.graph.walk import arguments, behind
from penjing.quant.fold import is_scaling
from penjing.quant.targets import (
    ADDS,
    JOINED,
    PASSING,
    POOLS,
    PRODUCTS,
    WEIGHTED,
    Target,
    has_tailed_groups,
)

aten = torch.ops.aten


@dataclass(frozen=True)
class Placement:
    """Which weights and values get a grid.

    Attributes:
        weights: ``{layer's node name: dim of its weight's output channels}``.
        values: ``{value node name: name of the value whose grid it has}``; most have their own.
        reasons: ``{layer's node name: why it stays in float}``, of the layers that do.
        joined: Values that have the grid of a concatenation, though others than that read them as well.
        optional: Values that come out of floats and that no layer reads, only operations that can as well stay in float.
    """

    weights: dict[str, int]
    values: dict[str, str]
    reasons: dict[str, str]
    joined: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()


def place(
    module: fx.GraphModule,
    target: Target,
    *,
    exclude: Sequence[str] = (),
    floats: frozenset[str] = frozenset(),
    coarse: Mapping[str, str] | None = None,
    noisy: Mapping[str, str] | None = None,
    alone: frozenset[str] = frozenset(),
) -> Placement:
    """Give every weighted operation int8 weights and inputs, and what lies between them the grids its kernels need.

    Args:
        exclude: Patterns of parameter names whose layers stay in float.
        floats: Names of nodes that stay in float.
        coarse: ``{value: why no grid fits it}``; what reads such a value stays in float.
        noisy: ``{layer: why integers would drown what it gives}``; those layers stay in float.
        alone: Values that keep their own grid where they are concatenated with others.
    """
    return _Places(module, target, exclude, floats, coarse or {}, noisy or {}, alone).placement()


class _Places:
    def __init__(
        self,
        module: fx.GraphModule,
        target: Target,
        exclude: Sequence[str],
        floats: frozenset[str],
        coarse: Mapping[str, str],
        noisy: Mapping[str, str],
        alone: frozenset[str],
    ) -> None:
        self.module, self.target = module, target
        self.coarse, self.noisy, self.alone = coarse, noisy, alone
        self.nodes = [n for n in module.graph.nodes if n.op in ("placeholder", "call_function") and _is_float(n)]
        self.layers = [n for n in self.nodes if n.target in WEIGHTED or n.target in PRODUCTS]
        why = {n.name: self._why_float(n, exclude, floats) for n in self.layers}
        self.reasons = {name: reason for name, reason in why.items() if reason}
        self.weighted = {n for n in self.layers if n.name not in self.reasons}
        self.integer: set[fx.Node] = set()
        for n in self.nodes:  # in order: an operation between floats is not worth a way into integers and out again
            wanted = n.target in target.integer or (target.dense_concat and _is_dense(n))
            if wanted and n.name not in floats and not self._reads_coarse(n) and self._after_integers(n):
                self.integer.add(n)

    def placement(self) -> Placement:
        weights = {n.name: WEIGHTED[n.target] for n in self.nodes if n in self.weighted}
        values: dict[str, str] = {}
        for n in self.nodes:
            if (
                n.name in self.coarse
                or _pads_infinity(n)
                or self._absorbed(n)
                or not (self._read_as_integer(n) or self._ends_convolution(n))
            ):
                continue
            source = n.args[0] if n.target in PASSING or _pads_zeros(n) else None
            values[n.name] = values.get(source.name, n.name) if isinstance(source, fx.Node) else n.name
        joined = self._share(values) if self.target.shared_concat else frozenset()
        optional = frozenset(n.name for n in self.nodes if n.name in values and self._is_optional(n))
        return Placement(weights, values, self.reasons, joined, optional)

    def _why_float(self, layer: fx.Node, exclude: Sequence[str], floats: frozenset[str]) -> str:
        if layer.target not in WEIGHTED:
            if any(all(n.op != "placeholder" for n in behind(source)) for source in layer.all_input_nodes):
                return "it is a product with a parameter, not a linear layer; write x @ W as F.linear(x, W.T)"
            return "both of its operands are computed, neither is a weight"
        weight = layer.args[1]
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            return "its weight is computed in the network"
        if any(isinstance(source, fx.Node) and source.op == "get_attr" for source in layer.args[:1]):
            return "it reads no value of the network, but a weight"
        if any(fnmatch(name, pattern) for pattern in exclude for name in names_of(layer)):
            return "it was excluded"
        if layer.name in floats:
            return "integers cost too much there, in accuracy or in time"
        if layer.name in self.noisy:
            return self.noisy[layer.name]
        return self._why_not_in(layer, weight.meta["val"].shape) or self._reads_coarse(layer) or self._gives_coarse(layer)

    def _why_not_in(self, layer: fx.Node, weight: Sequence[int]) -> str:
        """Why the target runs the layer in float; empty where it does not."""
        if layer.target not in self.target.weighted:
            return f"{self.target.runtime} has no int8 kernel for {str(layer.target).split('.')[1]}"
        groups = arguments(layer).get("groups", 1)
        if not self.target.transposed_groups and layer.target in TRANSPOSED and groups > 1:
            return f"{self.target.runtime} has no int8 kernel for transposed convolutions in groups"
        if not self.target.tailed_groups and layer.target in CONVOLUTIONS and has_tailed_groups(weight, groups):
            return f"{self.target.runtime} has no right int8 kernel for so many channels in groups"
        if is_scaling(layer):
            return "" if self.target.norms else "norms were faster in float"
        if not self.target.depthwise and _is_depthwise(layer):
            return "depthwise convolutions were faster in float"
        if not self.target.first and layer is self.layers[0]:
            return "the first layer was faster in float"
        if not self.target.pooled and _is_pooled(layer):
            return "convolutions of one position were faster in float"
        return ""

    def _reads_coarse(self, node: fx.Node) -> str:
        """Why no grid fits what the node reads; empty where one does."""
        sources = list(node.all_input_nodes)
        for source in sources:
            if source.name in self.coarse:
                return self.coarse[source.name]
            if source.target in PASSING:
                sources += source.all_input_nodes
        return ""

    def _gives_coarse(self, layer: fx.Node) -> str:
        """Why no grid fits what a convolution ends in, where it needs one to run in integers."""
        if not self.target.ends_convolution or layer.target not in CONVOLUTIONS:
            return ""
        ends = [layer, *(n for n in layer.users if n.target in self.target.fused and len(layer.users) == 1)]
        return self.coarse.get(ends[-1].name, "")

    def _after_integers(self, node: fx.Node) -> bool:
        """Whether what the node reads comes out of int8 kernels: all that an addition reads, something of what others do."""
        comes = [self._from_integers(source) for source in node.all_input_nodes]
        return all(comes) if node.target in ADDS else any(comes)

    def _from_integers(self, node: fx.Node) -> bool:
        """Whether the value comes out of an int8 kernel, perhaps through what moves or clips it."""
        while node.target in PASSING or node.target in self.target.fused:
            node = node.all_input_nodes[0]
        return node in self.weighted or node in self.integer

    def _absorbed(self, node: fx.Node) -> bool:
        """Whether the node's output never exists by itself: the next operation runs inside this one."""
        if len(node.users) != 1 or not (node in self.weighted or node in self.integer):
            return False
        (reader,) = node.users
        return reader.target in self.target.fused

    def _read_as_integer(self, node: fx.Node) -> bool:
        return any(reader in self.weighted or reader in self.integer for reader in readers(node))

    def _is_optional(self, node: fx.Node) -> bool:
        return not self._from_integers(node) and not any(reader in self.weighted for reader in readers(node))

    def _ends_convolution(self, node: fx.Node) -> bool:
        if not self.target.ends_convolution:
            return False
        if node.target in self.target.fused and len(node.all_input_nodes[0].users) == 1:
            node = node.all_input_nodes[0]
        return node in self.weighted and node.target in CONVOLUTIONS

    def _share(self, values: dict[str, str]) -> frozenset[str]:
        """Concatenated values take the grid of the concatenation, which sees the range of all; gives those read elsewhere too.

        Not so values that a convolution clips at 0, beside others that go below: with a zero point above the lowest integer
        ONNX Runtime cannot clip by rounding, and runs that convolution in float; the skips of a U-Net are such values.
        """
        joined = set[str]()
        for cat in reversed([n for n in self.module.graph.nodes if n.target is aten.cat.default]):
            below = any(not _is_never_negative(part) for part in cat.all_input_nodes)
            for part in cat.all_input_nodes:
                alone = below and self.target.ends_convolution and self._clips_convolution(origin(part))
                if part.name in values and cat.name in values and values[part.name] not in self.alone and not alone:
                    old, new = values[part.name], values[cat.name]
                    together = {name for name, grid in values.items() if grid == old}
                    read = {reader for n in self.nodes if n.name in together for reader in n.users}
                    if any(reader is not cat and reader.name not in together for reader in read):
                        joined.add(old)
                    values.update(dict.fromkeys(together, new))
        return frozenset(joined)

    def _clips_convolution(self, node: fx.Node) -> bool:
        return node.target in self.target.fused and node.all_input_nodes[0] in self.weighted


def _is_never_negative(node: fx.Node) -> bool:
    """Whether what the node does says so."""
    if node.target in (aten.relu.default, aten.relu6.default, aten.sigmoid.default, aten.hardsigmoid.default):
        return True
    moves = node.target in PASSING or node.target in POOLS or node.target is aten.cat.default or _pads_zeros(node)
    return moves and all(_is_never_negative(source) for source in node.all_input_nodes)


def _is_depthwise(layer: fx.Node) -> bool:
    weight, source = layer.args[1], layer.args[0]
    assert isinstance(weight, fx.Node)
    assert isinstance(source, fx.Node)
    shape = weight.meta["val"].shape
    return layer.target in CONVOLUTIONS and shape[1] == 1 and source.meta["val"].shape[1] > 1


def _is_pooled(layer: fx.Node) -> bool:
    source = layer.args[0]
    assert isinstance(source, fx.Node)
    return layer.target in CONVOLUTIONS and all(n == 1 for n in source.meta["val"].shape[2:])


def _pads_zeros(node: fx.Node) -> bool:
    """Whether the node puts zeros around a value: they are on its grid."""
    if node.target is not aten.pad.default:
        return False
    given = arguments(node)
    return given["mode"] == "constant" and given["value"] in (None, 0)


def _pads_infinity(node: fx.Node) -> bool:
    """Whether the node puts values around that are on no grid, as before a maximum pool."""
    value = arguments(node)["value"] if node.target in (aten.pad.default, aten.constant_pad_nd.default) else 0
    return isinstance(value, float) and math.isinf(value)


def _is_dense(node: fx.Node) -> bool:
    """Whether a concatenation has a part that another one reads as well: it would be brought into integers many times."""
    if node.target is not aten.cat.default:
        return False
    return any(sum(r.target is aten.cat.default for r in part.users) > 1 for part in node.all_input_nodes)


def names_of(layer: fx.Node) -> tuple[str, ...]:
    """What the weight of a layer is called, and the parameters that it was computed of, if it was."""
    weight = layer.args[1]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return ()
    return (str(weight.target), *weight.meta.get("computed of", ()))


def origin(node: fx.Node) -> fx.Node:
    """The value that was moved or padded with zeros to give this one."""
    while node.target in PASSING or _pads_zeros(node):
        source = node.args[0]
        if not isinstance(source, fx.Node):
            break
        node = source
    return node


def is_joined(node: fx.Node) -> bool:
    """Whether a file puts the value together from others."""
    return node.target in JOINED or (node.target is aten.pad.default and arguments(node)["mode"] == "circular")


def is_grouped_in_3d(node: fx.Node) -> bool:
    """Whether a convolution of three dimensions has groups."""
    return node.target in CONVOLUTIONS and node.meta["val"].ndim == 5 and arguments(node).get("groups", 1) != 1


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """Who reads the value, through operations that only move it."""
    for reader in node.users:
        if reader.target in PASSING or reader.target is operator.getitem:
            yield from readers(reader)
        elif reader.op != "output":
            yield reader


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
