from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from penjing.graph import capture
from penjing.quant.fold import NORM, fold, scalings_to_convolutions
from penjing.zoo import DenseNet
from tests.nets import net

aten = torch.ops.aten
ARITHMETIC = (aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.rsub.Scalar)
X = (2, 4, 9, 9)


def stirred(model: nn.Module) -> nn.Module:
    """Norms as after training: nothing is at its default."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            if m.affine:
                m.weight.data.uniform_(-1.5, 1.5)
                m.bias.data.normal_()
    return model.eval().double()


def folded(model: nn.Module, x: Tensor) -> fx.GraphModule:
    module = capture(model, x).module
    fold(module)
    return module


def left(module: fx.GraphModule) -> int:
    """How many norms and products or sums with something are in the graph."""
    return sum(n.target is NORM or n.target in ARITHMETIC for n in module.graph.nodes)


def assert_same(module: nn.Module, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        found, expected = module(x), model(x)
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max().clamp_min(1)


def column(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values or (0.5, -2.0, 1.5, 3.0)).view(-1, 1, 1))


FOLDED: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)),
    "padded": lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding="same"), nn.BatchNorm2d(8)),
    "no bias": lambda: nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
    "not affine": lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, affine=False)),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(4, 8, 2, 2), nn.BatchNorm2d(8)),
    "grouped transposed": lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), nn.BatchNorm2d(6)),
    "before": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3)),
    "before grouped": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, stride=2, groups=2)),
    "before pointwise": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, padding="same")),
    "before transposed pointwise": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 1, groups=2)),
    "between": lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)),
    "two norms": lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.BatchNorm2d(4)),
    "layer scale": net(lambda m, x: m.conv(x) * m.gamma + m.beta, conv=nn.Conv2d(4, 4, 3), gamma=column(), beta=column()),
    "layer scale viewed": net(
        lambda m, x: m.gamma.view(-1)[:, None, None] * m.conv(x), conv=nn.Conv2d(4, 4, 3, bias=False), gamma=column()
    ),
    "channels last": net(
        lambda m, x: m.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * m.gamma, linear=nn.Linear(4, 4), gamma=column()
    ),
    "linear": net(
        lambda m, x: m.linear(x.mean(2)) * m.gamma.flatten() - 3, linear=nn.Linear(9, 4), gamma=column()
    ),
    "numbers": net(lambda m, x: 3 - torch.sub(m.conv(x) / 255, 0.5, alpha=2), conv=nn.Conv2d(4, 4, 3)),
    "reversed": net(lambda m, x: m.gamma - torch.add(m.gamma, m.conv(x), alpha=3), conv=nn.Conv2d(4, 4, 3), gamma=column()),
    "image": net(lambda m, x: m.conv((x / 255 - m.mean) / m.mean), conv=nn.Conv2d(4, 4, 3), mean=column()),
    "scaled image, padded": net(lambda m, x: m.conv(x * 2 / m.std), conv=nn.Conv2d(4, 4, 3, padding=1), std=column()),
    "scaled image, transposed": net(lambda m, x: m.conv(x / m.std), conv=nn.ConvTranspose2d(4, 4, 3, 2), std=column()),
    "cast to what it is": net(lambda m, x: m.norm(m.conv(x).double()), conv=nn.Conv2d(4, 8, 3), norm=nn.BatchNorm2d(8)),
    "a product with 1": net(lambda m, x: m.relu(x) * 1 + 0, relu=nn.ReLU()),
}  # fmt: skip


def standardized(m: Any, x: Tensor) -> Tensor:
    weight = m.conv.weight
    return m.norm(F.conv2d(x, (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std(), m.conv.bias))


def two_readers(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(y) + y.flip(1)


def conv(**settings: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, **settings)


KEPT: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "two readers": (2, net(two_readers, conv=conv(), norm=nn.BatchNorm2d(4))),
    "after the activation": (1, lambda: nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4))),
    "after the pool": (1, lambda: nn.Sequential(conv(), nn.AvgPool2d(2), nn.BatchNorm2d(4))),
    "after the concatenation": (
        1,
        net(lambda m, x: m.norm(torch.cat([m.conv(x), x], 1)), conv=conv(), norm=nn.BatchNorm2d(8)),
    ),
    "before an activation": (1, lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))),
    "before padding": (1, lambda: nn.Sequential(nn.BatchNorm2d(4), conv())),
    "before same padding": (1, lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding="same"))),
    "before padding of its own": (1, lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3))),
    "before transposed": (1, lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2, 2))),
    "before strided transposed": (1, lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 1, 2))),
    "read twice": (
        1,
        net(lambda m, x: torch.cat([m.conv(y := m.norm(x)), y], 1), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
    ),
    "shared weight": (1, net(lambda m, x: m.norm(m.conv(m.conv(x))), conv=conv(), norm=nn.BatchNorm2d(4))),
    "standardized weight": (3, net(standardized, conv=conv(), norm=nn.BatchNorm2d(4))),
    "another dim of a linear": (
        1,
        net(lambda m, x: m.norm(m.linear(x.flatten(2))), linear=nn.Linear(81, 4), norm=nn.BatchNorm1d(4)),
    ),
    "another dim of a conv": (1, net(lambda m, x: m.conv(x) * m.gamma.flatten(), conv=nn.Conv2d(4, 4, 6), gamma=column())),
    "two dims": (1, lambda: net(lambda m, x: m.conv(x) * m.map, conv=conv(), map=nn.Parameter(torch.rand(4, 9, 1)))()),
    "a gate": (1, net(lambda m, x: m.conv(x) * x.mean((2, 3), keepdim=True), conv=conv())),
    "a quotient of a constant": (1, net(lambda m, x: m.gamma / m.conv(x), conv=conv(), gamma=column())),
    "more dims come out": (1, net(lambda m, x: m.conv(x) * m.gamma[None, None], conv=conv(), gamma=column())),
    "infinite": (1, net(lambda m, x: (m.conv(x) / m.gamma).clamp(-9, 9), conv=conv(), gamma=column(1.0, 1.0, 0.0, 1.0))),
    "an image that is padded": (1, net(lambda m, x: m.conv(x - 0.5), conv=conv())),
}


@pytest.mark.parametrize("name", FOLDED)
def test_what_folds_is_gone_and_the_function_stays(name: str) -> None:
    model, x = stirred(FOLDED[name]()), torch.randn(X, dtype=torch.float64)
    module = folded(model, x)
    assert left(module) == 0
    assert_same(module, model, x)
    assert set(module.state_dict()) == {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}  # no leftovers


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_fold_stays_as_it_was(name: str) -> None:
    count, make = KEPT[name]
    model, x = stirred(make()), torch.randn(X, dtype=torch.float64)
    module = capture(model, x).module
    module.graph.eliminate_dead_code()
    before, state = str(module.graph), {k: v.clone() for k, v in module.state_dict().items()}
    fold(module)
    assert str(module.graph) == before
    assert left(module) >= count
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())


def test_normalization_before_padding_keeps_its_shift_and_loses_its_scale() -> None:
    model = stirred(net(lambda m, x: m.conv((x - m.mean) / m.mean), conv=conv(), mean=column())())
    x = torch.randn(X, dtype=torch.float64)
    module = folded(model, x)
    assert [n.target for n in module.graph.nodes if n.target in ARITHMETIC] == [aten.sub.Tensor]
    assert_same(module, model, x)


def test_linear_norm_folds_on_either_side() -> None:
    model = stirred(nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 7), nn.BatchNorm1d(7)))
    x = torch.randn(4, 5, dtype=torch.float64)
    module = folded(model, x)
    assert left(module) == 0
    assert_same(module, model, x)


def test_a_shared_bias_stays_for_the_other_layer() -> None:
    one, two = conv(), conv()
    two.bias = one.bias
    model = stirred(net(lambda m, x: m.norm(m.one(x)) + m.two(x), one=one, two=two, norm=nn.BatchNorm2d(4))())
    x = torch.randn(X, dtype=torch.float64)
    module = folded(model, x)
    assert left(module) == 1  # the sum of both
    assert_same(module, model, x)


def test_a_weight_under_two_names_is_shared() -> None:
    one, two = conv(), conv()
    two.weight = one.weight
    model = stirred(net(lambda m, x: m.two(m.norm(m.one(x))), one=one, two=two, norm=nn.BatchNorm2d(4))())
    x = torch.randn(X, dtype=torch.float64)
    assert left(folded(model, x)) == 1


def test_a_buffer_that_the_network_writes_to_is_no_constant() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()
            self.register_buffer("count", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x) * self.count
            self.count.add_(1)
            return y

    module = folded(Counting().eval(), torch.randn(X))
    assert any(n.target is aten.mul.Tensor for n in module.graph.nodes)


def test_weights_keep_their_type_and_are_rounded_once() -> None:
    model = stirred(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    x = torch.randn(X, dtype=torch.float64)
    module, exact = folded(model.float(), x.float()), folded(model.double(), x)
    for name, value in module.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, exact.state_dict()[name].float())


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "valid": lambda: nn.Conv2d(4, 4, 3),
    "padded": conv,
    "grouped": lambda: nn.Conv2d(4, 4, 1, groups=2, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2),
}
TAKES_SHIFT = {"valid", "grouped"}
BETWEEN: dict[str, Callable[[], nn.Module]] = {
    "norm": lambda: nn.BatchNorm2d(4),
    "scale": net(lambda m, x: x * m.c, c=column()),
    "shift": net(lambda m, x: m.c - x, c=column()),
    "relu": nn.ReLU,
    "pool": lambda: nn.AvgPool2d(3, 1, 1),
    "nothing": nn.Identity,
    "dropout": nn.Dropout,
}
IDLE = {"nothing", "dropout"}


def remaining(chain: list[str]) -> int:
    """How many norms, scales and shifts cannot fold, by the words of a chain alone."""
    words = [w for w in chain if w not in IDLE]
    kept, behind_layer = [], False
    for word in words:
        behind_layer = word in LAYERS or (behind_layer and word not in ("relu", "pool"))
        if word in LAYERS or not behind_layer:
            kept.append(word)
    count, before = 0, ""  # the layer that what comes next in the reversed chain stands in front of
    for word in reversed(kept):
        if word in LAYERS or word in ("relu", "pool"):
            before = word
        elif before not in LAYERS or (word != "scale" and before not in TAKES_SHIFT):
            count, before = count + 1, ""
    return count


@settings(max_examples=15)
@given(st.lists(st.sampled_from(sorted(LAYERS) + sorted(BETWEEN) * 2), min_size=2, max_size=9), st.integers(0, 99))
def test_chains(chain: list[str], seed: int) -> None:
    torch.manual_seed(seed)
    model = stirred(nn.Sequential(*[(LAYERS | BETWEEN)[word]() for word in chain]))
    x = torch.randn(2, 4, 19, 19, dtype=torch.float64)
    module = folded(model, x)
    assert left(module) == remaining(chain)
    assert_same(module, model, x)


def test_norms_that_are_left_become_depthwise_convolutions() -> None:
    model, x = stirred(DenseNet()), torch.randn(2, 1, 28, 28, dtype=torch.float64)
    module = folded(model, x)
    assert left(module) == 3
    scalings_to_convolutions(module)
    assert left(module) == 0
    pointwise = [n for n in module.graph.nodes if n.target is aten.conv2d.default and n.args[6:] not in ((), (1,))]
    shapes = [tuple(module.get_parameter(n.args[1].target).shape) for n in pointwise]
    assert shapes == [(16, 1, 1, 1), (32, 1, 1, 1), (48, 1, 1, 1)]
    assert [n.args[6] for n in pointwise] == [16, 32, 48]
    assert_same(module, model, x)
    assert set(module.state_dict()) == {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}


@pytest.mark.parametrize(
    ("norm", "shape", "stays"), [(nn.BatchNorm1d, (4,), 1), (nn.BatchNorm1d, (4, 9), 0), (nn.BatchNorm3d, (4, 2, 3, 5), 1)]
)
def test_norms_of_other_ranks(norm: type[nn.Module], shape: tuple[int, ...], stays: int) -> None:
    model = stirred(nn.Sequential(nn.ReLU(), norm(4)))
    x = torch.randn(2, *shape, dtype=torch.float64)
    module = capture(model, x).module
    scalings_to_convolutions(module)
    assert left(module) == stays
    torch.testing.assert_close(module(x), model(x))
