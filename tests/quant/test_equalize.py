import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from penjing.graph import capture
from penjing.quant.equalize import absorb_biases, equalize
from penjing.quant.fold import fold
from penjing.zoo import ZOO
from tests.nets import net
from tests.quant.pairs import Seen

aten = torch.ops.aten
X = (2, 4, 9, 9)


def read(model: nn.Module, x: Tensor) -> fx.GraphModule:
    module = capture(model, x).module
    fold(module)
    return module


def uneven(model: nn.Module) -> nn.Module:
    """Layers whose output channels differ in range by up to a factor of 1000."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            dim = int(isinstance(m, nn.ConvTranspose2d))
            factor = 10 ** (torch.rand(m.weight.shape[dim]) * 3 - 1.5)
            m.weight.data *= factor.view([-1 if d == dim else 1 for d in range(m.weight.ndim)])
    return model.eval().double()


def assert_same(module: nn.Module, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        found, expected = module(x), model(x)
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def changed(module: fx.GraphModule, before: fx.GraphModule) -> int:
    """How many weights are other than before."""
    old = before.state_dict()
    return sum(k.endswith("weight") and not torch.equal(v, old[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_keeps_its_function(name: str) -> None:
    make, shape = ZOO[name]
    model, x = uneven(make()), torch.randn(2, *shape, dtype=torch.float64)
    module = read(model, x)
    before = copy.deepcopy(module)
    equalize(module)
    # Three blocks in each of three stages; three layers in a row; the two of each gate; none.
    assert changed(module, before) == {"resnet20": 18, "two_convolutions": 3, "mobilenet": 4, "densenet": 0}[name]
    assert_same(module, model, x)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "padded": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "valid": lambda: nn.Conv2d(4, 4, 3, bias=False),
    "grouped": lambda: nn.Conv2d(4, 4, 1, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 2, 2, groups=2),
}
PASS: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "relu": nn.ReLU,
    "leaky": nn.LeakyReLU,
    "prelu": lambda: nn.PReLU(4),
    "max": lambda: nn.MaxPool2d(3, 1, 1),
    "average": lambda: nn.AvgPool2d(3, 1, 1),
    "adaptive": lambda: nn.AdaptiveAvgPool2d(9),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
}
STOP: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu6": nn.ReLU6,
    "shift": net(lambda m, x: m.relu(x) + 1, relu=nn.ReLU()),
    "shuffle": lambda: nn.ChannelShuffle(2),
    "residual": net(lambda m, x: x + m.relu(x), relu=nn.ReLU()),
    "cat": net(lambda m, x: torch.cat([m.relu(x)[:, :2], x[:, 2:]], 1), relu=nn.ReLU()),
}


@settings(max_examples=12)
@given(st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), st.sampled_from(sorted(PASS) * 2 + sorted(STOP))), min_size=2,
                max_size=6), st.integers(0, 99))  # fmt: skip
def test_chains_keep_their_function(chain: list[tuple[str, str]], seed: int) -> None:
    torch.manual_seed(seed)
    between = PASS | STOP
    model = uneven(nn.Sequential(*[part for one, two in chain for part in (LAYERS[one](), between[two]())]))
    x = torch.randn(2, 4, 13, 13, dtype=torch.float64)
    module = read(model, x)
    before = copy.deepcopy(module)
    reasons = equalize(module)
    stops = sum(two in STOP for _, two in chain[:-1]) + 1  # the last layer gives the output
    assert len(reasons) == stops
    pairs = [i for i, (_, two) in enumerate(chain[:-1]) if two not in STOP]
    assert changed(module, before) <= len({i for p in pairs for i in (p, p + 1)})
    assert bool(pairs) == (changed(module, before) > 0)
    assert_same(module, model, x)


def test_one_step_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penjing.quant.equalize.SWEEPS", 1)
    model = uneven(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 5, 3)))
    module = read(model, torch.randn(X, dtype=torch.float64))
    equalize(module)
    one, two = model[0].weight.detach(), model[2].weight.detach()
    for i in range(6):
        r1, r2 = one[i].abs().max(), two[:, i].abs().max()
        s = (r1 * r2).sqrt() / r2
        torch.testing.assert_close(module.get_parameter("0.weight")[i], one[i] / s)
        torch.testing.assert_close(module.get_parameter("2.weight")[:, i], two[:, i] * s)


def test_ranges_are_balanced_at_the_end() -> None:
    model = uneven(
        nn.Sequential(
            nn.Conv2d(3, 6, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.PReLU(),
            nn.Conv2d(6, 4, 1, bias=False), nn.MaxPool2d(2), nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.ReLU(),
            nn.Flatten(), nn.Linear(6 * 16, 5),
        )
    )  # fmt: skip
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    module = read(model, x)
    equalize(module)
    a, b, c, d, e = (module.get_parameter(f"{i}.weight").detach().abs() for i in (0, 2, 4, 6, 9))
    transposed = torch.stack([d[:2, 0], d[:2, 1], d[:2, 2], d[2:, 0], d[2:, 1], d[2:, 2]])
    ranges = [  # of what gives each channel, and of what takes it
        (a.amax((1, 2, 3)), b.amax((1, 2, 3))),
        (b.amax((1, 2, 3)), c.amax((0, 2, 3))),
        (c.amax((1, 2, 3)), d.amax((1, 2, 3))),
        (transposed.amax((1, 2, 3)), e.view(5, 6, 16).amax((0, 2))),
    ]
    for gives, takes in ranges:
        torch.testing.assert_close(gives, takes, rtol=0.01, atol=0)
    assert_same(module, model, x)


def test_channels_are_followed_over_permutes_and_means() -> None:
    model = uneven(
        net(
            lambda m, x: m.three(m.two(m.one(x).permute(0, 2, 3, 1)).relu().mean((1, 2))),
            one=nn.Conv2d(4, 6, 3), two=nn.Linear(6, 8), three=nn.Linear(8, 3),
        )()
    )  # fmt: skip
    x = torch.randn(X, dtype=torch.float64)
    module = read(model, x)
    before = copy.deepcopy(module)
    assert list(equalize(module)) == ["linear_1"]
    assert changed(module, before) == 3
    assert_same(module, model, x)


def test_dead_channels_and_large_biases_do_not_run_away() -> None:
    model = uneven(nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)))
    model[0].weight.data[0] = 0
    model[2].weight.data[:, 1] = 0
    model[0].weight.data[2] *= 1e-15
    x = torch.randn(X, dtype=torch.float64)
    module = read(model, x)
    equalize(module)
    assert all(v.isfinite().all() for v in module.state_dict().values())
    assert module.get_parameter("0.bias").abs().max() <= model[0].bias.abs().max() * (1 + 1e-9)
    assert_same(module, model, x)


def clipped(limit: float) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU6() if limit == 6 else nn.Hardtanh(0, limit), nn.Conv2d(4, 4, 1))


@pytest.mark.parametrize("limit", [6.0, 2.5])
def test_a_clip_that_never_clips_becomes_a_relu(limit: float) -> None:
    model = clipped(limit).eval().double()
    x = torch.rand(X, dtype=torch.float64)
    module = read(model, x)
    (name,) = (n.name for n in module.graph.nodes if n.target in (aten.relu6.default, aten.hardtanh.default))
    before = copy.deepcopy(module)
    assert "not known" in equalize(module)["conv2d"]
    assert "does so" in equalize(module, seen={name: limit})["conv2d"]
    assert changed(module, before) == 0
    most = float(model[0](x).detach().max())
    assert most < limit
    assert "conv2d" not in equalize(module, seen={name: most})
    assert changed(module, before) == 2
    assert_same(module, model, x)


def test_a_clip_below_zero_stops_factors() -> None:
    module = read(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Hardtanh(), nn.Conv2d(4, 4, 1)).eval(), torch.randn(X))
    assert "at 0" in equalize(module, seen={"hardtanh": 0.1})["conv2d"]


def test_every_layer_left_alone_has_a_reason() -> None:
    shared = nn.Conv2d(4, 4, 1)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Hardswish(), nn.Conv2d(4, 4, 1))
    reasons = equalize(read(model.eval(), torch.randn(X)))
    assert reasons == {"conv2d_2": "hardswish lets no factor through", "conv2d_3": "the output lets no factor through"}


class Mobile(nn.Sequential):
    """Narrow, filter, widen; with no norms, so that weights are as they will be quantized."""

    def __init__(self) -> None:
        def block(i: int, o: int) -> list[nn.Module]:
            return [nn.Conv2d(i, 24, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.ReLU(), nn.Conv2d(24, o, 1)]

        super().__init__(*block(3, 12), *block(12, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
        for part in self:
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight)


def stretch(model: nn.Sequential) -> None:
    """The same function with channels of other ranges: outputs by random factors, what takes them by the inverse."""
    layers = [m for m in model if isinstance(m, nn.Conv2d | nn.Linear)]
    for one, two in pairwise(layers):
        factor = 10 ** (torch.rand(one.weight.shape[0], dtype=torch.float64) * 3 - 1.5)
        one.weight.data *= factor.view([-1] + [1] * (one.weight.ndim - 1))
        one.bias.data *= factor
        alone = isinstance(two, nn.Conv2d) and two.groups > 1
        two.weight.data /= factor.view([-1, 1, 1, 1] if alone else [1, -1] + [1] * (two.weight.ndim - 2))


def decibels(module: fx.GraphModule, x: Tensor, *, per_channel: bool) -> float:
    """Signal to noise of the output, with weights of 8 bits; what is the same for all inputs is no signal."""
    rounded = copy.deepcopy(module)
    for name, weight in rounded.named_parameters():
        if name.endswith("weight"):
            largest = weight.data.abs().flatten(1).amax(1) if per_channel else weight.data.abs().max().view(1)
            scale = (largest / 127).view([-1] + [1] * (weight.ndim - 1))
            weight.data = (weight.data / scale).round() * scale
    with torch.no_grad():
        exact, found = module(x), rounded(x)
    return float(10 * torch.log10((exact - exact.mean(0)).square().sum() / (exact - found).square().sum()))


@pytest.mark.parametrize("seed", range(3))
def test_uneven_channels_are_rescued(seed: int) -> None:
    torch.manual_seed(seed)
    model = Mobile().eval().double()
    x = torch.randn(32, 3, 1, 1, dtype=torch.float64) + 0.3 * torch.randn(32, 3, 8, 8, dtype=torch.float64)
    even = read(model, x)
    stretch(model)
    module = read(model, x)
    assert_same(module, even, x)
    before = {kind: decibels(module, x, per_channel=kind) for kind in (False, True)}
    equalize(module)
    after = {kind: decibels(module, x, per_channel=kind) for kind in (False, True)}
    assert after[False] >= before[False] + 15
    assert after[False] >= decibels(even, x, per_channel=False) - 3
    assert after[True] >= before[True]
    assert_same(module, model, x)


def least(module: fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    """The least value of each channel of each layer's output."""
    values = Seen(module, x).values
    return {name: v.movedim(1, 0).flatten(1).amin(1) for name, v in values.items() if isinstance(v, Tensor) and v.ndim > 1}


