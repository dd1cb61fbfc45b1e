"""Weights and biases that a network computes of constants, as weight norm and spectral norm do, taken as they come out."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from penjing.graph.walk import behind
from penjing.quant.editable import attribute, free_name, new_parameter
from penjing.quant.targets import WEIGHTED

PARTS = {1: "weight", 2: "bias"}  # of a layer, by their places among its arguments


def settle_weights(module: fx.GraphModule) -> None:
    """Give every layer whose weight or bias is computed of parameters and buffers a parameter with that value, in place."""
    layers = [n for n in module.graph.nodes if n.target in WEIGHTED]
    places = [(n, place) for n in layers for place in PARTS if _is_computed(n.args, place)]
    values = _constants(module) if places else {}
    for layer, place in places:
        part = layer.args[place]
        if part not in values:
            continue
        paths = [str(path) for path, _ in (layer.meta.get("nn_module_stack") or {}).values() if path]
        owner = paths[-1].removeprefix("L['self'].") if paths else layer.name
        name = free_name(module, f"{owner}.{PARTS[place]}")
        new = new_parameter(module, layer, name, values[part].contiguous().clone())
        new.meta |= {
            "val": part.meta["val"],
            "computed of": tuple(sorted({str(n.target) for n in behind(part) if n.op == "get_attr"})),
        }
        layer.update_arg(place, new)
    module.graph.eliminate_dead_code()


def _is_computed(arguments: tuple[object, ...], place: int) -> bool:
    part = arguments[place] if place < len(arguments) else None
    return isinstance(part, fx.Node) and part.op == "call_function"


@torch.no_grad()
def _constants(module: fx.GraphModule) -> dict[fx.Node, Any]:
    """The values that follow from the network's own tensors, the same at every call: tensors, or several at once."""
    found: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr" and (held := attribute(module, node)) is not None:
            found[node] = held
        by_chance = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node.op == "call_function" and not by_chance and all(n in found for n in node.all_input_nodes):
            args, named = (map_arg(given, found.__getitem__) for given in (node.args, node.kwargs))
            value = node.target(*args, **named)
            if all(isinstance(part, Tensor) for part in (value if isinstance(value, tuple) else [value])):
                found[node] = value
    return found
