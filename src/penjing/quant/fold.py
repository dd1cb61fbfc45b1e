"""Fold what scales and shifts channel by channel into the weights of the layer before or after it, where nothing lies between.

``y = scale * x + shift``, with one constant for each channel, is what a batch norm does in eval mode; so do a layer scale
(arXiv:2103.17239), the normalization of an image, and any product with a constant or sum with one. All arithmetic is float64.
"""

from collections.abc import Container
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from penjing.graph import own_tensors
from penjing.quant.editable import argument, attribute, editable, free_name, new_parameter

aten = torch.ops.aten
SCALING = "a scaling"  # marks, in the ``meta`` of a node, what only stands for one
NORM = aten.batch_norm.default
CONVOLUTIONS = {3: aten.conv1d.default, 4: aten.conv2d.default}  # by the dims of a value
_DROPOUTS = frozenset({aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default})
_CHECKS = frozenset({aten._assert_tensor_metadata.default})  # of what the export saw; they count as readers
_VIEWS = frozenset(  # of a constant: it stays one
    {
        aten.alias.default,
        aten.clone.default,
        aten.detach.default,
        aten.flatten.using_ints,
        aten.lift_fresh_copy.default,
        aten.permute.default,
        aten.reshape.default,
        aten.squeeze.dim,
        aten.unsqueeze.default,
        aten.view.default,
    }
)


@dataclass(frozen=True)
class Scaling:
    """``y = scale * x + shift``, channel by channel.

    Attributes:
        source: The node that gives ``x``.
        scale: float64, ``()`` or ``(channels,)``.
        shift: The same.
        dim: The dim of ``x`` that holds the channels; None where one number serves all.
    """

    source: fx.Node
    scale: Tensor
    shift: Tensor
    dim: int | None

    @property
    def does_nothing(self) -> bool:
        return bool((self.scale == 1).all() and (self.shift == 0).all())


def fold(module: fx.GraphModule) -> None:
    """Rewrite ``module`` in place: one layer with other weights, for a layer and what scales its output or its input.

    Behind a layer all of it folds. In front of one, the scale always does; a shift only where the layer pads no zeros, since
    these would have to be shifted too; what cannot fold whole stays whole. Nothing folds over an activation, a concatenation
    or whatever else lies between, nor into a layer whose output has a second reader, or whose weight is shared or computed;
    over ``permute`` and ``transpose`` alone it does. What does nothing (a dropout in eval mode, a product with 1) is removed.
    """
    _drop_idle(module)
    for node in list(module.graph.nodes):
        scaling = read_scaling(module, node)
        if scaling and (scaling.does_nothing or _into_layer_before(module, scaling)):
            replace_by(node, scaling.source)
    for node in reversed(list(module.graph.nodes)):
        scaling = read_scaling(module, node)
        if scaling and _into_layer_after(module, node, scaling):
            replace_by(node, scaling.source)
    tidy(module)


def scalings_to_convolutions(module: fx.GraphModule) -> None:
    """Put a depthwise convolution of one tap in the place of every batch norm of 3-D and 4-D values that is left, in place.

    A norm behind a concatenation and before a ReLU (arXiv:1608.06993) folds into nothing, and runtimes run it in float;
    a convolution has an int8 kernel, and the ReLU behind it can run inside that. Of 3-D values, whatever else scales or shifts
    channels is replaced too: behind an int8 convolution of one dimension OpenVINO computes it wrongly (``export.reductions``).
    """
    for node in list(module.graph.nodes):
        scaling = read_scaling(module, node)
        if scaling is None or not (node.target is NORM or _is_of_channels_in_3d(node, scaling)):
            continue
        if node.meta["val"].ndim not in CONVOLUTIONS:
            continue
        ones = [1] * (node.meta["val"].ndim - 2)
        channels, dtype = node.meta["val"].shape[1], node.meta["val"].dtype
        owner = str(node.args[3].target).rpartition(".")[0] if node.target is NORM else ""
        owner = owner or node.name
        with module.graph.inserting_before(node):
            conv = module.graph.call_function(CONVOLUTIONS[node.meta["val"].ndim], (scaling.source,))
        conv.meta = dict(node.meta) | ({SCALING: True} if len(ones) == 2 else {})
        replace_by(node, conv)
        held = []
        for leaf, value, shape in (("weight", scaling.scale, (channels, 1, *ones)), ("bias", scaling.shift, (channels,))):
            name = free_name(module, f"{owner}.{leaf}")
            held.append(new_parameter(module, conv, name, value.expand(channels).reshape(shape).to(dtype)))
        conv.args = (scaling.source, *held, ones, [0] * len(ones), ones, channels)
    tidy(module)


