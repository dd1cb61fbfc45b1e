"""Bias correction: means that are equal, by definition."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from penjing.quant.correct import correct_bias_from_means
from penjing.quant.insert import layers
from penjing.quant.lockstep import parameter
from penjing.zoo import ZOO
from tests.quant.pairs import Pair, Seen, pair


def channel_means(y: Tensor) -> Tensor:
    return y.double().movedim(1, 0).flatten(1).mean(1)


def shifts(both: Pair, x: Tensor) -> dict[str, float]:
    """For each layer how far the means of its channels are off, as a share of the spread of its output."""
    wanted, found = Seen(both.reference, x).values, Seen(both.module, x).values
    off = {}
    for layer in layers(both.module):
        name = layer.node.name
        means = [channel_means(v[name]) for v in (wanted, found)]
        off[name] = float((means[0] - means[1]).abs().max() / wanted[name].double().std())
    return off


def means_of(both: Pair, x: Tensor) -> dict[str, Tensor]:
    """Of each channel of each value, as calibration finds them."""
    seen = Seen(both.reference, x).values
    return {n: channel_means(v).to(v) for n, v in seen.items() if isinstance(v, Tensor) and v.ndim > 1}


SINGLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 5), (12,)),
    "without a bias": (lambda: nn.Linear(12, 5, bias=False), (12,)),
    "flattened": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 5)), (4, 6)),
    "pointwise": (lambda: nn.Conv2d(6, 8, 1, bias=False), (6, 5, 5)),
    "grouped": (lambda: nn.Conv2d(6, 8, 1, groups=2), (6, 5, 5)),
    "many groups": (lambda: nn.Conv1d(6, 6, 1, groups=3), (6, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), (6, 5, 5)),
}


@pytest.mark.parametrize("name", SINGLE)
def test_of_one_layer_without_padding_the_means_become_those_of_the_float_layer(name: str) -> None:
    make, shape = SINGLE[name]
    torch.manual_seed(0)
    x = torch.randn(32, *shape) + 1
    both = pair(make().eval(), x, weight_bits=3, value_bits=None)
    (layer,) = layers(both.module)
    wanted, found = (channel_means(Seen(net, x).values[layer.node.name]) for net in (both.reference, both.module))
    before = parameter(both.module, layer.bias).double() if layer.bias else torch.zeros_like(wanted)
    correct_bias_from_means(both.module, means_of(both, x))
    (layer,) = layers(both.module)
    bias = parameter(both.module, str(layer.bias)).double()
    torch.testing.assert_close(bias, before + wanted - found, rtol=1e-4, atol=1e-5)
    assert (before - bias).abs().max() > 1e-3
    with torch.no_grad():  # the code that the graph was made into is that of the graph
        torch.testing.assert_close(both.module(x), Seen(both.module, x).values[layer.node.name])


def test_it_brings_a_network_nearer() -> None:
    make, shape = ZOO["resnet20"]
    torch.manual_seed(0)
    x = torch.randn(32, *shape).abs()
    both = pair(make(), x, weight_bits=3)
    before = shifts(both, x)
    correct_bias_from_means(both.module, means_of(both, x))
    after = shifts(both, x)
    assert sum(after.values()) < 0.6 * sum(before.values())


def test_what_lies_on_its_grid_is_not_shifted_again() -> None:
    make, shape = ZOO["mobilenet"]
    x = torch.randn(8, *shape)
    both = pair(make(), x, weight_bits=4)
    for layer in layers(both.module):
        weight = parameter(both.module, layer.weight)
        weight.data.copy_(layer.grid.nearest(weight.data))
    before = copy.deepcopy(both.module.state_dict())
    correct_bias_from_means(both.module, means_of(both, x))
    after = both.module.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


class Rows(nn.Module):
    """A linear layer on ``(samples, places, features)``, as many places as features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


def test_layers_whose_channels_are_not_in_dim_1_are_left_alone() -> None:
    x = torch.randn(8, 6, 6) + 1
    both = pair(Rows(), x, weight_bits=2)
    before = copy.deepcopy(both.module.state_dict())
    correct_bias_from_means(both.module, means_of(both, x))
    assert all(torch.equal(v, both.module.state_dict()[k]) for k, v in before.items())
