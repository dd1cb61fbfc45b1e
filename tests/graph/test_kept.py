"""A network is read once, and a graph that is kept is what reading again would have given."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.graph import capture, kept, reading_once
from penjing.graph.kept import MOST, structure
from tests.nets import CUTTABLE, IMAGE, SHAPES, conv
from tests.oracle import inputs, randomized


class Plain(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor] = F.relu, **more: Any) -> None:
        super().__init__()
        self.a, self.b, self.act, self.times = conv(3, 8), conv(8, 4), act, 1
        vars(self).update(more)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.act(self.a(x))) * self.times
        return out


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    token = kept._kept.set(None)
    with reading_once():
        yield
    kept._kept.reset(token)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry each time that torch reads a network."""
    counted: list[int] = []
    export = torch.export.export

    def counting(*args: Any, **named: Any) -> Any:
        counted.append(1)
        return export(*args, **named)

    monkeypatch.setattr(torch.export, "export", counting)
    return counted


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CUTTABLE)
def test_a_kept_graph_is_what_reading_again_gives(name: str) -> None:
    first, second = randomized(CUTTABLE[name]()), randomized(CUTTABLE[name](), seed=1)
    x = inputs(SHAPES.get(name, IMAGE))
    capture(first, x)
    again = capture(second, x)
    token = kept._kept.set(None)
    fresh = capture(second, x)
    kept._kept.reset(token)
    assert again.module.code == fresh.module.code
    assert [n.name for n in again.module.graph.nodes] == [n.name for n in fresh.module.graph.nodes]
    assert (again.dynamic, again.constants) == (fresh.dynamic, fresh.constants)
    for held in ("named_parameters", "named_buffers"):
        ours, theirs = (dict(getattr(g.module, held)()) for g in (again, fresh))
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[k], theirs[k]) and type(ours[k]) is type(theirs[k]) for k in ours)


def test_one_structure_is_read_once_and_each_graph_is_its_own(reads: list[int]) -> None:
    net, other = Plain().eval(), Plain().eval()
    x = torch.randn(2, 3, 8, 8)
    graphs = [capture(net, x), capture(other, x), capture(net, x)]
    assert len(reads) == 1
    for graph, model in zip(graphs, (net, other, net), strict=True):
        assert torch.equal(graph.module(x), model(x))
    before = net(x)
    with torch.no_grad():
        next(graphs[0].module.parameters()).zero_()
        graphs[1].module.graph.erase_node(graphs[1].module.graph.output_node())
        net.a.weight.mul_(2)
    assert torch.equal(capture(net, x).module(x), net(x))
    assert torch.equal(graphs[2].module(x), before)
    assert torch.equal(graphs[2].module(x), other(x)) is False
    assert len(reads) == 1


def _one_more(module: nn.Module, args: Any, output: Tensor) -> Tensor:  # noqa: ARG001 - as torch calls a hook
    return output + 1


def _changed(net: Plain, how: str) -> Plain:
    match how:
        case "stride":
            net.a.stride = (2, 2)
        case "function":
            net.act = torch.sigmoid
        case "layer":
            net.b = conv(8, 5)
        case "tied":
            net.a, net.b = conv(3, 3), conv(3, 3)
            net.b.weight = net.a.weight
        case "number":
            net.times = 3
        case "hook":
            net.a.register_forward_hook(_one_more)
        case "inner":
            net.act = nn.Sequential(nn.ReLU(), nn.Sigmoid())
    return net


@pytest.mark.parametrize("how", ["stride", "function", "layer", "tied", "number", "hook", "inner"])
def test_what_was_changed_is_read_again(how: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    net = Plain().eval()
    capture(net, x)
    changed = _changed(net, how).eval()
    assert torch.equal(capture(changed, x).module(x), changed(x))


def test_a_batch_that_somebody_fixed_is_read_again() -> None:
    x = torch.randn(2, 3, 8, 8)
    net = Plain().eval()
    graph = capture(net, x)
    assert graph.dynamic
    assert int(_batch(graph.module)) == 2  # asking fixes it
    assert capture(net, x).dynamic


def _batch(module: Any) -> Any:
    return next(n for n in module.graph.nodes if n.op == "placeholder").meta["val"].shape[0]


def test_closures_count_by_what_they_hold() -> None:
    x = torch.randn(2, 3, 8, 8)

    def times(n: float) -> Callable[[Tensor], Tensor]:
        return lambda y: y * n

    for n in (2.0, 3.0):
        net = Plain(times(n)).eval()
        assert torch.equal(capture(net, x).module(x), net(x))
    n = [2.0]
    net = Plain(lambda y: y * n[0]).eval()
    capture(net, x)
    n[0] = 5.0
    assert torch.equal(capture(net, x).module(x), net(x))


class Odd:
    factor = 2


class Named(str):
    """A word that may hold more than its letters."""


def _recursive() -> Callable[[Tensor, int], Tensor]:
    def act(y: Tensor, n: int = 2) -> Tensor:
        return act(y.relu(), n - 1) if n else y

    return act


def _unfilled() -> Callable[[Tensor], Tensor]:
    def act(y: Tensor) -> Tensor:
        return y if y.ndim else later

    if torch.get_num_threads() < 0:  # never, so that the closure stays empty
        later = torch.ones(1)
    return act


@pytest.mark.parametrize(
    "held",
    [Odd(), torch.ones(1), [nn.ReLU()], functools.partial(F.relu, Odd()), Named("n"), _recursive(), _unfilled()],
    ids=["object", "tensor", "module", "partial", "derived", "recursive", "unfilled"],
)
def test_a_state_that_cannot_be_told_is_never_kept(held: Any, reads: list[int]) -> None:
    x = torch.randn(2, 3, 8, 8)
    net = Plain(more=held).eval()
    assert structure(net, (x,)) is None
    capture(net, x), capture(net, x)
    assert len(reads) == 2


def test_inputs_of_another_kind_are_another_graph() -> None:
    net = Plain().eval()
    told = [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)]
    assert len({structure(net, (x,)) for x in told}) == len(told)


def test_nothing_is_kept_outside_and_only_the_last_ones_inside(reads: list[int]) -> None:
    x = torch.randn(2, 3, 8, 8)
    for n in range(MOST + 1):
        capture(Plain(times=n), x)
    capture(Plain(times=MOST), x)
    assert len(reads) == MOST + 1
    capture(Plain(times=0), x)
    assert len(reads) == MOST + 2
    token = kept._kept.set(None)
    net = Plain()
    capture(net, x), capture(net, x)
    with reading_once(), reading_once():
        capture(net, x)
    assert kept._kept.get() is None
    kept._kept.reset(token)
    assert len(reads) == MOST + 5


def test_tensors_written_in_forward_come_along() -> None:
    class Constant(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.tensor([2.0])

    x = torch.randn(2, 3, 8, 8)
    net = Constant().eval()
    graphs = [capture(net, x) for _ in range(2)]
    assert graphs[0].constants == graphs[1].constants != frozenset()
    for graph in graphs:
        assert torch.equal(graph.module(x), net(x))
