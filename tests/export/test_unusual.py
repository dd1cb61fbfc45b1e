"""Networks that are built in less usual ways: the file of each agrees with the module, in both runtimes and in integers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj
from penjing.errors import DataError, ExportError
from penjing.export import RUNTIMES, fixed_batch

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Own(nn.Module):
    """A convolution, and whatever is done with it."""

    def __init__(self, then: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.register_buffer("anchors", torch.arange(20.0).view(5, 4))
        for name, part in parts.items():
            self.add_module(name, part)
        self.then = then

    def forward(self, x: Tensor) -> Any:
        return self.then(self, x)


def padded(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    wide = F.pad(x, (1, 1, 1, 1))
    return m.conv(wide), wide


def tied() -> nn.Module:
    net = Own(lambda m, x: m.b(m.a(m.conv(x).relu().mean((2, 3))).relu()), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    net.b.bias = net.a.bias
    return net


NETS: dict[str, Callable[[], nn.Module]] = {
    "called twice": lambda: Own(
        lambda m, x: m.head(m.again(m.again(m.conv(x).relu()).relu()).mean((2, 3))),
        again=nn.Conv2d(8, 8, 3, padding=1),
        head=nn.Linear(8, 4),
    ),
    "linear called twice": lambda: Own(lambda m, x: m.f(m.f(m.conv(x).relu().mean((2, 3))).relu()), f=nn.Linear(8, 8)),
    "one bias for two": tied,
    "transposed to one channel": lambda: Own(lambda m, x: m.up(m.conv(x).relu()), up=nn.ConvTranspose2d(8, 1, 3)),
    "transposed, depthwise": lambda: Own(lambda m, x: m.up(m.conv(x).relu()), up=nn.ConvTranspose2d(8, 8, 3, groups=8)),
    "a buffer among the outputs": lambda: Own(lambda m, x: {"y": m.conv(x), "anchors": m.anchors}),
    "padding among the outputs": lambda: Own(padded),
    "nothing among the outputs": lambda: Own(lambda m, x: {"y": m.conv(x), "aux": None}),
    "a number a sample": lambda: Own(lambda m, x: m.f(m.conv(x).relu().mean((2, 3))).squeeze(1), f=nn.Linear(8, 1)),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("target", RUNTIMES)
@pytest.mark.parametrize("name", NETS)
def test_the_file_agrees_with_the_module(name: str, target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = NETS[name]().eval()
    for module in (net, pj.quantize(net, IMAGES[:1], [IMAGES], target=target)):
        file = pj.export(module, IMAGES[:1], tmp_path / "net.onnx", target=target)
        found = file.agreement(module, IMAGES, "f32")
        assert found.cosine > 0.99999
        assert found.largest < 1e-3


def test_answers_stay_when_the_next_is_asked_for(tmp_path: Path) -> None:
    net = Own(lambda m, x: m.conv(x)).eval()
    for target in RUNTIMES:
        run = pj.export(net, IMAGES[:1], tmp_path / "net.onnx", target=target).load(1)
        first = run(IMAGES.numpy())
        held = first.copy()
        run(2 * IMAGES.numpy() + 1)
        assert np.array_equal(first, held)


class OneByOne(nn.Module):
    """A loop over the samples, which a graph can only hold for as many as it was read with."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.f(x[i]) for i in range(x.shape[0])])


def test_a_file_of_a_fixed_batch_is_called_as_often_as_it_takes(tmp_path: Path) -> None:
    net, x = OneByOne().eval(), torch.randn(6, 4)
    with torch.no_grad():
        wanted = net.f(x)
    for target in RUNTIMES:
        module = pj.quantize(net, x[:2], [x[:2], x[2:4]], target=target)  # linear layers on vectors
        assert pj.export(module, x[:2], tmp_path / "int8.onnx", target=target).agreement(module, x[:2], "f32").largest < 1e-3
        file = pj.export(net, x[:2], tmp_path / "net.onnx", target=target)
        assert (file.dynamic, fixed_batch(file.path)) == (False, 2)
        torch.testing.assert_close(file.load(1, "f32")(x), wanted)
        with pytest.raises(ExportError, match="takes 2 samples at a time, and 3"):
            file.load(1)(x[:3])
        with pytest.raises(ExportError, match="shape"):
            RUNTIMES[target].load(file.path, 1, None)([x.numpy()])


@pytest.mark.parametrize("classes", [4, 8])
def test_targets_are_classes_or_shares_of_them(classes: int) -> None:
    said = torch.eye(classes)
    labels = torch.arange(classes)

    def score(target: Tensor) -> float:
        return float(pj.measure.top1(lambda _x: said, [(said, target)]).value)

    assert score(labels) == score(F.one_hot(labels, classes)) == score(said) == 1
    with pytest.raises(DataError, match="top1 takes classes"):
        score(labels[:, None])


def test_a_network_that_torch_fx_traced_is_read_as_any_other(tmp_path: Path) -> None:
    net = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval())
    x = torch.randn(3, 1, 8, 8)
    file = pj.export(net, x[:1], tmp_path / "net.onnx")
    assert file.dynamic
    assert file.agreement(net, x).largest < 1e-4