@pytest.mark.parametrize("between", [nn.ReLU(), nn.Sequential(nn.PReLU(), nn.AvgPool2d(3), nn.ReLU()), nn.MaxPool2d(3, 2, 1)])
def test_absorbed_biases_change_nothing_on_the_data(between: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), between, nn.Conv2d(6, 4, 2, groups=2), nn.Flatten(), nn.Linear(4 * 36, 3))
    model = nn.Sequential(*model[:2], model[2], nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    model = model.eval().double()
    model[0].bias.data = torch.linspace(-3, 9, 6, dtype=torch.float64)
    model[2].bias.data.fill_(20)
    x = torch.randn(X, dtype=torch.float64)
    module = read(model, x)
    lowest = least(module, x)
    absorb_biases(module, lowest)
    for name in ("conv2d", "conv2d_1"):
        assert (lowest[name] > 0).any()
        torch.testing.assert_close(least(module, x)[name], lowest[name].clamp(max=0))  # what was above 0 begins there
    assert_same(module, model, x)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 1)),
    ],
    ids=["padded layer", "padded pool", "clip"],
)
def test_biases_stay_where_a_constant_does_not_come_through(model: nn.Sequential) -> None:
    x = torch.randn(X, dtype=torch.float64)
    model = model.eval().double()
    model[0].bias.data.fill_(5)
    module = read(model, x)
    absorb_biases(module, least(module, x))
    assert torch.equal(module.get_parameter("0.bias"), model[0].bias)
    assert_same(module, model, x)


@pytest.mark.parametrize("tokens", [5, 8])
def test_biases_of_layers_over_tokens_are_not_absorbed_by_tokens(tokens: int) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval().double()
    x = torch.randn(16, tokens, 6, dtype=torch.float64)
    module = read(net, x)
    first = next(n for n in module.graph.nodes if n.target is aten.linear.default)
    with torch.no_grad():
        absorb_biases(module, {first.name: net[0](x).amin((0, 2)).clamp(min=0.5)})
    assert_same(module, net, x)
