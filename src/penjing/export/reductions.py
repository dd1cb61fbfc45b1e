"""Reductions, and what stands before or behind them, written so that OpenVINO computes them rightly."""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from penjing.export.pools import sizes
from penjing.export.proto import add_weight, attribute, insert, makers, weights

MOVES = ("Slice", "Split", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Pad", "Relu", "Identity")
EXTREMES = ("ReduceMax", "ReduceMin", "GlobalMaxPool")
NOTHING = 1e-30  # a bias that adds nothing to any value, and that no runtime removes


def biases_in_one_dimension(proto: Any) -> None:
    """Give every int8 convolution of one dimension that has no bias, or zeros, one that changes nothing, in place.

    OpenVINO (2026.4, CPU) moves the scales of such a convolution behind a mean, sum or maximum over its positions, and mixes
    them up there as soon as the batch is larger than 1. A bias between the two holds them where they are.
    """
    from onnx import numpy_helper

    held = weights(proto)
    integers = {n.output[0] for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    for node in proto.graph.node:
        shape = sizes(proto, node.output[0])
        if node.op_type != "Conv" or node.input[1] not in integers or len(shape) != 3:
            continue
        stored = held.get(node.input[2]) if len(node.input) > 2 else None
        if stored is not None and numpy_helper.to_array(stored).any():
            continue
        name = f"{node.output[0]}.bias"
        add_weight(proto, name, np.full(shape[1], NOTHING, np.float32))
        del node.input[2:]
        node.input.append(name)


def apart(proto: Any, runtime: str) -> None:
    """Put something that changes nothing where OpenVINO (2026.4, CPU) goes wrong with grids, in place.

    Behind every maximum and minimum over positions or channels: it runs a grid that follows inside of these, and gives wrong
    values. Before every shuffle of channels into positions that reads integers: it cannot move the zero point of joined values
    through. Behind concatenations of integers and floats that a product of two values reads: it finds no kernel for these where
    the processor computes in bfloat16. In files for it, before grouped convolutions of three dimensions that read values with a
    zero point, which it gets wrong; they run in float then. Additions, products and ReLUs it fuses as well, but not a maximum
    of two values.
    """
    from onnx import TensorProto

    if not any(n.op_type == "QuantizeLinear" for n in proto.graph.node):
        return
    values = (*proto.graph.value_info, *proto.graph.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    decoded = {n.output[0]: n for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    shifted, multiplied = _shifted(proto), _multiplied(proto)
    for node in list(proto.graph.node):
        mixed = node.op_type == "Concat" and node.output[0] in multiplied and len({i in decoded for i in node.input}) == 2
        if (node.op_type in EXTREMES and node.output[0] in floats) or mixed:
            given = node.output[0]
            node.output[0] = f"{given}.found"
            _insert(proto, node, node.output[0], given, behind=True)
        elif node.input and (decoding := decoded.get(node.input[0])) is not None:
            wrong = runtime == "openvino" and _is_grouped_in_3d(node) and decoding.input[2] in shifted
            if node.op_type == "DepthToSpace" or wrong:
                given = node.input[0]
                node.input[0] = f"{node.output[0]}.apart"
                _insert(proto, node, given, node.input[0], behind=False)


def products_in_float(proto: Any) -> None:
    """Put something that changes nothing before products of two values in integers, in place, so that they run in float.

    OpenVINO (2026.4, CPU) multiplies what grids of 8 bits give as integers, and without VNNI their sums overflow: weights can
    have a bit less, values cannot.
    """
    made, held = makers(proto), weights(proto).keys()
    for node in [n for n in proto.graph.node if n.op_type == "MatMul"]:
        if all(_is_decoded(made, held, name) for name in node.input):
            given, node.input[0] = node.input[0], f"{node.output[0]}.apart"
            _insert(proto, node, given, node.input[0], behind=False)


def _is_decoded(made: Mapping[str, Any], held: Set[str], name: str) -> bool:
    """Whether a value comes from integers that are computed, perhaps moved in between."""
    node = made.get(name)
    if node is None:
        return False
    if node.op_type == "DequantizeLinear":
        return node.input[0] not in held
    return node.op_type in (*MOVES, "Einsum", "Concat") and any(_is_decoded(made, held, i) for i in node.input)


def _shifted(proto: Any) -> set[str]:
    """The zero points that are not 0."""
    from onnx import numpy_helper

    scalars = [t for t in proto.graph.initializer if not t.dims]
    return {t.name for t in scalars if numpy_helper.to_array(t).any()}


def _multiplied(proto: Any) -> set[str]:
    """The values that products of two values read, perhaps moved or clipped in between."""
    made = makers(proto)
    seen = [i for n in proto.graph.node if n.op_type == "MatMul" for i in n.input]
    for name in seen:
        if name in made and made[name].op_type in MOVES and made[name].input[0] not in seen:
            seen.append(made[name].input[0])
    return set(seen)


def _is_grouped_in_3d(node: Any) -> bool:
    return node.op_type == "Conv" and attribute(node, "group", 1) > 1 and len(attribute(node, "kernel_shape", ())) == 3


def _insert(proto: Any, beside: Any, source: str, made: str, *, behind: bool) -> None:
    """The maximum of a value and of what is below all."""
    from onnx import helper

    least = f"{made}.least"
    add_weight(proto, least, np.array(-np.inf, np.float32))
    node = helper.make_node("Max", [source, least], [made], name=f"{made}.apart")
    insert(proto, node, beside, behind=behind)
