"""The file computes what the fake-quantized module computes, whatever the values between the layers look like."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from penjing.data import fashion_batches, fashion_sample
from penjing.export import RUNTIMES, Runner, agreements, export
from penjing.quant import Scheme, quantize
from penjing.zoo import fashion_resnet20


class Kinds(nn.Module):
    """Unsigned, signed, one-sided and constant values, one after another, and added to one another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 24, 3, 2), nn.Conv2d(24, 24, 3, 2), nn.Conv2d(24, 24, 1)
        self.constant, self.head = nn.Conv2d(24, 24, 1), nn.Linear(24, 10)
        nn.init.zeros_(self.constant.weight)

    def forward(self, x: Tensor) -> Tensor:
        unsigned = torch.relu(self.first(x))
        signed = nn.functional.hardswish(self.second(unsigned))
        negative = -torch.relu(self.third(signed))
        y = signed + self.constant(negative) + negative
        z: Tensor = self.head(y.mean((2, 3)))
        return z


def images() -> Tensor:
    x: Tensor = next(iter(fashion_batches(fashion_sample().search, 1000)))[0]
    return x


def trained() -> tuple[nn.Module, Tensor]:
    return fashion_resnet20(), images()


def kinds() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Kinds().eval(), images()


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("make", [pytest.param(trained, marks=pytest.mark.slow), kinds])
def test_the_file_agrees_with_the_module(make: Callable[[], tuple[nn.Module, Tensor]], target: str, tmp_path: Path) -> None:
    model, x = make()
    module = quantize(model, x[:1], x[:256].split(64), target=target)
    artifact = export(module, x[:1], tmp_path / "net.onnx", target=target)
    with torch.no_grad():
        expected = module(x)
    step = float((expected.max() - expected.min()) / 255)
    for runtime in RUNTIMES:
        found = artifact.on(runtime).load(1, "f32")(x)
        own = runtime == target  # the other runtime takes the file as well, and rounds in other places
        assert (found.argmax(1) != expected.argmax(1)).sum() <= (1 if own else 10), runtime
        assert (found - expected).abs().mean() < (step / 3 if own else step), runtime


@pytest.mark.parametrize("grid", ["affine", "symmetric", "mean_centered"])
def test_outputs_lie_on_their_grid(grid: str) -> None:
    model, x = kinds()
    module = quantize(model, x[:1], [x[:64]], scheme=Scheme(outputs=grid))
    with torch.no_grad():
        y = module(x[:64])
    (name,) = (n.args[0].args[1].target for n in module.graph.nodes if n.op == "output")
    step = module.get_buffer(str(name))
    assert ((y / step) - (y / step).round()).abs().max() < 1e-3
    assert y.unique().numel() <= 256


def test_the_module_stays_in_the_modes_it_was_in() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    net[0].eval()
    said = Runner(lambda arrays: [net[0](torch.from_numpy(arrays[0])).detach().numpy()], "here")  # no dropout
    assert agreements({"it": said}, net, [(torch.ones(2, 3),)])["it"].largest == 0
    assert [part.training for part in net.modules()] == [True, False, True]


def test_what_is_not_a_number_is_not_hidden(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
    x = torch.randn(2, 1, 4, 4)
    file = export(net.eval(), x, tmp_path / "net.onnx")
    x[1, 0, 0, 0] = float("nan")
    assert math.isnan(file.agreement(net, x).largest)


def test_batches_are_walked_once_and_dense_answers_compared_at_every_position(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(1, 3, 3, padding=1).eval()
    file = export(net, torch.zeros(1, 1, 6, 6), tmp_path / "net.onnx")
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.bias[0] += 0.5
    x = torch.randn(8, 1, 6, 6)
    with torch.no_grad():
        expected = float((net(x).argmax(1) == other(x).argmax(1)).double().mean())
    found = agreements({"a": file.load(1), "b": file.load(1)}, other, iter([(x[:5],), (x[5:],)]))
    assert found["a"] == found["b"]
    assert found["a"].samples == 8
    assert found["a"].argmax == pytest.approx(expected) and 0.2 < expected < 0.95


@pytest.mark.parametrize("first", [False, True])
def test_one_number_for_all_samples_goes_with_every_part_of_them(first: bool) -> None:
    class Times(nn.Module):
        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return one * other

    inputs = (torch.randn(6, 3), torch.tensor(0.5))
    run = Runner(lambda arrays: [arrays[0] * arrays[1]], "here", fixed=2)
    told = agreements({"it": run}, Times(), [inputs[::-1] if first else inputs])["it"]
    assert (told.largest, told.samples) == (0, 6)
    assert run(*inputs).shape == (6, 3)


def test_a_network_of_a_fixed_batch_is_compared_and_watched_in_parts(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x).view(2, 3)
            return y

    net = Two().eval()
    file = export(net, torch.zeros(2, 4), tmp_path / "net.onnx")
    assert not file.dynamic
    assert file.agreement(net, torch.randn(6, 4)).samples == 6
    for runtime in RUNTIMES:
        assert file.on(runtime).profile(torch.randn(6, 4), threads=1, seconds=0.05).wall.value > 0