def convolutions_to_scalings(module: fx.GraphModule, kept: Container[str] = ()) -> None:
    """Undo ``scalings_to_convolutions`` of 4-D values in place, but for the nodes that are named: in float that is faster."""
    for node in [n for n in module.graph.nodes if is_scaling(n) and n.name not in kept]:
        source, weight, bias = node.args[:3]
        value = source
        for operation, held in ((aten.mul.Tensor, weight), (aten.add.Tensor, bias)):
            number = attribute(module, held)
            assert number is not None
            shape = (-1, *[1] * (node.meta["val"].ndim - 2))
            placed = new_parameter(module, node, f"{held.target}_along", number.reshape(shape).clone())
            with module.graph.inserting_before(node):
                value = module.graph.call_function(operation, (value, placed))
            value.meta = {k: v for k, v in node.meta.items() if k != SCALING}
        replace_by(node, value)
    tidy(module)


def is_scaling(node: fx.Node) -> bool:
    """Whether a convolution stands for a norm; what was put behind it says so in its ``meta`` as well."""
    return SCALING in node.meta and node.target in CONVOLUTIONS.values()


def _is_of_channels_in_3d(node: fx.Node, scaling: Scaling) -> bool:
    return node.meta["val"].ndim == 3 and node.meta["val"].shape == scaling.source.meta["val"].shape and scaling.dim == 1


def read_scaling(module: fx.GraphModule, node: fx.Node) -> Scaling | None:
    """What a node multiplies and adds; None where it does anything else, or what it takes is no constant."""
    found = _read_norm(module, node) if node.target is NORM else _read_arithmetic(module, node)
    if found is None or not (found.scale.isfinite().all() and found.shift.isfinite().all()):
        return None
    before, after = (n.meta.get("val") for n in (found.source, node))
    if not (isinstance(before, Tensor) and isinstance(after, Tensor) and before.dtype == after.dtype):
        return None
    return found if before.is_floating_point() else None


def _read_norm(module: fx.GraphModule, norm: fx.Node) -> Scaling | None:
    source, *held, training, _, eps, _ = norm.args
    given = [_constant(module, a) for a in held]
    if training or any(value is None and node is not None for value, node in zip(given, held, strict=True)):
        return None
    gamma, beta, mean, variance = given
    assert isinstance(source, fx.Node)
    assert isinstance(eps, float)
    assert mean is not None
    assert variance is not None
    scale = (variance + eps).rsqrt() * (1 if gamma is None else gamma)
    return Scaling(source, scale, (0 if beta is None else beta) - mean * scale, 1)


def _read_arithmetic(module: fx.GraphModule, node: fx.Node) -> Scaling | None:
    kinds = {
        aten.add.Tensor: 1.0,
        aten.sub.Tensor: -1.0,
        aten.rsub.Scalar: -1.0,
        aten.mul.Tensor: None,
        aten.div.Tensor: None,
    }
    if node.target not in kinds:
        return None
    first, second = node.args[:2] if node.target is not aten.rsub.Scalar else node.args[1::-1]
    constants = [_constant(module, a) for a in (first, second)]
    source = first if constants[0] is None else second
    constant = constants[1] if constants[0] is None else constants[0]
    if not isinstance(source, fx.Node) or constant is None or None not in constants:
        return None
    placed = _per_channel(constant, source)
    if placed is None:
        return None
    value, dim = placed
    sign = kinds[node.target]
    if sign is None:
        if node.target is aten.div.Tensor and source is second:
            return None
        return Scaling(source, value if node.target is aten.mul.Tensor else 1 / value, value.new_zeros(()), dim)
    times = sign * float(node.kwargs.get("alpha", argument(node, 2, 1)))  # type: ignore[arg-type]  # a number
    if source is first:
        return Scaling(source, value.new_ones(()), times * value, dim)
    return Scaling(source, value.new_tensor(times), value, dim)


