"""The weights that may be cut one by one: those of convolutions and linear layers, all seen in one shape."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from penjing.errors import ModelError, RecipeError
from penjing.graph.layers import KINDS, TRANSPOSED
from penjing.graph.walk import arguments

_GRIDS = ("fake_quantize", "lsq", "aten.view")  # what stands between a weight and its layer where it has a grid


@dataclass(frozen=True)
class LayerWeight:
    """The weight of a convolution or linear layer.

    Attributes:
        name: Of the parameter.
        shape: ``(O, I / groups, k...)``; transposed convolutions have ``(I, O / groups, k...)``.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    groups: int = 1

    def by_output(self, value: Tensor) -> Tensor:
        """A tensor of the weight's shape, seen as outputs, inputs within the group, places in the kernel: ``(O, I, K)``."""
        if not self.transposed:
            return value.reshape(*self.shape[:2], -1)
        grouped = value.reshape(self.groups, self.shape[0] // self.groups, self.shape[1], -1)
        return grouped.transpose(1, 2).flatten(0, 1)

    def as_stored(self, value: Tensor) -> Tensor:
        """From ``(O, I, K)`` back to the weight's shape."""
        if self.transposed:
            value = value.reshape(self.groups, self.shape[1], self.shape[0] // self.groups, -1).transpose(1, 2)
        return value.reshape(self.shape)


def layer_weights(model: nn.Module, exclude: Sequence[str] = ()) -> tuple[LayerWeight, ...]:
    """The weights of the convolutions and linear layers, shared ones once; biases, norms and embeddings are not among them.

    In a graph, such as ``quantize`` gives, they are found by the operations that read them.

    Args:
        exclude: Patterns (``"head.*"``) of parameter names, or one, to leave out.

    Raises:
        RecipeError: A pattern fits no such weight.
        ModelError: None are left.
    """
    found = tuple(_in_graph(model) if isinstance(model, fx.GraphModule) else _in_modules(model))
    patterns = (exclude,) if isinstance(exclude, str) else exclude
    for pattern in patterns:
        if not any(fnmatch(w.name, pattern) for w in found):
            near = found[0].name if found else "none"
            raise RecipeError(f"exclude pattern {pattern!r} fits no weight of a layer; their names look like {near!r}")
    left = tuple(w for w in found if not any(fnmatch(w.name, p) for p in patterns))
    if not left:
        why = "exclude leaves none" if found else "it has no convolution or linear layer with a weight of its own"
        raise ModelError(f"{type(model).__name__} has no weights to cut: {why}")
    return left


def _in_modules(model: nn.Module) -> Iterator[LayerWeight]:
    names = {id(p): name for name, p in model.named_parameters()}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if isinstance(module, nn.Linear | _ConvNd) and weight is not None and id(weight) in names:
            transposed, groups = isinstance(module, _ConvTransposeNd), getattr(module, "groups", 1)
            yield LayerWeight(names.pop(id(weight)), tuple(weight.shape), transposed, groups)


def _in_graph(model: fx.GraphModule) -> Iterator[LayerWeight]:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for node in model.graph.nodes:
        if node.target not in KINDS:
            continue
        weight = node.args[1]
        while weight.op == "call_function" and any(word in str(weight.target) for word in _GRIDS):
            weight = weight.args[0]
        if weight.op == "get_attr" and weight.target in shapes:
            groups = arguments(node).get("groups", 1)
            yield LayerWeight(str(weight.target), shapes.pop(weight.target), node.target in TRANSPOSED, groups)
