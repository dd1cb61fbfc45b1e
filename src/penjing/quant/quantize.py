"""Post-training quantization: read, fold, place, calibrate, and put torch's own fake-quantize operations into the graph.

What comes out is a trainable module; the export writes the same graph, so what is trained is what ships.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx, nn

from penjing.errors import entry
from penjing.graph import as_inputs, capture, check_weights
from penjing.quant.calibrate import Seen, calibrate
from penjing.quant.fold import fold_batch_norm
from penjing.quant.grids import GRIDS, Grid, blocked, counts
from penjing.quant.insert import insert_grid, tensor
from penjing.quant.observers import OBSERVERS
from penjing.quant.place import Placement, place
from penjing.quant.scheme import Scheme
from penjing.quant.targets import Target, target_named
from penjing.task import Inputs


def quantize(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    calibration: Iterable[Inputs],
    *,
    target: str = "onnxruntime",
    scheme: Scheme | None = None,
) -> fx.GraphModule:
    """An integer version of ``model`` in fake-quantized float: int8 weights and values, placed as the target wants them.

    Args:
        example: Inputs as the model takes them; only their shapes matter.
        calibration: Batches of inputs (no labels); a few hundred images do.
        target: The runtime it is for; its profile says where the grids go.
        scheme: How many bits, which grids, how they are found.

    Raises:
        DataError: ``calibration`` is empty, or makes a value that is not finite.
        ModelError: The model cannot be read, or its weights are not finite.
        RecipeError: The target is not known.
    """
    profile, scheme = target_named(target), scheme or Scheme()
    check_weights(model)
    module = capture(model, as_inputs(example)).module
    fold_batch_norm(module)
    placement = place(module, profile, exclude=scheme.exclude)
    seen, _ = calibrate(module, calibration, placement.values, entry(OBSERVERS, scheme.observer, "observer"), set())
    insert_weights(module, placement, scheme, profile)
    insert_values(module, placement, seen, scheme)
    module.graph.lint()
    module.recompile()
    return module


def insert_weights(module: fx.GraphModule, placement: Placement, scheme: Scheme, target: Target) -> None:
    """Give the weights of every placed layer their grids, in place."""
    names = list(placement.weights)
    edges = {names[0], names[-1]} if names else set()
    nodes = {n.name: n for n in module.graph.nodes}
    done: set[str] = set()
    for name, axis in placement.weights.items():
        weight = nodes[name].args[1]
        if weight.name in done:
            continue
        done.add(weight.name)
        bits = min(target.weight_bits, scheme.edge_bits if name in edges else scheme.weight_bits)
        insert_grid(module, weight, weight.name, weight_grid(tensor(module, weight).detach(), axis, bits, scheme))


def weight_grid(weight: Tensor, axis: int, bits: int, scheme: Scheme) -> Grid:
    """The grid of a weight; ``axis`` is the dim of its output channels."""
    parts = counts(weight.shape, axis, scheme.block)
    rows = blocked(weight, parts)
    observer = entry(OBSERVERS, scheme.weight_observer, "observer")()
    observer.update(rows)
    low, high = observer.limits()
    return GRIDS[scheme.weights](low.view(parts), high.view(parts), rows.mean(1).view(parts), bits)


def insert_values(module: fx.GraphModule, placement: Placement, seen: dict[str, Seen], scheme: Scheme) -> None:
    """Give every placed value its grid, in place."""
    nodes = {n.name: n for n in module.graph.nodes}
    for name, shared in placement.values.items():
        low, high = (v.reshape(()) for v in seen[shared].observer.limits())
        grid = GRIDS[scheme.values](low, high, torch.tensor(seen[shared].mean), scheme.value_bits)
        insert_grid(module, nodes[name], shared, grid)
