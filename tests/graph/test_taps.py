"""Taps, held against what a network's parts give when they are called one by one."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import penjing as pj
from penjing.errors import ModelError
from penjing.graph.taps import Taps, last_map
from penjing.zoo import DenseNet, MobileNet, ResNet


class Net(nn.Module):
    """A body, a map of which is pooled for the head; one module is not run, one gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(3, 4, 3)))
        self.split = Split()
        self.idle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.split(self.body(x))
        out: Tensor = self.head(torch.cat([a, b], 1).mean((2, 3)))
        return out


class Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, 1)
        return a, b


class Wrapper(nn.Module):
    """As Lightning Fabric's: calls the network that it wraps."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return 2 * self.module(*inputs)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


X = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in model.modules())


def test_the_output_and_what_the_modules_gave(net: Net) -> None:
    output, features = Taps(net, ["body.0", "body.2", "body", "body.0"])(X)
    assert torch.equal(output, net(X)) and list(features) == ["body.0", "body.2", "body"]
    assert torch.equal(features["body.0"], net.body[0](X))
    assert torch.equal(features["body.2"], net.body(X)) and torch.equal(features["body"], net.body(X))


@pytest.mark.parametrize("path", ["0", "1"])
def test_what_comes_next_in_place_changes_no_feature(path: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3).eval(), nn.ReLU(inplace=True))
    net[1].bias.data.fill_(-0.5)
    output, features = Taps(net, [path])(X)
    expected = net[: int(path) + 1](X)
    assert torch.equal(features[path], expected) and expected.min() < 0
    assert torch.equal(output, net(X))
    features[path].sum().backward()


def test_gradients_flow_through_both(net: Net) -> None:
    taps = Taps(net, ["body.0"])
    output, features = taps(X)
    (output.sum() + features["body.0"].square().sum()).backward()
    found = [p.grad for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    taps.close()
    first = net.body[0](X)
    (net(X).sum() + first.square().sum()).backward()
    assert len(found) == 6
    for ours, expected in zip(found, (p.grad for p in net.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(ours, expected)


def test_no_value_outlives_its_call_and_no_hook_its_taps(net: Net) -> None:
    taps = Taps(net, ["body", "head"])
    _, first = taps(X)
    _, second = taps(2 * X)
    assert not torch.equal(first["body"], second["body"]) and not taps.values
    assert hooks(net) == 2
    taps.close()
    taps.close()
    assert hooks(net) == 0


def test_a_wrapper_is_called_and_the_network_inside_tapped(net: Net) -> None:
    output, features = Taps(net, ["body"], call=Wrapper(net))(X)
    assert torch.equal(output, 2 * net(X)) and torch.equal(features["body"], net.body(X))


def test_lightning_fabrics_wrapper(net: Net) -> None:
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    wrapped = fabric.setup_module(net)
    output, features = Taps(net, ["body"], call=wrapped)(X)
    assert output.dtype == torch.float32 and features["body"].dtype == torch.bfloat16
    fabric.backward(features["body"].float().square().mean())
    assert net.body[0].weight.grad is not None and net.head.weight.grad is None


def test_no_paths_are_fine(net: Net) -> None:
    output, features = Taps(net, [])(X)
    assert torch.equal(output, net(X)) and features == {}


@pytest.mark.parametrize("quantized", [False, True])
def test_a_path_that_is_not_there_is_refused_with_the_nearest(quantized: bool) -> None:
    model = ResNet(blocks=1, width=8).eval()
    x = torch.randn(2, 1, 12, 12)
    with pytest.raises(ModelError, match=r"no module 'stage1.0.conv9'; nearest: .*stage1.0.conv1"):
        Taps(pj.quantize(model, x, [x]) if quantized else model, ["conv", "stage1.0.conv9"])
    assert hooks(model) == 0


def test_what_is_no_tensor_and_what_is_not_run_is_refused(net: Net) -> None:
    with pytest.raises(ModelError, match=r"'split' gives tuple, not a tensor"):
        Taps(net, ["split"])(X)
    with pytest.raises(ModelError, match=r"'idle' is not run"):
        Taps(net, ["idle"])(X)


def flattened(model: nn.Module, x: Tensor) -> fx.GraphModule:
    return torch.export.export(model, (x,)).module(check_guards=False)


MAKERS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "resnet": (lambda: ResNet(blocks=1, width=8), ["relu", "stage1", "stage2.0.shortcut", "stage3.0.conv1", "pool", "head"]),
    "mobilenet": (lambda: MobileNet(width=8), []),
    "densenet": (lambda: DenseNet(growth=8), []),
}


def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What every module gave last, by hooks of our own."""
    found: dict[str, Tensor] = {}
    net = copy.deepcopy(model)
    for path, module in net.named_modules():
        module.register_forward_hook(lambda _m, _i, o, path=path: found.__setitem__(path, o))
    net(x)
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_a_captured_network_shows_what_its_modules_gave(name: str) -> None:
    torch.manual_seed(0)
    make, paths = MAKERS[name]
    model, x = make().eval(), torch.randn(2, 1, 12, 12)
    whole, expected = flattened(model, x), outputs(model, x)
    paths = paths or [p for p, m in model.named_modules() if p and sum(1 for _ in m.parameters()) and p in expected]
    taps = Taps(whole, paths)
    output, features = taps(x)
    torch.testing.assert_close(output, model(x))
    assert list(features) == paths
    for path in paths:
        torch.testing.assert_close(features[path], expected[path])


