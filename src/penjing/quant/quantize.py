"""Post-training quantization: read, fold, place, calibrate, and put torch's own fake-quantize operations into the graph.

What comes out is a trainable module; the export writes the same graph, so what is trained is what ships.
"""

import copy
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from penjing.errors import DataError
from penjing.graph import as_inputs, capture, check_weights
from penjing.quant.fold import fold_batch_norm, set_tensor
from penjing.quant.grids import Grid, affine, symmetric
from penjing.quant.place import Placement, place
from penjing.quant.targets import target_named
from penjing.task import Inputs, as_tuple

aten = torch.ops.aten
Range = tuple[float, float]
FAKE_QUANTIZE = {
    True: aten.fake_quantize_per_tensor_affine.tensor_qparams,  # one scale in all
    False: aten.fake_quantize_per_channel_affine.default,
}


def quantize(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    calibration: Iterable[Inputs],
    *,
    target: str = "onnxruntime",
) -> fx.GraphModule:
    """An int8 version of ``model`` in fake-quantized float: int8 weights for each output channel, min-max uint8 values.

    Args:
        example: Inputs as the model takes them; only their shapes matter.
        calibration: Batches of inputs (no labels); a few hundred images do.
        target: The runtime it is for; its profile says where the grids go.

    Raises:
        DataError: ``calibration`` is empty, or makes a value that is not finite.
        ModelError: The model cannot be read, or its weights are not finite.
        RecipeError: The target is not known.
    """
    profile = target_named(target)
    check_weights(model)
    module = capture(model, as_inputs(example)).module
    fold_batch_norm(module)
    placement = place(module, profile)
    ranges = value_ranges(module, calibration, set(placement.values))
    insert_grids(module, placement, ranges)
    return module


def value_ranges(module: fx.GraphModule, batches: Iterable[Inputs], names: set[str]) -> dict[str, Range]:
    """The least and greatest of each named value over the batches.

    Raises:
        DataError: There is no batch, or a value is not finite.
    """
    watch = _Watch(module, names)
    with torch.no_grad():
        for inputs in batches:
            watch.run(*as_tuple(inputs))
    if not watch.batches:
        raise DataError("calibration is empty: it yields no batch; give a few hundred images")
    for name, (low, high) in watch.ranges.items():
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise DataError(f"calibration makes {name} range from {low} to {high}; look for NaN or infinity in the images")
    return watch.ranges


class _Watch(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self.names, self.ranges, self.batches = names, dict[str, Range](), 0

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.batches += 1
        return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            low, high = (float(v) for v in torch.aminmax(value))
            before = self.ranges.get(n.name, (low, high))
            # NaN compares false with everything: let it win, so that it is reported.
            self.ranges[n.name] = (low if not low >= before[0] else before[0], high if not high <= before[1] else before[1])
        return value


def insert_grids(module: fx.GraphModule, placement: Placement, ranges: dict[str, Range]) -> None:
    """Put a fake-quantize operation behind every placed weight and value, in place."""
    nodes = {n.name: n for n in module.graph.nodes}
    for name, axis in placement.weights.items():
        weight: Tensor = operator.attrgetter(str(nodes[name].target))(module)
        _insert(module, nodes[name], name, symmetric(weight, axis))
    members: dict[str, list[Range]] = {}
    for name, shared in placement.values.items():
        members.setdefault(shared, []).append(ranges[name])
    for name, shared in placement.values.items():
        lows, highs = zip(*members[shared], strict=True)
        _insert(module, nodes[name], shared, affine(min(lows), max(highs)))
    module.graph.lint()
    module.recompile()


def _insert(module: fx.GraphModule, node: fx.Node, grid_name: str, grid: Grid) -> None:
    readers = list(node.users)
    graph, after, held = module.graph, node, []
    for leaf, value in (("scale", grid.scale), ("zero_point", grid.zero_point)):
        name = f"grids.{grid_name}.{leaf}"
        set_tensor(module, name, value)
        with graph.inserting_after(after):
            after = graph.get_attr(name)
        held.append(after)
    with graph.inserting_after(after):
        each = () if grid.axis is None else (grid.axis,)
        quantized = graph.call_function(FAKE_QUANTIZE[grid.axis is None], (node, *held, *each, grid.low, grid.high))
    quantized.meta = copy.copy(node.meta)
    for reader in readers:
        reader.replace_input_with(node, quantized)
