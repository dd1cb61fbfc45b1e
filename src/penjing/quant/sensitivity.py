"""How much each layer's integers cost: the error at the network's output when that layer alone is quantized.

"A practical mixed precision algorithm for post-training quantization" (Pandey et al. 2023, arXiv:2302.05397). No labels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from penjing import ranks
from penjing.errors import DataError
from penjing.progress import Progress, silent
from penjing.quant.apart import Apart, decibels, noise_share
from penjing.quant.insert import FIXED, Layer, layers
from penjing.score.flow import Batch


def sensitivity(
    module: fx.GraphModule, batches: Sequence[Batch], *, apart: Apart = noise_share, progress: Progress = silent
) -> dict[str, float]:
    """How near the output stays, in dB, when one layer alone has its grids: low is sensitive.

    Args:
        module: What ``quantize`` gave, with fixed grids.
        batches: A few samples; each layer costs one run of the network on all of them. Of several processes each takes
            its share of the layers, and all get everything.
        apart: What is told: by default the ratio of signal to noise.

    Returns:
        ``{layer's node name: dB}``, lowest first; infinite where the layer's grids change nothing.

    Raises:
        DataError: There is no batch.
    """
    if not batches:
        raise DataError("sensitivity needs at least one batch of inputs")
    found = list(layers(module))
    with torch.no_grad():
        exact = [_outputs(module, frozenset(), b) for b in batches]
        mine = {}
        with progress("sensitivity", len(found)) as advance:
            for layer in ranks.own(found):
                grids = _grids_of(layer)
                mine[layer.node.name] = decibels(apart(exact, [_outputs(module, grids, b) for b in batches]))
                advance(layer.node.name)
    every = {name: value for share in ranks.gathered(mine) for name, value in share.items()}
    return {layer.node.name: every[layer.node.name] for layer in sorted(found, key=lambda layer: every[layer.node.name])}


def _grids_of(layer: Layer) -> frozenset[fx.Node]:
    """The operations that quantize what the layer reads and its weight."""
    sources = [a for a in layer.node.args[:2] if isinstance(a, fx.Node)]
    weight = layer.node.args[1]
    if isinstance(weight, fx.Node) and weight.target not in FIXED:  # blocks are viewed back
        sources += weight.all_input_nodes
    return frozenset(n for n in sources if n.target in FIXED)


def _outputs(module: fx.GraphModule, active: frozenset[fx.Node], batch: Batch) -> list[Tensor]:
    return [y for y in tree_leaves(_Partly(module, active).run(*batch)) if isinstance(y, Tensor) and y.is_floating_point()]


class _Partly(fx.Interpreter):
    """The network with some of its grids; the others let values pass."""

    def __init__(self, module: fx.GraphModule, active: frozenset[fx.Node]) -> None:
        super().__init__(module)
        self.active = active

    def run_node(self, n: fx.Node) -> Any:
        if n.target in FIXED and n not in self.active:
            source = n.args[0]
            assert isinstance(source, fx.Node)
            return self.env[source]
        return super().run_node(n)
