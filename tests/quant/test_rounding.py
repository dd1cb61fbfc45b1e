"""Rounding layer by layer: what is written lies on the grids, fits the data better, and makes up for errors before it."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from penjing.errors import DataError
from penjing.graph import Graph
from penjing.progress import silent
from penjing.quant.codes import flipped, gptq_codes
from penjing.quant.insert import layers
from penjing.quant.lockstep import parameter
from penjing.quant.rounding import AdaRound, LayerByLayer, adaround, blocks, gptq, problem_of
from penjing.score.gram import Moments
from penjing.score.products import products
from tests.quant.pairs import Pair, Seen, pair

TINY = 1e-5  # no pull towards the float weights to speak of


def images(samples: int, *shape: int) -> Tensor:
    """Neighbors are alike, as in images."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, *shape, generator=generator)
    return x + x.roll(1, -1) + x.roll(2, -1) + 5 * x.mean(1, keepdim=True)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 6), (12,)),
    "on sequences": (lambda: nn.Linear(12, 6, bias=False), (5, 12)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding="same"), (4, 12)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (4, 8, 8)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2), (4, 8, 8)),
    "grouped": (lambda: nn.Conv2d(8, 6, 3, groups=2), (8, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(3, 5, 2), (3, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1), (4, 5, 5)),
    "transposed in groups": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, groups=2, output_padding=1), (4, 9)),
}


def off(both: Pair, module: fx.GraphModule, x: Tensor) -> float:
    """Squared error of the output, as a share of that of rounding to the nearest."""
    with torch.no_grad():
        wanted, nearest, found = both.reference(x), both.module(x), module(x)
    return float((found - wanted).square().mean() / (nearest - wanted).square().mean())


def rounded(both: Pair, rounding: Callable[..., None], x: Tensor) -> fx.GraphModule:
    module = copy.deepcopy(both.module)
    rounding(both.reference, module, [(part,) for part in x.split(24)], silent)
    return module


@pytest.mark.parametrize(("quantizer", "most"), [(gptq_codes, 1.0), (AdaRound(steps=20), 0.95)])
@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer_fits_better_than_the_nearest(name: str, quantizer: Callable[..., Tensor], most: float) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    x = images(64, *shape)
    both = pair(make(), x, weight_bits=3, value_bits=None)
    module = rounded(both, LayerByLayer(quantizer=quantizer, ridges=(TINY,)), x)
    assert off(both, module, x) < most


def on_grid(module: fx.GraphModule) -> list[str]:
    """The layers whose weights are changed by their fake-quantize operation, in any bit."""
    weights = [(layer, parameter(module, layer.weight).detach()) for layer in layers(module)]
    return [layer.weight for layer, w in weights if not torch.equal(layer.grid.nearest(w), w)]


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_lie_on_their_grid_bit_by_bit(bits: int, block: int) -> None:
    torch.manual_seed(0)
    x = images(32, 4, 6, 6)
    both = pair(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 2)), x, weight_bits=bits, block=block)
    assert len(on_grid(both.module)) == 2
    for rounding in (gptq, LayerByLayer(quantizer=AdaRound(steps=10))):
        module = rounded(both, rounding, x)
        assert on_grid(module) == []
        seen = Seen(module, x).values  # what torch's own operation makes of them
        for layer in layers(module):
            assert torch.equal(seen[layer.node.args[1].name], parameter(module, layer.weight))


