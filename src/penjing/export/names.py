"""Call the layers of a file what they are called in the network, so that what a runtime tells of them can be understood."""

from collections import Counter
from typing import Any

from torch import fx

from penjing.graph.layers import layer_name
from penjing.quant.insert import weight_name
from penjing.quant.targets import PRODUCTS, WEIGHTED

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def name_layers(proto: Any, module: fx.GraphModule) -> dict[str, str]:
    """Rename the nodes of convolutions and linear layers; give ``{name: why it is in float}`` of those that are.

    Layers come in the same order in both. Where their number differs (a runtime's form of one layer may take two nodes), names
    stay as they are.
    """
    ours = [n for n in module.graph.nodes if n.target in WEIGHTED or n.target in PRODUCTS]
    theirs = [n for n in proto.graph.node if n.op_type in LAYERS]
    if len(ours) != len(theirs):
        return {}
    why: dict[str, str] = module.meta.get("reasons", {layer.name: "the file is in float" for layer in ours})
    seen: Counter[str] = Counter()
    reasons = {}
    for layer, node in zip(ours, theirs, strict=True):
        name = layer_name(weight_name(layer)) or layer.name
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}:{seen[name]}"
        if layer.name in why:
            reasons[node.name] = why[layer.name]
    return reasons
