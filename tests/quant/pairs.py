"""A float network and its quantized copy, made with nothing but the insertion of grids."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from penjing.graph import capture
from penjing.quant.grids import Grid, levels
from penjing.quant.insert import insert_grid, tensor
from penjing.quant.targets import WEIGHTED


class Pair(NamedTuple):
    reference: fx.GraphModule
    module: fx.GraphModule


class Seen(fx.Interpreter):
    """Every value of one run, by its node's name."""

    def __init__(self, module: fx.GraphModule, x: Tensor) -> None:
        super().__init__(module)
        self.values: dict[str, Tensor] = {}
        with torch.no_grad():
            self.run(x)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n.name] = value
        return value


def pair(model: nn.Module, x: Tensor, *, weight_bits: int, value_bits: int | None = 8, block: int = 0) -> Pair:
    """Grids for every layer's weight, for each output channel or each ``block`` input channels of one, and its input."""
    reference = capture(model.eval(), x[:2]).module
    module = copy.deepcopy(reference)
    seen = Seen(reference, x).values
    layers = [n for n in module.graph.nodes if n.target in WEIGHTED]
    for read in {n.args[0]: None for n in layers} if value_bits is not None else ():
        insert_grid(module, read, read.name, value_grid(seen[read.name], value_bits))
    insert_weight_grids(module, weight_bits, block)
    return Pair(reference, module)


def insert_weight_grids(module: fx.GraphModule, bits: int, block: int = 0) -> None:
    weights = {n.args[1]: WEIGHTED[n.target] for n in module.graph.nodes if n.target in WEIGHTED}
    for held, axis in weights.items():
        insert_grid(module, held, held.name, weight_grid(tensor(module, held), axis, bits, block))
    module.recompile()


def weight_grid(weight: Tensor, axis: int, bits: int, block: int) -> Grid:
    low, high = levels(bits, signed=True)
    others = [d for d in range(weight.ndim) if d != axis]
    largest = weight.detach().abs().amax(others, keepdim=True)
    if block and weight.shape[1 - axis] % block == 0:
        parts = weight.detach().abs().unflatten(1, (-1, block)).flatten(2)
        largest = parts.amax(2)[(...,) + (None,) * (weight.ndim - 2)]
    return Grid(largest / high, torch.zeros_like(largest, dtype=torch.int32), low, high)


def value_grid(value: Tensor, bits: int) -> Grid:
    low, high = levels(bits, signed=False)
    least, most = value.min().clamp(max=0), value.max()
    scale = (most - least) / high
    return Grid(scale, (-least / scale).round().int(), low, high)
