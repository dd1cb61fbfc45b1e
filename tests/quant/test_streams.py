import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from penjing.graph import capture
from penjing.quant.fold import fold
from penjing.quant.streams import Streams
from penjing.zoo import ZOO
from tests.nets import net

X = (2, 3, 8, 8)


def read(model: nn.Module, x: Tensor) -> fx.GraphModule:
    module = capture(model, x).module
    fold(module)
    return module


def scaled(module: fx.GraphModule) -> tuple[Streams, Tensor, fx.GraphModule]:
    """A copy with random factors from 1/8 to 8 in it."""
    other = copy.deepcopy(module)
    streams = Streams(other)
    factors = torch.exp2(torch.rand(len(streams.free), dtype=torch.float64) * 6 - 3)
    streams.store(factors)
    return streams, factors, other


def conv(i: int, o: int, k: int = 1, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **settings)


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # how many distinct factors are free
    "chain": (lambda: nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 6, 3, groups=2), nn.PReLU(6), conv(6, 2)), 10),
    "residual": (
        net(lambda m, x: m.c((y := m.a(x)) + m.b(y).relu()), a=conv(3, 4), b=conv(4, 4, 3), c=conv(4, 5)),
        4,
    ),
    "two sums": (
        net(
            lambda m, x: m.d(((y := (z := m.a(x)) + m.b(z)) + m.c(y)).relu()),
            a=conv(3, 4), b=conv(4, 4, 3, groups=4), c=conv(4, 4), d=conv(4, 5),
        ),
        4,
    ),
    "concatenation": (
        net(
            lambda m, x: m.d(torch.cat([y := m.a(x), m.b(y), y], 1)), a=conv(3, 4), b=conv(4, 2, 3), d=conv(10, 5),
        ),
        6,
    ),
    "gate": (
        net(
            lambda m, x: m.d((y := m.a(x).relu()) * m.c(m.b(y.mean((2, 3), keepdim=True)).relu()).sigmoid()),
            a=conv(3, 4), b=conv(4, 2), c=conv(2, 4), d=conv(4, 5),
        ),
        6,
    ),
    "flattened": (net(lambda m, x: m.b(m.a(x).relu().flatten(1)), a=conv(3, 4), b=nn.Linear(256, 5)), 4),
    "pooled": (
        net(lambda m, x: m.b(m.a(x).permute(0, 2, 3, 1).relu().mean((1, 2))), a=conv(3, 4), b=nn.Linear(4, 5)),
        4,
    ),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.MaxPool2d(2), conv(4, 6)), 4),
    "relu6": (net(lambda m, x: m.c((y := m.a(x)) + m.b(y.clamp(0, 6))), a=conv(3, 4), b=conv(4, 4), c=conv(4, 5)), 0),
    "shared weights": (net(lambda m, x: m.b(m.a(m.a(m.c(x)))), a=conv(4, 4), b=conv(4, 5), c=conv(3, 4)), 0),
    "sum with the input": (net(lambda m, x: m.b(m.a(x) + x), a=conv(3, 3), b=conv(3, 5)), 0),
    "sum over positions": (
        net(lambda m, x: m.c((y := m.a(x)) + m.b(y.mean((2, 3), keepdim=True))), a=conv(3, 4), b=conv(4, 4), c=conv(4, 5)),
        0,
    ),
    "two gates": (net(lambda m, x: m.c(m.a(x) * m.b(x)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 5)), 0),
    "square": (net(lambda m, x: m.c((y := m.a(x)) * y), a=conv(3, 4), c=conv(4, 5)), 0),
    "shifted": (net(lambda m, x: m.c(m.a(x).relu() + 1), a=conv(3, 4), c=conv(4, 5, 3)), 0),
    "positions": (net(lambda m, x: m.c(torch.cat([y := m.a(x), y], 2)), a=conv(3, 4), c=conv(4, 5)), 0),
    "another dim": (net(lambda m, x: m.c(m.a(x).relu()), a=conv(3, 4), c=nn.Linear(8, 5)), 0),
    "output": (net(lambda m, x: (y := m.a(x).relu()) + m.c(y).relu(), a=conv(3, 4), c=conv(4, 4)), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_any_factors_keep_the_function(name: str) -> None:
    make, expected = NETS[name]
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(X, dtype=torch.float64)
    module = read(model, x)
    streams, _, other = scaled(module)
    found = {int(f) for line in streams.read().values() for f in line.factors if streams.free[f]}
    assert len(found) == expected
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x), rtol=1e-10, atol=1e-10)
    weights = [n for n, _ in module.named_parameters() if n.endswith("weight") and "prelu" not in n]
    same = all(torch.equal(module.get_parameter(n), other.get_parameter(n)) for n in weights)
    assert same == (expected == 0)


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_keeps_its_function(name: str) -> None:
    make, shape = ZOO[name]
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(2, *shape, dtype=torch.float64)
    _, _, other = scaled(read(model, x))
    with torch.no_grad():
        expected = model(x)
        assert (other(x) - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_weights_are_multiplied_by_what_they_give_and_divided_by_what_they_read() -> None:
    model, x = NETS["residual"][0]().double().eval(), torch.randn(X, dtype=torch.float64)
    module = read(model, x)
    streams, factors, other = scaled(module)
    (f,) = {tuple(factors[line.factors].tolist()) for line in streams.read().values()}
    given = torch.tensor(f, dtype=torch.float64).view(4, 1, 1, 1)
    for name, expected in (
        ("a.weight", module.get_parameter("a.weight") * given),
        ("b.weight", module.get_parameter("b.weight") * given / given.view(1, 4, 1, 1)),
        ("c.weight", module.get_parameter("c.weight") / given.view(1, 4, 1, 1)),
        ("a.bias", module.get_parameter("a.bias") * given.flatten()),
        ("c.bias", module.get_parameter("c.bias")),
    ):
        torch.testing.assert_close(other.get_parameter(name), expected)
