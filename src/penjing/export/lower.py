"""Bring a quantized graph into the integers that ONNX has: grids of fewer than 8 bits become 8-bit ones of the same values."""

import torch
from torch import Tensor, fx, nn

from penjing.quant.editable import new_parameter, set_tensor
from penjing.quant.insert import FIXED, SLICES, read_weight, tensor

aten = torch.ops.aten
SIGNED, UNSIGNED = (-128, 127), (0, 255)


def lower(module: fx.GraphModule) -> None:
    """Rewrite ``module`` in place, so that every grid has 8 bits and every output is what it was.

    A weight is replaced by its value on the grid, which lies on the wider grid as well. A value is clipped to the ends of its
    grid first.
    """
    for node in [n for n in module.graph.nodes if n.target in FIXED]:
        low, high = node.args[-2:]
        wide = UNSIGNED if low >= 0 else SIGNED
        held = read_weight(node)
        if held is not None:
            _settle_weight(module, node, held)
        elif (low, high) != wide:
            _clip(module, node)
        node.args = (*node.args[:-2], *wide)
    module.graph.eliminate_dead_code()
    module.recompile()


def _settle_weight(module: fx.GraphModule, fake: fx.Node, held: fx.Node) -> None:
    """Store the weight as it comes out of its grid, in the shape that the operation reads it in."""
    parameter: Tensor = tensor(module, held)
    scale, zero = (tensor(module, n) for n in fake.args[1:3])
    source = fake.args[0]
    assert isinstance(source, fx.Node)
    viewed = parameter.detach() if source is held else parameter.detach().view(source.args[1])  # type: ignore[arg-type]
    along = (fake.args[3],) if fake.target is SLICES else ()
    settled: Tensor = fake.target(viewed, scale, zero, *along, *fake.args[-2:])  # type: ignore[operator]
    if source is held:
        set_tensor(module, str(held.target), nn.Parameter(settled))
    else:
        fake.replace_input_with(source, new_parameter(module, fake, f"{held.target}_blocks", settled))


def _clip(module: fx.GraphModule, fake: fx.Node) -> None:
    """Cut what the grid cannot hold, before the wider one would."""
    source = fake.args[0]
    assert isinstance(source, fx.Node)
    scale, zero = (tensor(module, n) for n in fake.args[1:3])
    ends = [float((end - zero) * scale) for end in fake.args[-2:]]  # type: ignore[operator]
    with module.graph.inserting_before(fake):
        clipped = module.graph.call_function(aten.clamp.default, (source, *ends))
    clipped.meta = dict(source.meta)
    fake.replace_input_with(source, clipped)