@pytest.mark.parametrize("name", MAKERS)
def test_a_quantized_network_shows_nearly_that(name: str) -> None:
    torch.manual_seed(0)
    make, paths = MAKERS[name]
    model, x = make().eval(), torch.randn(8, 1, 12, 12)
    quantized, expected = pj.quantize(model, x, [x]), outputs(model, x)
    before = quantized(x)
    text = quantized.code
    paths = paths or [p for p, m in model.named_modules() if p and isinstance(m, nn.ReLU | nn.Linear)]
    taps = Taps(quantized, paths, call=Wrapper(quantized))
    output, features = taps(x)
    assert torch.equal(output, 2 * before)
    for path in paths:
        far = (features[path] - expected[path]).norm() / expected[path].norm()
        assert far < 0.1, path
    features[paths[-1]].square().sum().backward()
    assert all(p.grad is not None for n, p in quantized.named_parameters() if n == "head.weight")
    taps.close()
    assert quantized.code == text and torch.equal(quantized(x), before)


def test_modules_that_a_graph_still_calls() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    traced = fx.symbolic_trace(net)
    features = Taps(traced, ["0"])(X)[1]
    assert torch.equal(features["0"], net[0](X))


@pytest.mark.parametrize(("make", "path"), [(lambda: ResNet(blocks=1, width=8), "stage3"), (Net, "body")])
def test_the_last_map(make: Callable[[], nn.Module], path: str) -> None:
    model = make().train()
    x = X if path == "body" else torch.randn(2, 1, 12, 12)
    state = copy.deepcopy(model.state_dict())
    assert last_map(model, x) == path
    assert model.training and hooks(model) == 0
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_the_last_map_of_a_quantized_network() -> None:
    x = torch.randn(2, 1, 12, 12)
    quantized = pj.quantize(ResNet(blocks=1, width=8).eval(), x, [x])
    text = quantized.code
    assert last_map(quantized, (x,)) == "stage3" and quantized.code == text


def test_a_network_without_maps_has_no_last_one() -> None:
    with pytest.raises(ModelError, match="no module of the network gives a map"):
        last_map(nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), X)


def test_of_a_module_that_is_run_twice_the_last_counts() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(F.relu(self.conv(x))))

    torch.manual_seed(0)
    model = Twice()
    expected = model.conv(F.relu(model.conv(X)))
    for net in (model, flattened(model, X)):
        torch.testing.assert_close(Taps(net, ["conv"])(X)[1]["conv"], expected)
