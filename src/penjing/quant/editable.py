"""Layers of a graph whose weights may change: read in float64, scaled channel by channel, put back."""

import math
import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from penjing.graph.layers import TRANSPOSED
from penjing.graph.walk import arguments
from penjing.quant.targets import WEIGHTED

aten = torch.ops.aten


@dataclass
class Editable:
    """A convolution or linear layer whose weight is a parameter of its own, so that it may change.

    Attributes:
        weight: A float64 copy: ``(O, I / groups, ...)``, of a transposed convolution ``(I, O / groups, ...)``.
        bias: ``(O,)``, float64; zeros where there is none.
        output: Which of the weight's first two dims holds the output channels.
        dtype: Of the parameters.
    """

    module: fx.GraphModule
    node: fx.Node
    weight: Tensor
    bias: Tensor
    output: int
    groups: int
    dtype: torch.dtype

    @property
    def input(self) -> int:
        """Which of the weight's first two dims holds the input channels."""
        return 1 - self.output

    def place(self, value: Tensor) -> int:
        """The dim along which the channels of its input or output lie."""
        return value.ndim - (self.weight.ndim - 1 if self.weight.ndim > 2 else 1)

    def channels(self, dim: int) -> int:
        """How many channels a dim of the weight stands for; dim 1 has those of one group."""
        return self.weight.shape[dim] * (self.groups if dim == 1 else 1)

    def along(self, values: Tensor, dim: int) -> Tensor:
        """One value for each channel (or one for all), in a shape that meets the weight along one of its first two dims."""
        values = values.expand(self.channels(dim))
        ones = [1] * (self.weight.ndim - 2)
        if dim == 0:
            return values.view(-1, 1, *ones)
        within = self.weight.shape[0] // self.groups
        repeated: Tensor = values.reshape(self.groups, -1).repeat_interleave(within, 0)
        return repeated.view(*self.weight.shape[:2], *ones)

    def rows(self, weight: Tensor, dim: int) -> Tensor:
        """The weights of each input or output channel as a row: ``(channels, weights)``."""
        if dim == 0:
            return weight.flatten(1)
        grouped: Tensor = weight.unflatten(0, (self.groups, -1))
        return grouped.transpose(1, 2).flatten(0, 1).flatten(1)

    @property
    def feels_shift_alike(self) -> bool:
        """Whether a constant added to its input adds a constant to its output, at the borders too."""
        if self.weight.ndim == 2:
            return True
        stride, padding = (argument(self.node, place, default) for place, default in ((3, 1), (4, 0)))
        pointwise = math.prod(self.weight.shape[2:]) == 1
        if self.node.target in TRANSPOSED:
            more = argument(self.node, 5, 0)
            return pointwise and _all(stride, 1) and _all(padding, 0) and _all(more, 0)
        return padding == "valid" or (padding == "same" and pointwise) or _all(padding, 0)

    def store(self) -> None:
        """Put weight and bias into the graph, in the dtype they came in; a weight of the same shape into its own memory."""
        held = self.node.args[1]
        assert isinstance(held, fx.Node)
        name = str(held.target)
        before = attribute(self.module, held)
        if before is not None and before.shape == self.weight.shape:
            before.copy_(self.weight)
        else:  # merged weights have other sizes
            set_tensor(self.module, name, nn.Parameter(self.weight.to(self.dtype)))
            held.meta = held.meta | {"val": torch.empty(self.weight.shape, dtype=self.dtype, device="meta")}
        if argument(self.node, 2, None) is None and not self.bias.any():
            return
        give_bias(self.module, self.node, name, self.bias.to(self.dtype))


def editable(module: fx.GraphModule, node: object, *, light: bool = False) -> Editable | None:
    """The layer of a node, ``light`` without numbers; None where it is no layer, or its weight is computed or shared."""
    if not isinstance(node, fx.Node) or node.target not in WEIGHTED:
        return None
    held, bias = node.args[1], argument(node, 2, None)
    weight = attribute(module, held)
    if weight is None or _uses(module, weight) > 1:
        return None
    groups = arguments(node).get("groups", 1)
    assert isinstance(groups, int)
    output = WEIGHTED[node.target]
    outputs = weight.shape[output] * (groups if output == 1 else 1)
    added = weight.new_zeros(outputs) if bias is None else attribute(module, bias)
    if added is None:
        return None
    dtype, device = torch.float64, "meta" if light else None
    return Editable(module, node, weight.to(device, dtype), added.to(device, dtype), output, groups, weight.dtype)


def attribute(module: fx.GraphModule, node: object) -> Tensor | None:
    """The parameter or buffer that a node reads; None where it reads none, or the network writes to it."""
    if not isinstance(node, fx.Node) or node.op != "get_attr" or any(r.target is aten.copy_.default for r in node.users):
        return None
    value = operator.attrgetter(str(node.target))(module)
    return value.detach() if isinstance(value, Tensor) else None


def _uses(module: fx.GraphModule, weight: Tensor) -> int:
    """How many read a weight, by whatever name."""
    held = [(n, attribute(module, n)) for n in module.graph.nodes if n.op == "get_attr" and n.users]
    return sum(len(n.users) for n, value in held if value is not None and value.data_ptr() == weight.data_ptr())


def argument(node: fx.Node, place: int, default: object) -> object:
    """A positional argument of an operation, where it was given."""
    return node.args[place] if len(node.args) > place else default


def _all(given: object, number: int) -> bool:
    return all(n == number for n in given) if isinstance(given, list | tuple) else given == number


def free_name(module: fx.GraphModule, wanted: str) -> str:
    """The name, with a number behind it where something in the graph reads that name already."""
    read = {str(n.target) for n in module.graph.nodes if n.op == "get_attr" and n.users}
    parts = {name for name, _ in module.named_modules()}
    names = (wanted, *(f"{wanted}_{i}" for i in range(1, len(read) + len(parts) + 2)))
    return next(name for name in names if name not in read and name not in parts)


def new_parameter(module: fx.GraphModule, before: fx.Node, name: str, value: Tensor) -> fx.Node:
    """Make a parameter, and the node that reads it."""
    set_tensor(module, name, nn.Parameter(value))
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(name)
    node.meta = {"val": value.to("meta")}
    return node


def give_bias(module: fx.GraphModule, layer: fx.Node, weight: str, value: Tensor) -> None:
    """Make a bias beside the weight of that name, which the layer adds instead of the one that it has, if any."""
    layer.args = (*layer.args[:2], None, *layer.args[3:])  # its own bias no longer counts as read
    owner = weight.rpartition(".")[0]
    name = free_name(module, f"{owner}.bias" if owner else f"{weight}_bias")
    layer.args = (*layer.args[:2], new_parameter(module, layer, name, value), *layer.args[3:])


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a parameter or buffer where ``name`` says, in the place of what was there, making the submodules on the way."""
    owner, _, leaf = name.rpartition(".")
    holder = module
    for part in owner.split(".") if owner else ():
        if not hasattr(holder, part):
            holder.add_module(part, nn.Module())
        holder = getattr(holder, part)
    if hasattr(holder, leaf):
        delattr(holder, leaf)
    if isinstance(value, nn.Parameter):
        holder.register_parameter(leaf, value)
    else:
        holder.register_buffer(leaf, value)
