"""Keep the mean of every channel: what rounding shifts it by goes into the bias (Nagel et al. 2019, arXiv:1906.04721, 4.2).

By the means of the inputs, which costs nothing but holds only for the rounding of the layer's own weight.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from penjing.graph.layers import TRANSPOSED
from penjing.graph.walk import arguments
from penjing.quant.editable import free_name, give_bias, new_parameter
from penjing.quant.insert import Layer, layers, tensor, value_grid
from penjing.quant.learned import settle, trained_steps
from penjing.quant.lockstep import own, parameter, unquantized

aten = torch.ops.aten


def correct_bias_from_means(module: fx.GraphModule, means: Mapping[str, Tensor]) -> None:
    """Take ``(V - W) E[x]`` from the bias of each layer whose weight ``W`` becomes ``V`` on its grid.

    Exact in the mean where the layer's windows see all positions alike, which padding at the borders breaks a little. Weights
    that lie on their grid already shift nothing. Layers without a bias get one. Left alone are layers that share their bias
    or read no known mean, and linear layers on more than ``(samples, features)``.

    Args:
        module: A quantized network, changed in place.
        means: ``{node name: (channels,)}``: of each channel (dim 1) of the values that layers read, by the nodes that give
            them before they are quantized; see ``calibrate``.
    """
    known = [layer for layer in layers(module) if _source(layer).name in means and _is_plain(module, layer)]
    _add_biases(module, known)
    for layer in layers(module):
        if layer.node.name in {k.node.name for k in known} and own(module, str(layer.bias)):
            weight = parameter(module, layer.weight).detach()
            error = layer.grid.nearest(weight) - weight  # exact in float, or nearly: both are close
            _shift(module, layer, -_through(layer, error, means[_source(layer).name].double()))


def separate_biases(module: fx.GraphModule) -> None:
    """Give each layer a bias of its own where layers share one, in place: what it should be depends on what each reads."""
    for layer in layers(module):
        node = layer.node
        bias = node.args[2] if len(node.args) > 2 else None
        if isinstance(bias, fx.Node) and bias.op == "get_attr" and not own(module, str(bias.target)):
            name = free_name(module, str(bias.target))
            added = new_parameter(module, node, name, tensor(module, bias).detach().clone())
            node.args = (*node.args[:2], added, *node.args[3:])
            if not bias.users:
                module.graph.erase_node(bias)


def round_biases(module: fx.GraphModule) -> None:
    """Round biases to what int8 kernels add: 32-bit integers, in steps of the product of both scales; in place.

    A runtime does so anyway; done here, the module computes what the file computes (arXiv:1712.05877, 2.4).
    """
    for layer in layers(module):
        source = layer.node.args[0]
        grid = value_grid(module, source) if isinstance(source, fx.Node) else None
        if layer.bias is None or grid is None or not own(module, layer.bias):
            continue
        bias, scales = parameter(module, layer.bias), layer.grid.scale.double().flatten()
        if len(scales) in (1, len(bias)):  # blocks of input channels have no integer kernel
            step = grid.scale.double() * scales
            bias.data = ((bias.detach().double() / step).round() * step).to(bias.dtype)


def round_trained_biases(module: fx.GraphModule) -> None:
    """The same for a network in training, whose grids may be learned; one without grids is left alone."""
    settled = settle(module) if trained_steps(module) else module
    round_biases(settled)
    rounded = {layer.bias for layer in layers(settled)} & {name for name, _ in module.named_parameters()}
    for name in rounded if settled is not module else ():
        parameter(module, str(name)).data.copy_(parameter(settled, str(name)))


def _source(layer: Layer) -> fx.Node:
    read = layer.node.args[0]
    assert isinstance(read, fx.Node)
    return unquantized(read)


def _is_plain(module: fx.GraphModule, layer: Layer) -> bool:
    """Whether dim 1 of what the layer reads holds its channels, and dim 0 samples."""
    return bool(_source(layer).meta["val"].ndim == parameter(module, layer.weight).ndim)


def _through(layer: Layer, weight: Tensor, mean: Tensor) -> Tensor:
    """The mean output of a layer with that weight and no bias: ``(outputs,)``."""
    if layer.node.target is aten.linear.default:
        return weight.double() @ mean
    given = arguments(layer.node)
    groups: int = given["groups"]
    taps = weight.flatten(2).sum(2, dtype=torch.float64)
    if layer.node.target not in TRANSPOSED:
        return _grouped(taps.view(groups, -1, taps.shape[1]), mean)
    # Each input is spread over as many outputs as the stride makes of it.
    rank = weight.ndim - 2
    stride = given["stride"]
    spread: int = math.prod(stride) ** (rank // len(stride))
    return _grouped(taps.view(groups, -1, taps.shape[1]).mT, mean) / spread


def _grouped(weight: Tensor, mean: Tensor) -> Tensor:
    """``weight (groups, outputs, inputs)`` times what each group reads."""
    return (weight @ mean.view(len(weight), -1, 1)).flatten()


@torch.no_grad()
def _shift(module: fx.GraphModule, layer: Layer, by: Tensor) -> None:
    bias = parameter(module, str(layer.bias))
    bias.copy_(bias.double() + by.to(bias.device))


def _add_biases(module: fx.GraphModule, chosen: Sequence[Layer]) -> None:
    """Give the layers without a bias one of zeros."""
    missing = [layer for layer in chosen if layer.bias is None]
    for layer in missing:
        weight = parameter(module, layer.weight)
        outputs = weight.shape[layer.axis] * (arguments(layer.node).get("groups", 1) if layer.axis else 1)
        give_bias(module, layer.node, layer.weight, weight.detach().new_zeros(outputs))
    if missing:
        module.graph.lint()
        module.recompile()
