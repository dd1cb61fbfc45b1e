"""Look into the graph of an ONNX file, and change it: what several rewritings of files need."""

from typing import Any

import numpy as np


def weights(proto: Any) -> dict[str, Any]:
    """What is stored in the file, by name."""
    return {t.name: t for t in proto.graph.initializer}


def makers(proto: Any) -> dict[str, Any]:
    """The operation that gives each value."""
    return {o: n for n in proto.graph.node for o in n.output}


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """A setting of an operation; ``default`` where it has none of that name."""
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def add_weight(proto: Any, name: str, value: np.ndarray) -> None:
    """Store an array under that name."""
    from onnx import numpy_helper

    proto.graph.initializer.append(numpy_helper.from_array(value, name))


def insert(proto: Any, new: Any, beside: Any, *, behind: bool = False) -> None:
    """Put an operation right before another one, or right behind it."""
    proto.graph.node.insert(list(proto.graph.node).index(beside) + behind, new)


def drop_unread(proto: Any) -> None:
    """Leave out the operations and weights that nothing reads any more and that are no output; a runtime would run them."""
    used = {o.name for o in proto.graph.output}
    for node in reversed(list(proto.graph.node)):
        if used.isdisjoint(node.output):
            proto.graph.node.remove(node)
        else:
            used |= _reads(node)
    for held in [t for t in proto.graph.initializer if t.name not in used]:
        proto.graph.initializer.remove(held)


def _reads(node: Any) -> set[str]:
    """What an operation reads, its branches and bodies too."""
    inner = [n for a in node.attribute for graph in (a.g, *a.graphs) for n in graph.node]
    outputs = {o.name for a in node.attribute for graph in (a.g, *a.graphs) for o in graph.output}
    return set(node.input) | outputs | {name for n in inner for name in _reads(n)}
