import copy

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from penjing.errors import DataError
from penjing.graph import capture
from penjing.quant.even import Evened, even_out
from penjing.quant.fold import fold
from tests.quant.pairs import Seen


class Residual(nn.Module):
    """A stream of 16 channels that three blocks add to."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.widen = nn.ModuleList(nn.Conv2d(16, 24, 1) for _ in range(3))
        self.narrow = nn.ModuleList(nn.Conv2d(24, 16, 1) for _ in range(3))
        self.head = nn.Linear(16, 5)
        factor = torch.exp2(torch.linspace(-spread, spread, 16)[torch.randperm(16)])
        with torch.no_grad():
            for layer in (self.stem, *self.narrow):
                assert isinstance(layer, nn.Conv2d)
                layer.weight.mul_(factor.view(-1, 1, 1, 1))
                assert layer.bias is not None
                layer.bias.mul_(factor)
            for layer in self.widen:
                assert isinstance(layer, nn.Conv2d)
                layer.weight.div_(factor.view(1, -1, 1, 1))
            self.head.weight.div_(factor)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for widen, narrow in zip(self.widen, self.narrow, strict=True):
            y = y + narrow(F.hardtanh(widen(y), 0, 6))
        out: Tensor = self.head(y.mean((2, 3)))
        return out


def made(spread: float, seed: int = 0) -> tuple[fx.GraphModule, Tensor]:
    torch.manual_seed(seed)
    model, x = Residual(spread).double().eval(), torch.randn(16, 3, 8, 8, dtype=torch.float64)
    module = capture(model, x).module
    fold(module)
    return module, x


def decibels(module: fx.GraphModule, x: Tensor) -> float:
    """Signal to noise of the output, with 8 bits for each row of weights and each input of a layer."""
    rounded = copy.deepcopy(module)
    for name, weight in rounded.named_parameters():
        if name.endswith("weight"):
            step = (weight.data.abs().flatten(1).amax(1) / 127).view([-1] + [1] * (weight.ndim - 1))
            weight.data = (weight.data / step).round() * step

    class Rounds(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            if n.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
                (read, *others), _ = self.fetch_args_kwargs_from_env(n)
                step = read.abs().max() / 127
                return self.call_function(n.target, ((read / step).round() * step, *others), {})
            return super().run_node(n)

    with torch.no_grad():
        exact, found = module(x), Rounds(rounded).run(x)
    return float(10 * torch.log10((exact - exact.mean(0)).square().sum() / (exact - found).square().sum()))


@pytest.mark.parametrize("seed", range(3))
def test_an_uneven_residual_stream_is_rescued(seed: int) -> None:
    module, x = made(3, seed)
    even, _ = made(0, seed)
    expected, before = module(x), decibels(module, x)
    told = even_out(module, [x]).gains
    assert set(told) == {"conv2d_1", "conv2d_3", "conv2d_5", "linear"}  # not what reads clips
    assert max(told.values()) < 0.1
    torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-10)
    assert decibels(module, x) >= before + 6
    assert decibels(module, x) >= decibels(even, x) - 4


def test_ranges_come_out_alike_where_weights_lose_nothing() -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 1, bias=False)
    first.weight.data *= torch.logspace(-1.2, 0.2, 8).view(8, 1, 1, 1)
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Hardtanh(0, 1))
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    module = capture(model.double().eval(), x).module
    assert even_out(module, [x]).gains
    largest = Seen(module, x).values["relu"].amax((0, 2, 3))
    torch.testing.assert_close(largest, largest.mean().expand(8))


def test_what_is_even_is_left_alone() -> None:
    module, x = made(0)
    before = {name: p.clone() for name, p in module.named_parameters()}
    assert even_out(module, [x]).gains == {}
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_dead_channels_do_not_grow() -> None:
    module, x = made(3)
    with torch.no_grad():
        for layer in ("stem", "narrow.0", "narrow.1", "narrow.2"):
            for leaf in ("weight", "bias"):
                module.get_parameter(f"{layer}.{leaf}")[0] = 0
        module.get_parameter("stem.weight")[1] *= 1e-12
    expected = module(x)
    before = module.get_parameter("widen.0.weight").detach().clone()
    assert even_out(module, [x]).gains
    after = module.get_parameter("widen.0.weight").detach()
    share = (before / after).abs().amax((0, 2, 3))  # what each channel was multiplied by
    assert float(share[0]) <= float(share.min()) * (1 + 1e-9)
    assert float(share.max() / share.min()) <= 64 * (1 + 1e-9)
    assert all(v.isfinite().all() for v in module.state_dict().values())
    torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-10)


def test_few_samples_are_looked_at() -> None:
    module, x = made(3)

    def batches() -> object:
        for _ in range(2):
            yield x
        pytest.fail("more than 32 samples were asked for")

    assert even_out(module, batches()).gains  # type: ignore[arg-type]


@pytest.mark.parametrize("batches", [[], [torch.full((2, 3, 8, 8), float("nan"), dtype=torch.float64)]], ids=["none", "nan"])
def test_data_that_tells_nothing_changes_nothing(batches: list[Tensor]) -> None:
    module, _ = made(3)
    before = module.get_parameter("stem.weight")
    assert even_out(module, batches).gains == {}
    assert module.get_parameter("stem.weight") is before


def test_data_of_another_shape_is_refused() -> None:
    module, x = made(3)
    with pytest.raises(DataError, match="does not take"):
        even_out(module, [x[:, :2]])


def test_nothing_to_do() -> None:
    module = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid()).eval(), torch.randn(2, 3, 4, 4)).module
    assert even_out(module, []) == Evened()
