"""Prepare a captured network for integers: the same function, with as little as possible between the layers."""

import torch
from torch import fx

from penjing.quant.constants import settle_weights
from penjing.quant.fold import fold, replace_by, scalings_to_convolutions
from penjing.quant.merge import merge
from penjing.quant.norms import norms_over_channels
from penjing.quant.targets import Target

aten = torch.ops.aten


def prepare(module: fx.GraphModule, target: Target) -> None:
    """Fold, merge and rewrite ``module`` in place; its function stays what it was."""
    settle_weights(module)
    fold(module)
    merge(module)
    fold(module)  # what stood behind a sum
    scalings_to_convolutions(module)
    _keep_dims(module)
    if target.channels_first:
        norms_over_channels(module)
    module.graph.lint()
    module.recompile()


def _keep_dims(module: fx.GraphModule) -> None:
    """Take means over whole maps with their dims, and flatten behind: kernels want four dims, and a grid right behind them."""
    for node in [n for n in module.graph.nodes if n.target is aten.mean.dim]:
        source, dims = node.args[:2]
        value, keep = source.meta["val"], node.args[2] if len(node.args) > 2 else False
        if keep or node.kwargs or value.ndim != 4 or sorted(d % 4 for d in dims or ()) != [2, 3]:
            continue
        with module.graph.inserting_before(node):
            mean = module.graph.call_function(aten.mean.dim, (source, dims, True))
            flat = module.graph.call_function(aten.flatten.using_ints, (mean, 1))
        mean.meta = dict(node.meta) | {"val": node.meta["val"][:, :, None, None]}
        flat.meta = dict(node.meta)
        replace_by(node, flat)