def test_the_error_that_is_minimized_is_that_of_the_output() -> None:
    """On the layer's own rows, up to a constant, with the bias that suits the weight best."""
    torch.manual_seed(0)
    x = images(40, 5)
    both = pair(nn.Linear(5, 3), x, weight_bits=3, value_bits=None)
    (layer,) = layers(both.module)
    (product,) = products(Graph(both.reference, (x,), dynamic=True)).values()
    weight, bias = (parameter(both.reference, n).detach() for n in ("weight", "bias"))
    wanted = (x @ weight.T + bias).double()
    moments = Moments()
    moments.add(torch.cat([x, torch.ones(40, 1)], 1)[None], wanted[None].float())
    problem = problem_of(product, layer.grid, weight, bias, moments, ridge=0.1)
    mean_square = x.double().square().mean()

    def loss(codes: Tensor) -> Tensor:
        value = problem.decode(codes)[0]
        y = x.double() @ value.T
        error = wanted - y - (wanted - y).mean(0)
        return error.square().mean(0) + 0.1 * mean_square * (value - weight).square().sum(1)

    one, other = problem.encode(problem.target), problem.encode(problem.target) + torch.eye(3, 5)
    expected = problem.errors(one)[0] - problem.errors(other)[0]
    torch.testing.assert_close(loss(one) - loss(other), expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().min() > 1e-3


def test_the_bias_takes_up_the_mean() -> None:
    torch.manual_seed(0)
    x = images(48, 4, 6, 6) + 1
    both = pair(nn.Conv2d(4, 6, 3), x, weight_bits=2, value_bits=3)
    module = rounded(both, gptq, x)
    with torch.no_grad():
        wanted, found, nearest = (m(x).mean((0, 2, 3)) for m in (both.reference, module, both.module))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (nearest - wanted).abs().max() > 1e-2


class Sum(nn.Module):
    """A block whose shortcut is known before its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu(self.first(x))
        return self.last(y) + y


def test_layers_make_up_for_the_errors_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = images(64, 4, 6, 6)
    both = pair(Sum(), x, weight_bits=3, value_bits=4)
    whole = off(both, rounded(both, LayerByLayer(quantizer=gptq_codes, ridges=(1e-3,)), x), x)
    monkeypatch.setattr("penjing.quant.rounding.added", lambda _node: None)
    alone = off(both, rounded(both, LayerByLayer(quantizer=gptq_codes, ridges=(1e-3,)), x), x)
    assert whole < 0.95 * alone


class Twice(nn.Module):
    """One weight read twice, one alone, and a bias that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.alone, self.other = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.bias = self.alone.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.other(F.relu(self.alone(self.twice(F.relu(self.twice(x))))))
        return out


@pytest.mark.parametrize("rounding", [gptq, replace(blocks, steps=20)])
def test_what_is_shared_is_left_alone(rounding: Callable[..., None]) -> None:
    torch.manual_seed(0)
    x = images(32, 6)
    both = pair(Twice(), x, weight_bits=3)
    before, after = both.module.state_dict(), rounded(both, rounding, x).state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {"alone.weight", "other.weight"}


def test_the_same_data_gives_the_same_bits_and_leaves_chance_alone() -> None:
    torch.manual_seed(0)
    x = images(40, 4, 20, 20)  # more places than are looked at
    both = pair(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)), x, weight_bits=3)
    state = torch.get_rng_state()
    once, again = (rounded(both, gptq, x).state_dict() for _ in range(2))
    assert all(torch.equal(v, again[k]) for k, v in once.items())
    assert torch.equal(state, torch.get_rng_state())


def test_moves_after_gptq_help_on_the_data() -> None:
    torch.manual_seed(0)
    x = images(64, 24)
    both = pair(nn.Linear(24, 16), x, weight_bits=2, value_bits=None)
    plain = off(both, rounded(both, LayerByLayer(quantizer=gptq_codes, ridges=(TINY,)), x), x)
    moved = off(both, rounded(both, LayerByLayer(quantizer=lambda p: flipped(p, gptq_codes(p)), ridges=(TINY,)), x), x)
    assert moved < plain < 1


def test_values_that_are_not_finite_are_refused() -> None:
    x = images(8, 6)
    both = pair(nn.Linear(6, 2), x, weight_bits=4, value_bits=None)
    with pytest.raises(DataError, match="NaN"):
        adaround(both.reference, both.module, [(x * float("inf"),)], silent)
    with pytest.raises(DataError, match="empty"):
        adaround(both.reference, both.module, [], silent)
