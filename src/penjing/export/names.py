"""Call the layers of a file what they are called in the network, so that what a runtime tells of them can be understood."""

import re
from collections import Counter
from typing import Any

from torch import fx

from penjing.graph.layers import layer_name
from penjing.quant.insert import weight_name
from penjing.quant.targets import PRODUCTS, WEIGHTED

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def name_layers(proto: Any, module: fx.GraphModule) -> dict[str, str]:
    """Rename the nodes of convolutions and linear layers; give ``{name: why it is in float}`` of those that are.

    Layers come in the same order in both. What else is written as products, as attention is, keeps its names. Where the number
    of layers differs (a runtime's form of one layer may take two nodes), all do.
    """
    ours = [n for n in module.graph.nodes if n.target in WEIGHTED or n.target in PRODUCTS]
    others = {str(n.target) for n in module.graph.nodes} - {str(n.target) for n in ours}
    theirs = [n for n in proto.graph.node if n.op_type in LAYERS and _operation(n) not in others]
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


def _operation(node: Any) -> str:
    """What torch's exporter wrote a node for; empty where it was not the exporter, or another release of it."""
    told = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.fx_node"), "")
    found = re.search(r"\[target=torch\.ops\.([\w.]+)\]", told)
    return found[1] if found else ""
