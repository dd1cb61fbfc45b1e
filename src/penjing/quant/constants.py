"""Weights that a network computes of constants alone, as weight norm and spectral norm do, taken as what comes out."""

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from penjing.quant.editable import attribute, free_name, new_parameter
from penjing.quant.targets import WEIGHTED


def settle_weights(module: fx.GraphModule) -> None:
    """Give every layer whose weight is computed of parameters and buffers a parameter with that value, in place."""
    for layer in [n for n in module.graph.nodes if n.target in WEIGHTED]:
        weight = layer.args[1]
        if not isinstance(weight, fx.Node) or weight.op != "call_function" or not _is_constant(module, weight):
            continue
        with torch.no_grad():
            value = _value(module, weight)
        paths = [str(path) for path, _ in (layer.meta.get("nn_module_stack") or {}).values() if path]
        owner = paths[-1].removeprefix("L['self'].") if paths else layer.name
        new = new_parameter(module, layer, free_name(module, f"{owner}.weight"), value.contiguous().clone())
        new.meta["val"] = weight.meta["val"]
        layer.args = (layer.args[0], new, *layer.args[2:])
    module.graph.eliminate_dead_code()


def _is_constant(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a value follows from the network's own tensors, the same at every call."""
    if node.op == "get_attr":
        return attribute(module, node) is not None
    by_chance = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    sources = node.all_input_nodes
    return node.op == "call_function" and bool(sources) and not by_chance and all(_is_constant(module, n) for n in sources)


def _value(module: fx.GraphModule, node: fx.Node) -> Tensor:
    if node.op == "get_attr":
        held = attribute(module, node)
        assert held is not None
        return held
    args, named = (map_arg(given, lambda n: _value(module, n)) for given in (node.args, node.kwargs))
    found: Tensor = node.target(*args, **named)  # type: ignore[operator, arg-type]
    return found
