"""Zeros around a map, added by the convolution that reads it instead of by an operation of their own."""

from collections.abc import Mapping
from typing import Any

from penjing.export.proto import attribute, makers, weights


def pads_into_convolutions(proto: Any) -> None:
    """Give every constant padding with zeros to the convolution that alone reads it, in place, also over a grid between them.

    ONNX Runtime has no int8 padding: on networks that pad unevenly ("same", as TensorFlow does) it costs a quarter of the time.
    """
    from onnx import numpy_helper

    held = {name: numpy_helper.to_array(t) for name, t in weights(proto).items()}
    made = makers(proto)
    readers: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in proto.graph.output}
    for pad in [n for n in proto.graph.node if n.op_type == "Pad"]:
        sizes, chain = _zeros(pad, held), [pad]
        while sizes and len(readers.get(chain[-1].output[0], [])) == 1 and chain[-1].output[0] not in outputs:
            following = readers[chain[-1].output[0]][0]
            if following.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                break
            chain.append(following)
        (conv, *more) = readers.get(chain[-1].output[0], [None])
        before = made.get(pad.input[0])
        shown = any(n.output[0] in outputs for n in chain)  # somebody wants the padded map itself
        if not sizes or shown or conv is None or more or conv.op_type != "Conv" or chain[-1].output[0] != conv.input[0]:
            continue
        _add(conv, sizes)
        # Zero is on every grid, so it does not matter which comes first; and a second grid that is the first does nothing.
        again = len(chain) > 1 and before is not None and list(before.input[1:]) == list(chain[-1].input[1:])
        whole = again or len(chain) == 1
        (conv if whole else chain[1]).input[0] = pad.input[0]
        for node in chain if whole else [pad]:
            proto.graph.node.remove(node)


def _zeros(pad: Any, held: Mapping[str, Any]) -> list[int]:
    """How many zeros go before and behind each spatial dim, as ONNX orders them; empty where it pads anything else."""
    mode = attribute(pad, "mode", b"constant")
    given = held.get(pad.input[1]) if len(pad.input) > 1 else None
    value = held.get(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else None
    fixed = len(pad.input) < 3 or not pad.input[2] or value is not None
    if mode != b"constant" or given is None or not fixed or (value is not None and float(value.reshape(-1)[0]) != 0):
        return []
    sizes = [int(n) for n in given]
    half = len(sizes) // 2
    if len(pad.input) > 3 or min(sizes) < 0 or any(sizes[d] or sizes[half + d] for d in (0, 1)):
        return []
    return [*sizes[2:half], *sizes[half + 2 :]]


def _add(conv: Any, sizes: list[int]) -> None:
    from onnx import helper

    total = [a + b for a, b in zip(attribute(conv, "pads", [0] * len(sizes)), sizes, strict=True)]
    for old in [a for a in conv.attribute if a.name in ("pads", "auto_pad")]:
        conv.attribute.remove(old)
    conv.attribute.append(helper.make_attribute("pads", total))
