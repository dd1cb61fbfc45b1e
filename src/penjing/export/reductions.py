"""Reductions over one-dimensional maps, written so that every runtime computes them rightly."""

from typing import Any

from penjing.export.pools import rank

LAST = "axes.last"  # the initializer that says which


def reduce_in_four_dims(proto: Any) -> None:
    """Let every reduction over the last of three dims see a fourth, of size one, in place.

    OpenVINO (2026.4, CPU) gives wrong values for a mean, a sum or a maximum over the output of an int8 convolution of one
    dimension that has a scale of every channel fused into it, as from a batch norm behind an activation, as soon as the batch
    is larger than 1. In four dims it does not, unless shapes are fixed when it loads the file.
    """
    from onnx import helper, numpy_helper

    held = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        if (
            node.op_type.startswith("Reduce")
            and len(node.input) == 2
            and node.input[1] in held
            and rank(proto, node.input[0]) == 3
        ):
            axes = sorted(int(a) % 3 for a in held[node.input[1]].flatten())
            if 2 in axes:
                found.append((node, axes))
    for node, axes in found:
        at = list(proto.graph.node).index(node)
        given, made = node.input[0], node.output[0]
        node.input[0], node.output[0], node.input[1] = f"{made}.wide", f"{made}.reduced", f"{made}.axes"
        proto.graph.initializer.append(helper.make_tensor(node.input[1], 7, [len(axes)], axes))
        proto.graph.node.insert(at + 1, helper.make_node("Squeeze", [node.output[0], LAST], [made], name=f"{made}.squeeze"))
        proto.graph.node.insert(at, helper.make_node("Unsqueeze", [given, LAST], [node.input[0]], name=node.input[0]))
    if found:
        proto.graph.initializer.append(helper.make_tensor(LAST, 7, [1], [-1]))
