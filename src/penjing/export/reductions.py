"""Reductions, and what stands before or behind them, written so that OpenVINO computes them rightly."""

from typing import Any

from penjing.export.pools import sizes

EXTREMES = ("ReduceMax", "ReduceMin", "GlobalMaxPool")
NOTHING = 1e-30  # a bias that adds nothing to any value, and that no runtime removes


def biases_in_one_dimension(proto: Any) -> None:
    """Give every int8 convolution of one dimension that has no bias, or zeros, one that changes nothing, in place.

    OpenVINO (2026.4, CPU) moves the scales of such a convolution behind a mean, sum or maximum over its positions, and mixes
    them up there as soon as the batch is larger than 1. A bias between the two holds them where they are.
    """
    import numpy as np
    from onnx import numpy_helper

    held = {t.name: t for t in proto.graph.initializer}
    integers = {n.output[0] for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    for node in proto.graph.node:
        shape = sizes(proto, node.output[0])
        if node.op_type != "Conv" or node.input[1] not in integers or len(shape) != 3:
            continue
        stored = held.get(node.input[2]) if len(node.input) > 2 else None
        if stored is not None and numpy_helper.to_array(stored).any():
            continue
        name = f"{node.output[0]}.bias"
        proto.graph.initializer.append(numpy_helper.from_array(np.full(shape[1], NOTHING, np.float32), name))
        del node.input[2:]
        node.input.append(name)


def extremes_apart(proto: Any) -> None:
    """Put something that changes nothing behind every maximum and minimum over positions or channels, in place.

    OpenVINO (2026.4, CPU) runs a grid that comes behind one inside it, and gives wrong values. It does so with additions,
    products and ReLUs as well, but not with a maximum of two values.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    if not any(n.op_type == "QuantizeLinear" for n in proto.graph.node):
        return
    floats = {
        v.name for v in (*proto.graph.value_info, *proto.graph.output) if v.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    for node in [n for n in proto.graph.node if n.op_type in EXTREMES and n.output[0] in floats]:
        (given,) = node.output
        least, found = f"{given}.least", f"{given}.found"
        proto.graph.initializer.append(numpy_helper.from_array(np.array(np.finfo(np.float32).min), least))
        node.output[0] = found
        apart = helper.make_node("Max", [found, least], [given], name=f"{node.name}.apart")
        proto.graph.node.insert(list(proto.graph.node).index(node) + 1, apart)
