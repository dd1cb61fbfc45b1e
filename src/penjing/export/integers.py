"""The integers of an ONNX file: weights and biases stored as what they are, and grids where runtimes want them."""

from typing import Any

import torch
from torch import Tensor

from penjing.export.proto import add_weight, attribute, drop_unread, insert, makers, weights

FEW = 64  # integers that are not worth packing


def store_integers(proto: Any) -> None:
    """Replace ``QuantizeLinear(weight)`` by the integers it gives, so that the file holds one byte a weight."""
    held = weights(proto)
    for node in [n for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in held]:
        weight, scale, zero = (_read(held[i]) for i in node.input[:3])
        axis = attribute(node, "axis", 1)
        shape = [-1 if d == axis else 1 for d in range(weight.ndim)] if scale.ndim else []
        limits = torch.iinfo(zero.dtype)
        # As torch's fake-quantize does it: multiply by the inverse, round half to even, then shift.
        integers = torch.round(weight * (1 / scale).view(shape)) + zero.view(shape)
        stored = integers.clamp(limits.min, limits.max).to(zero.dtype)
        proto.graph.node.remove(node)
        _store(proto, node.output[0], stored)


def _store(proto: Any, name: str, integers: Tensor) -> None:
    """Keep integers under that name: two in a byte where all have 4 bits, which a runtime widens when it loads the file."""
    from onnx import TensorProto, helper

    signed = integers.dtype == torch.int8
    low, high = (-8, 7) if signed else (0, 15)
    if integers.numel() < FEW or int(integers.min()) < low or int(integers.max()) > high:
        add_weight(proto, name, integers.numpy())
        return
    kind, wide = (TensorProto.INT4, TensorProto.INT8) if signed else (TensorProto.UINT4, TensorProto.UINT8)
    packed = helper.make_tensor(f"{name}.packed", kind, list(integers.shape), integers.flatten().tolist())
    proto.graph.initializer.append(packed)
    proto.graph.node.insert(0, helper.make_node("Cast", [packed.name], [name], name=packed.name, to=wide))
    _need_opset(proto, 21)  # the first that has 4-bit integers


def _need_opset(proto: Any, version: int) -> None:
    main = next(o for o in proto.opset_import if not o.domain)
    main.version = max(main.version, version)


def zeros_of_their_own(proto: Any) -> None:
    """Give every stored weight zero points that no other one has.

    torch keeps equal constants once. Where a matrix product shares its zeros with convolutions, OpenVINO keeps them, and with
    them the weights of all of these, in float, and runs none of them in integers.
    """
    from onnx import TensorProto

    held = weights(proto)
    computed = {o for n in proto.graph.node if n.op_type != "Cast" for o in n.output} | {i.name for i in proto.graph.input}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[0] not in computed:
            zero = TensorProto()
            zero.CopyFrom(held[node.input[2]])
            zero.name = node.input[2] = f"{node.input[0]}.zero_point"
            if zero.name not in held:  # else two read the same weight
                proto.graph.initializer.append(zero)
                held[zero.name] = zero


def grids_once(proto: Any) -> None:
    """Leave out a grid right behind the same one, as behind a slice that takes all: OpenVINO breaks down over two."""
    from onnx import numpy_helper

    held = {name: numpy_helper.to_array(t).tobytes() for name, t in weights(proto).items()}
    made = makers(proto)
    for node in [n for n in proto.graph.node if n.op_type == "DequantizeLinear"]:
        quantize = made.get(node.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        before = made.get(quantize.input[0])
        if before is None or before.op_type != "DequantizeLinear":
            continue
        if [held.get(i, i) for i in before.input[1:]] == [held.get(i, i) for i in quantize.input[1:]]:
            node.input[0] = before.input[0]
    drop_unread(proto)


def integer_biases(proto: Any) -> None:
    """Store the bias of an int8 Gemm as the int32 it is added as.

    ONNX Runtime does so itself for convolutions; a Gemm with a float bias it would run in float.
    """
    from onnx import helper

    held = weights(proto)
    made = makers(proto)
    for node in [n for n in proto.graph.node if n.op_type == "Gemm" and len(n.input) == 3 and n.input[2] in held]:
        sources = [made.get(i) for i in node.input[:2]]
        if not all(s is not None and s.op_type == "DequantizeLinear" for s in sources):
            continue
        scales = [_read(held[s.input[1]]) for s in sources if s is not None]
        scale = scales[0] * scales[1]
        bias = _read(held[node.input[2]])
        limits = torch.iinfo(torch.int32)
        stored = torch.round(bias.double() / scale.double()).clamp(limits.min, limits.max).to(torch.int32)
        names = [f"{node.name}.bias.{leaf}" for leaf in ("integers", "scale", "zero_point")]
        for name, value in zip(names, (stored, scale, torch.zeros_like(stored)), strict=True):
            add_weight(proto, name, value.numpy())
        node.input[2] = f"{node.name}.bias"
        dequantize = helper.make_node("DequantizeLinear", names, [node.input[2]], name=node.input[2], axis=0)
        insert(proto, dequantize, node)


def _read(stored: Any) -> Tensor:
    from onnx import numpy_helper

    return torch.from_numpy(numpy_helper.to_array(stored).copy())
