"""Layers that stay in float between integers, written so that ONNX Runtime leaves them in float."""

from typing import Any

import numpy as np

from penjing.export.proto import add_weight, attribute, insert, makers, weights

LAYERS = ("Conv", "ConvTranspose", "Gemm")
MOVES = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Expand", "Identity", "Split")


def keep_floats(proto: Any) -> None:
    """Hide from ONNX Runtime that float layers read values that were integers, in place.

    Where such a layer reads what one scale decodes, the runtime (1.32) rounds its weights to 8 bits with one scale for all
    channels, when it loads the file, whether or not the layer runs in integers then. So each reads what a scale of every
    channel decodes, all of them equal; and what is only moved in between, as by a pool, passes a clip without bounds, beyond
    which the runtime does not move the decoding.
    """
    from onnx import helper

    held = weights(proto)
    made = makers(proto)
    for node in [n for n in proto.graph.node if n.op_type in LAYERS]:
        weight = made.get(node.input[1])
        if weight is not None and weight.op_type == "DequantizeLinear":
            continue
        direct: Any = made.get(node.input[0])
        source: Any = direct
        while source is not None and source.op_type in MOVES:
            source = made.get(source.input[0])
        if source is None or source.op_type != "DequantizeLinear" or source.input[1] not in held:
            continue
        given, node.input[0] = node.input[0], f"{node.output[0]}.floats"
        channels = _channels(node, held)
        if source is direct and channels:
            grid = [_of_each(proto, held[name], channels) for name in source.input[1:]]
            guard = helper.make_node("DequantizeLinear", [source.input[0], *grid], [node.input[0]], name=node.input[0], axis=1)
        else:
            guard = helper.make_node("Clip", [given], [node.input[0]], name=node.input[0])
        insert(proto, guard, node)


def _channels(node: Any, held: dict[str, Any]) -> int:
    """How many channels a layer reads; 0 where its weight is computed in the file."""
    if node.input[1] not in held:
        return 0
    outputs, inputs, *_ = held[node.input[1]].dims
    if node.op_type == "Conv":
        return int(inputs * attribute(node, "group", 1))
    return int(inputs if attribute(node, "transB") else outputs)


def _of_each(proto: Any, one: Any, channels: int) -> str:
    """The number of that name once for each channel; its new name."""
    from onnx import numpy_helper

    name = f"{one.name}.{channels}"
    if all(t.name != name for t in proto.graph.initializer):
        value = numpy_helper.to_array(one)
        add_weight(proto, name, np.full(channels, value, value.dtype))
    return name
