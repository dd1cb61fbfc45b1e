"""Fold batch normalization into the convolution or linear layer before it, where nothing else reads in between."""

import operator

import torch
from torch import Tensor, fx, nn

from penjing.quant.targets import WEIGHTED

NORM = torch.ops.aten.batch_norm.default


def fold_batch_norm(module: fx.GraphModule) -> None:
    """Rewrite ``module`` in place: ``norm(conv(x))`` becomes one convolution with other weights.

    A norm that follows anything else (an activation, a concatenation, a convolution with a second reader or a shared
    weight) stays where it is.
    """
    for norm in [n for n in module.graph.nodes if n.target is NORM]:
        layer = norm.args[0]
        weight = layer.args[1] if layer.target in WEIGHTED else None
        if weight is None or weight.op != "get_attr" or len(layer.users) > 1 or _uses(module, weight) > 1:
            continue
        if _groups(layer) > 1 and WEIGHTED[layer.target]:
            continue
        _fold(module, layer, norm)
        norm.replace_all_uses_with(layer)
        module.graph.erase_node(norm)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def _fold(module: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> None:
    gamma, beta, mean, variance = (_tensor(module, a) for a in norm.args[1:5])
    assert mean is not None
    assert variance is not None
    eps = norm.args[7]
    assert isinstance(eps, float)
    scale = (variance.double() + eps).rsqrt() * (1 if gamma is None else gamma.double())
    weight, bias = _tensor(module, layer.args[1]), _tensor(module, layer.args[2] if len(layer.args) > 2 else None)
    assert weight is not None
    shape = [1] * weight.ndim
    shape[WEIGHTED[layer.target]] = -1
    shift = (0 if bias is None else bias.double()) - mean.double()
    new_bias = shift * scale + (0 if beta is None else beta.double())
    assert isinstance(layer.args[1], fx.Node)
    name = str(layer.args[1].target)
    set_tensor(module, name, nn.Parameter((weight.double() * scale.view(shape)).to(weight.dtype)))
    bias_name = name.rpartition(".")[0] + ".bias" if "." in name else f"{name}_bias"
    set_tensor(module, bias_name, nn.Parameter(new_bias.to(weight.dtype)))
    with module.graph.inserting_before(layer):
        added = module.graph.get_attr(bias_name)
    added.meta = dict(layer.args[1].meta)
    layer.args = (*layer.args[:2], added, *layer.args[3:])


def _tensor(module: fx.GraphModule, node: object) -> Tensor | None:
    if not isinstance(node, fx.Node):
        return None
    value: Tensor = operator.attrgetter(str(node.target))(module)
    return value.detach()


def _uses(module: fx.GraphModule, weight: fx.Node) -> int:
    same = [n for n in module.graph.nodes if n.op == "get_attr" and n.target == weight.target]
    return sum(len(n.users) for n in same)


def _groups(layer: fx.Node) -> int:
    groups = layer.args[6] if len(layer.args) > 6 else 1
    assert isinstance(groups, int)
    return groups


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a parameter or buffer where ``name`` says, making the submodules on the way."""
    owner, _, leaf = name.rpartition(".")
    holder = module
    for part in owner.split(".") if owner else ():
        if not hasattr(holder, part):
            holder.add_module(part, nn.Module())
        holder = getattr(holder, part)
    if isinstance(value, nn.Parameter):
        holder.register_parameter(leaf, value)
    else:
        holder.register_buffer(leaf, value)
