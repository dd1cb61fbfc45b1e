"""Which channels of a network must keep one factor: all that are added up, wherever they are read.

Dividing all that gives a channel by a factor, and multiplying the weights of all that read it, changes nothing. Factors come
through ReLU, leaky ReLU and PReLU, pooling, resizing, flattening, permuting, sums, concatenations and products with what has
no factor. They do not come through anything else; what stops one keeps it at 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from penjing.quant.editable import argument, editable
from penjing.quant.equalize import Place, passes

aten = torch.ops.aten


@dataclass
class Line:
    """Where the channels of a value lie, and which factors they have.

    Attributes:
        dim: The dim of the value they lie along.
        factors: The number of each channel's factor, int64, as many as the value has channels.
    """

    dim: int
    factors: Tensor


class Streams:
    """The factors of a float graph after ``fold``: one for each channel that a layer gives, joined where values are added up.

    Attributes:
        layers: All layers whose weights may change, by their nodes; without numbers, which would be all weights once more.
        lines: Of every value that factors come through to.
        free: Which factors may be other than 1, ``(factors,)``.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.layers = {n: layer for n in module.graph.nodes if (layer := editable(module, n, light=True))}
        self.lines: dict[fx.Node, Line] = {}
        self._parent: list[int] = []
        self._stopped = set[int]()
        for node in module.graph.nodes:
            line = self._given(node) if node in self.layers else self._through(node)
            if line is not None:
                self.lines[node] = line
        roots = [self._root(i) for i in range(len(self._parent))]
        stopped = {roots[i] for i in self._stopped}
        self.free = torch.tensor([r not in stopped for r in roots], dtype=torch.bool)
        for line in self.lines.values():
            line.factors = torch.tensor(roots, dtype=torch.int64)[line.factors]

    def read(self) -> dict[fx.Node, Line]:
        """The lines of what layers read, where any of their factors is free, by the layers' nodes."""
        found = {node: self.line_of(node.args[0]) for node in self.layers}
        return {node: line for node, line in found.items() if line is not None and bool(self.free[line.factors].any())}

    def read_along(self) -> dict[fx.Node, int]:
        """Which dim of what each layer reads holds the channels, by the layers' nodes."""
        values = {node: node.args[0] for node in self.layers}
        return {n: self.layers[n].place(v.meta["val"]) for n, v in values.items() if isinstance(v, fx.Node) and "val" in v.meta}

    def line_of(self, source: object) -> Line | None:
        """The line of a value, if it has one."""
        return self.lines.get(source) if isinstance(source, fx.Node) else None

    def store(self, factors: Tensor) -> None:
        """Multiply what gives each channel by its factor, and divide what reads it; factors that are not free stay 1.

        Args:
            factors: Positive, float64, ``(factors,)``, of the shape of ``free``.
        """
        factors, one = torch.where(self.free, factors, 1.0), factors.new_ones(1)
        changed = False
        for node in self.layers:
            line = self.line_of(node.args[0])
            gives, reads = factors[self.lines[node].factors], one if line is None else factors[line.factors]
            if bool((gives == 1).all()) and bool((reads == 1).all()):
                continue
            layer = editable(self.module, node)
            assert layer is not None
            layer.weight = layer.weight * layer.along(gives, layer.output) / layer.along(reads, layer.input)
            layer.bias = layer.bias * gives
            layer.store()
            changed = True
        if changed:
            self.module.graph.eliminate_dead_code()
            self.module.graph.lint()
            self.module.recompile()

    def _given(self, node: fx.Node) -> Line:
        """New factors, for what a layer gives; those of what it reads come to an end in its weights."""
        layer, source = self.layers[node], node.args[0]
        line = self.line_of(source)
        if isinstance(source, fx.Node) and line is not None and line.dim != layer.place(source.meta["val"]):
            self._stop(source)
        first, channels = len(self._parent), layer.channels(layer.output)
        self._parent += range(first, first + channels)
        return Line(layer.place(node.meta["val"]), torch.arange(first, first + channels))

    def _through(self, node: fx.Node) -> Line | None:
        """The line of what an operation gives, if the factors of all that it reads come through; if not, they are stopped."""
        read = [n for n in node.all_input_nodes if n in self.lines]
        if not read:
            return None
        if node.target is aten.add.Tensor:
            line = self._sum(node)
        elif node.target is aten.cat.default:
            line = self._side_by_side(node)
        elif node.target is aten.mul.Tensor:
            line = self._product(node, read)
        else:
            place = Place(read[0], self.lines[read[0]].dim)
            known = len(read) == 1 and passes(place, node)
            line = Line(place.dim, self.lines[read[0]].factors.repeat_interleave(place.repeats)) if known else None
        for source in read if line is None else ():
            self._stop(source)
        return line

    def _sum(self, node: fx.Node) -> Line | None:
        one, two = node.args[:2]
        first, second = self.line_of(one), self.line_of(two)
        if first is None or second is None or first.dim != second.dim or _shape(one) != _shape(two):
            return None
        for a, b in zip(first.factors.tolist(), second.factors.tolist(), strict=True):
            self._parent[self._root(a)] = self._root(b)
        return first

    def _side_by_side(self, node: fx.Node) -> Line | None:
        parts, dim = node.args[0], argument(node, 1, 0)
        assert isinstance(parts, list | tuple)
        assert isinstance(dim, int)
        dim %= node.meta["val"].ndim
        lines = [line for p in parts if (line := self.line_of(p)) is not None and line.dim == dim]
        return Line(dim, torch.cat([line.factors for line in lines])) if len(lines) == len(parts) else None

    def _product(self, node: fx.Node, read: list[fx.Node]) -> Line | None:
        """A gate that has no factor lets those of the other operand through."""
        alone = len(read) == 1 and sum(a is read[0] for a in node.args) == 1
        return self.lines[read[0]] if alone and _shape(node) == _shape(read[0]) else None

    def _stop(self, source: fx.Node) -> None:
        self._stopped.update(self.lines[source].factors.tolist())

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number


def _shape(node: object) -> torch.Size:
    assert isinstance(node, fx.Node)
    shape = node.meta["val"].shape
    assert isinstance(shape, torch.Size)
    return shape