def _per_channel(constant: Tensor, value: fx.Node) -> tuple[Tensor, int | None] | None:
    """A constant as ``()`` or ``(channels,)``, and the dim of ``value`` it runs along; None if there are more."""
    seen = value.meta.get("val")
    if not isinstance(seen, Tensor) or constant.ndim > seen.ndim:
        return None
    varying = [d for d, n in enumerate(constant.shape) if n > 1]
    if not varying:
        return constant.reshape(()), None
    dim = varying[0] + seen.ndim - constant.ndim
    size = seen.shape[dim]
    if len(varying) > 1 or not isinstance(size, int) or size != constant.numel():
        return None
    return constant.flatten(), dim


def _into_layer_before(module: fx.GraphModule, scaling: Scaling) -> bool:
    found, dim = scaling.source, scaling.dim
    while len(found.users) == 1 and found.target in (aten.permute.default, aten.transpose.int):
        dim = moved_from(found, dim) if dim is not None else None
        found = found.all_input_nodes[0]
    layer = editable(module, found) if len(found.users) == 1 else None
    if layer is None or dim not in (None, layer.place(found.meta["val"])):
        return False
    layer.weight *= layer.along(scaling.scale, layer.output)
    layer.bias = layer.bias * scaling.scale + scaling.shift
    layer.store()
    return True


def _into_layer_after(module: fx.GraphModule, node: fx.Node, scaling: Scaling) -> bool:
    reader = next(iter(node.users), None)
    layer = editable(module, reader) if len(node.users) == 1 else None
    if layer is None or scaling.dim not in (None, layer.place(node.meta["val"])):
        return False
    if scaling.shift.any() and not layer.feels_shift_alike:
        return False
    layer.bias = layer.bias + layer.rows(layer.weight * layer.along(scaling.shift, layer.input), layer.output).sum(1)
    layer.weight *= layer.along(scaling.scale, layer.input)
    layer.store()
    return True


def moved_from(node: fx.Node, dim: int) -> int:
    """The dim of its input that a ``permute`` or ``transpose`` puts at ``dim``."""
    order = list(range(node.meta["val"].ndim))
    if node.target is aten.permute.default:
        order = [d % len(order) for d in node.args[1]]  # type: ignore[union-attr,operator,misc]  # a list of numbers
    else:
        one, two = node.args[1:3]
        order[one], order[two] = order[two], order[one]  # type: ignore[index]  # numbers
    return order[dim]


def _drop_idle(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if node.target in _CHECKS:
            module.graph.erase_node(node)
        elif (node.target in _DROPOUTS and node.args[2] is False) or _keeps_type(node):
            replace_by(node, node.all_input_nodes[0])


def _keeps_type(node: fx.Node) -> bool:
    """Whether a node casts a value to the type it has."""
    plain = node.target is aten.to.dtype and len(node.args) == 2 and not node.kwargs
    return plain and bool(node.all_input_nodes[0].meta["val"].dtype == node.args[1])


def replace_by(node: fx.Node, instead: fx.Node) -> None:
    """Let all who read a node read another one, and take it out of the graph."""
    node.replace_all_uses_with(instead)
    node.graph.erase_node(node)


def tidy(module: fx.GraphModule) -> None:
    """Drop nodes, parameters and buffers that nothing reads any more, in place."""
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    read = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    for name in own_tensors(module):
        owner, _, leaf = name.rpartition(".")
        if not any(name == path or name.startswith(f"{path}.") for path in read):
            delattr(module.get_submodule(owner), leaf)
    module.graph.lint()
    module.recompile()


def _constant(module: fx.GraphModule, given: object) -> Tensor | None:
    """A number, a parameter, a buffer or a view of one, float64; None where it is computed, or written to."""
    if isinstance(given, int | float):
        return torch.tensor(float(given), dtype=torch.float64)
    if not isinstance(given, fx.Node) or given.op == "get_attr":
        value = attribute(module, given)
        return None if value is None or value.is_complex() else value.double()
    if given.target not in _VIEWS or len(given.all_input_nodes) > 1:
        return None
    value = _constant(module, given.args[0])
    assert callable(given.target)
    return None if value is None else given.target(value, *given.args[1:], **given.kwargs)
