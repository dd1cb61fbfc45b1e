"""Bias correction: means that are equal, by definition; and the cheap form against the thorough one."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from penjing.errors import DataError
from penjing.quant.correct import correct_bias, correct_bias_from_means
from penjing.quant.insert import layers
from penjing.quant.lockstep import channel_dim, parameter
from penjing.zoo import ZOO
from tests.quant.pairs import Pair, Seen, pair


def shifts(both: Pair, x: Tensor) -> dict[str, float]:
    """For each layer how far the means of its channels are off, as a share of the spread of its output."""
    wanted, found = Seen(both.reference, x).values, Seen(both.module, x).values
    off = {}
    for layer in layers(both.module):
        name, dim = layer.node.name, channel_dim(layer.node, parameter(both.module, layer.weight))
        means = [v[name].double().movedim(dim, 0).flatten(1).mean(1) for v in (wanted, found)]
        off[name] = float((means[0] - means[1]).abs().max() / wanted[name].double().std())
    return off


class Sequences(nn.Module):
    """Linear layers on ``(samples, places, features)`` and a transposed convolution; no biases, a weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8, bias=False)
        self.up = nn.ConvTranspose1d(6, 4, 3, stride=2, groups=2, bias=False)
        self.out = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.inner(torch.relu(self.inner(x))))  # (N, 6, 8)
        out: Tensor = self.out(torch.relu(self.up(y)).mean(2))
        return out


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{name: ZOO[name] for name in ("mobilenet", "densenet")},
    "sequences": (Sequences, (6, 8)),
}


@pytest.mark.parametrize("name", NETS)
def test_the_means_of_all_layers_become_those_of_the_float_network(name: str) -> None:
    make, shape = NETS[name]
    torch.manual_seed(0)
    x = torch.randn(24, *shape) + 0.5
    both = pair(make(), x, weight_bits=3, value_bits=5)
    assert max(shifts(both, x).values()) > 1e-2
    correct_bias(both.reference, both.module, [(x[:16],), (x[16:],)])
    off = shifts(both, x)
    assert len(off) > 3
    assert max(off.values()) < 1e-5
    assert all(layer.bias is not None for layer in layers(both.module))
    with torch.no_grad():  # the code that the graph was made into is that of the graph
        torch.testing.assert_close(both.module(x), Seen(both.module, x).values[output_of(both.module)])


def output_of(module: fx.GraphModule) -> str:
    (read,) = module.graph.output_node().all_input_nodes
    return read.name


def means_of(both: Pair, x: Tensor) -> dict[str, Tensor]:
    """Of each channel of each value, as calibration finds them."""
    seen = Seen(both.reference, x).values
    return {n: v.movedim(1, 0).flatten(1).mean(1) for n, v in seen.items() if isinstance(v, Tensor) and v.ndim > 1}


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
def test_for_one_layer_without_padding_the_means_of_its_inputs_tell_the_same(name: str) -> None:
    make, shape = SINGLE[name]
    torch.manual_seed(0)
    model = make().eval()
    x = torch.randn(32, *shape) + 1
    both = pair(model, x, weight_bits=3, value_bits=None)
    other = copy.deepcopy(both.module)
    correct_bias(both.reference, both.module, [(x,)])
    correct_bias_from_means(other, means_of(both, x))
    (one,), (two,) = layers(both.module), layers(other)
    thorough, cheap = parameter(both.module, str(one.bias)), parameter(other, str(two.bias))
    torch.testing.assert_close(cheap, thorough, rtol=1e-4, atol=1e-5)
    before = dict(model.named_parameters()).get("bias", torch.zeros_like(cheap))
    assert before.shape != cheap.shape or (before - cheap).abs().max() > 1e-3


def test_the_cheap_form_brings_a_network_nearer() -> None:
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


def test_no_data_is_an_error() -> None:
    x = torch.randn(4, 6, 6)
    both = pair(Rows(), x, weight_bits=4)
    with pytest.raises(DataError, match="empty"):
        correct_bias(both.reference, both.module, [])
