"""Every rounding: no worse than the nearest, on the grids that there are, of the same structure; no data is an error."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from penjing.errors import DataError
from penjing.progress import silent
from penjing.quant.insert import layers
from penjing.quant.lockstep import parameter
from penjing.quant.rounding import ROUNDINGS, blocks
from penjing.zoo import DenseNet, MobileNet, ResNet
from tests.quant.pairs import Pair, pair

QUICK = {**ROUNDINGS, "blocks": replace(blocks, steps=20, batch=16)}
NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: ResNet(blocks=1, width=8),
    "mobilenet": lambda: MobileNet(width=8),
    "densenet": lambda: DenseNet(growth=8),
}


@pytest.fixture(scope="module")
def x() -> Tensor:
    x = torch.randn(48, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    return x + x.roll(1, -1) + x.roll(1, -2)


@pytest.fixture(scope="module", params=NETS)
def both(request: pytest.FixtureRequest, x: Tensor) -> Pair:
    torch.manual_seed(0)
    return pair(NETS[request.param](), x, weight_bits=3)


@pytest.fixture(scope="module", params=ROUNDINGS)
def rounded(request: pytest.FixtureRequest, both: Pair, x: Tensor) -> fx.GraphModule:
    module = copy.deepcopy(both.module)
    QUICK[request.param](both.reference, module, [(x[:32],), (x[32:],)], silent)
    return module


@pytest.mark.sampled(3)
def test_the_output_is_no_farther_from_the_float_networks(both: Pair, rounded: fx.GraphModule, x: Tensor) -> None:
    with torch.no_grad():
        wanted, nearest, found = both.reference(x), both.module(x), rounded(x)
    assert (found - wanted).norm() <= (nearest - wanted).norm() * 1.02


def test_grids_and_structure_stay(both: Pair, rounded: fx.GraphModule) -> None:
    assert str(rounded.graph) == str(both.module.graph)
    before, after = both.module.state_dict(), rounded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(v, after[k]) for k, v in before.items() if k.startswith("grids."))
    assert all(p.requires_grad and p.grad is None for p in rounded.parameters())


def test_the_float_network_is_left_alone(both: Pair, rounded: fx.GraphModule) -> None:
    before = dict(both.module.named_parameters())  # still those of the float network
    assert all(torch.equal(p, before[n]) for n, p in both.reference.named_parameters())
    assert rounded is not both.module


def test_integers_are_what_the_weights_say(both: Pair, rounded: fx.GraphModule, request: pytest.FixtureRequest) -> None:
    if "nearest" in request.node.name:
        pytest.skip("it leaves the weights in float")
    for layer in layers(rounded):
        weight = parameter(rounded, layer.weight).detach()
        assert torch.equal(layer.grid.decode(layer.grid.encode(weight)), weight)
        assert not torch.equal(weight, parameter(both.module, layer.weight))


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("batches", [[], [(torch.zeros(0, 1, 12, 12),)]])
def test_no_data_is_an_error(name: str, batches: list[tuple[Tensor, ...]], both: Pair) -> None:
    with pytest.raises(DataError, match="empty"):
        QUICK[name](both.reference, copy.deepcopy(both.module), batches, silent)
