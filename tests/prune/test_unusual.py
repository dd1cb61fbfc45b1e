"""Networks that are built in less usual ways: read, cut, proved and repaired as any other."""

import copy
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj
from penjing.errors import ModelError, NotEquivalent, RecipeError
from penjing.graph import capture
from penjing.graph.einsum import by_products
from penjing.measure import macs, peak_memory
from penjing.prune.channels import RewrittenWarning
from penjing.prune.renorm import statistics

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions, and whatever is done between them."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.LazyConv2d(4, 1)
        self.between = between
        for name, part in parts.items():
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            elif isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.c(self.between(self, self.a(x)))
        return found


def made(between: Callable[[Any, Tensor], Tensor], **parts: Any) -> nn.Module:
    net = Net(between, **parts)
    with torch.no_grad():
        net(X)
    return net.eval()


def in_place(view: Callable[[Tensor], Tensor]) -> nn.Module:
    def between(_m: Any, y: Tensor) -> Tensor:
        view(y).mul_(2)
        return y

    return made(between)


@pytest.mark.parametrize(
    "view",
    [lambda y: y.moveaxis(1, -1), lambda y: y.swapaxes(1, 2), lambda y: y.mT, lambda y: y.ravel(), lambda y: y[:, 1:]],
    ids=["moveaxis", "swapaxes", "mT", "ravel", "slice"],
)
def test_what_is_written_through_a_view_is_written(view: Callable[[Tensor], Tensor]) -> None:
    net = in_place(view)
    with torch.no_grad():
        torch.testing.assert_close(capture(net, X).module(X), net(X))


def test_one_tensor_that_is_given_twice_is_two_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, p: Tensor, q: Tensor) -> Tensor:
            found: Tensor = self.c(self.a(p).relu() - self.b(q).relu())
            return found

    net, other = Two().eval(), torch.randn_like(X)
    with torch.no_grad():
        torch.testing.assert_close(capture(net, (X, X)).module(X, other), net(X, other))


def modulated(m: Any, y: Tensor) -> Tensor:
    """Every sample has its own weights, as in StyleGAN2."""
    weight = m.w * y.mean((2, 3))[:, None, :, None, None]
    found = F.conv2d(y.reshape(1, -1, *y.shape[2:]), weight.flatten(0, 1), groups=y.shape[0], padding=1)
    return found.view(y.shape[0], -1, *y.shape[2:])


def normalized(_m: Any, y: Tensor) -> Tensor:
    return (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def halves(_m: Any, y: Tensor) -> Tensor:
    p, q = torch.split(y, 4, 1)
    return p * q.sigmoid()


def attended(m: Any, y: Tensor) -> Tensor:
    q, k, v = (part(y).flatten(2) for part in (m.q, m.k, m.v))
    seen = torch.einsum("bci,bcj->bij", q, k).softmax(-1)
    return torch.einsum("bij,bcj->bci", seen, v).view_as(y)


NETS: dict[str, Callable[[], nn.Module]] = {
    "variance by hand": lambda: made(normalized),
    "deviation over positions": lambda: made(lambda _m, y: y / (y.std((2, 3), keepdim=True, unbiased=False) + 1)),
    "weights of every sample's own": lambda: made(modulated, w=nn.Parameter(torch.randn(1, 8, 8, 3, 3))),
    "a table of indices": lambda: made(lambda m, y: y[:, :, m.order], order=torch.arange(8).flip(0)),
    "a table by two indices": lambda: made(
        lambda m, y: y + m.table[m.at], table=nn.Parameter(torch.randn(9)), at=torch.tensor([[1]])
    ),
    "another value's type": lambda: made(lambda m, y: y + m.grid.type_as(y), grid=torch.randn(8, 8)),
    "another value's shape": lambda: made(
        lambda m, y: y + m.s.view(1, 8, 1, 1).expand_as(m.like),
        s=nn.Parameter(torch.randn(8)),
        like=nn.Parameter(torch.randn(1, 8, 8, 8)),
    ),
    "attention by einsum": lambda: made(attended, q=nn.Conv2d(8, 6, 1), k=nn.Conv2d(8, 6, 1), v=nn.Conv2d(8, 8, 1)),
    "a matrix by einsum": lambda: made(
        lambda m, y: torch.einsum("nchw,cd->ndhw", y, m.w).relu(), w=nn.Parameter(torch.randn(8, 8))
    ),
    "halves": lambda: made(halves),
    "grouped, transposed": lambda: made(lambda m, y: m.up(y).relu(), up=nn.ConvTranspose2d(8, 8, 2, 2, groups=2)),
    "depthwise, transposed": lambda: made(lambda m, y: m.up(y).relu(), up=nn.ConvTranspose2d(8, 8, 2, 2, groups=8)),
    "a mask of what is infinite": lambda: made(lambda m, y: y + m.mask.exp(), mask=torch.full((8, 8), -torch.inf).triu(1)),
}


@pytest.mark.filterwarnings("ignore::penjing.prune.channels.RewrittenWarning")
@pytest.mark.parametrize("name", NETS)
def test_it_is_cut_proved_and_repaired(name: str) -> None:
    net = NETS[name]()
    plan = pj.plan_channels(net, X, ratio=0.5)  # prune_channels compares what it makes with the original, in float64
    small = pj.prune_channels(net, plan, X)
    fixed = pj.repair(small, net, plan, X, [X, torch.randn_like(X)])
    assert sum(p.numel() for p in fixed.parameters()) < sum(p.numel() for p in net.parameters())


def test_attention_by_einsum_is_cut_as_that_by_matmul() -> None:
    plan = pj.plan_channels(NETS["attention by einsum"](), X, ratio=0.5)
    assert {n: len(dims[0]) for n, dims in plan.keep.items() if n in ("q.weight", "k.weight", "v.weight")} == {
        "q.weight": 3, "k.weight": 3, "v.weight": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("equation", "one", "two"),
    [
        ("bci,bcj->bij", (2, 3, 4), (2, 3, 5)),
        ("bhid,bhjd->bhij", (2, 3, 4, 5), (2, 3, 6, 5)),
        ("nchw,cd->ndhw", (2, 3, 4, 5), (3, 6)),
        ("bchw,bchw->b", (2, 3, 4, 5), (2, 3, 4, 5)),
        ("bchw,c->bhw", (2, 3, 4, 5), (3,)),
        ("nkc,nchw->wnkh", (2, 6, 3), (2, 3, 4, 5)),
        ("ab,cb->ca", (2, 3), (4, 3)),
        ("i,i->", (3,), (3,)),
    ],
)
def test_einsum_by_products(equation: str, one: tuple[int, ...], two: tuple[int, ...]) -> None:
    a, b = torch.randn(one, dtype=torch.float64), torch.randn(two, dtype=torch.float64)
    torch.testing.assert_close(by_products(equation, [a, b]), torch.einsum(equation, a, b))


@pytest.mark.parametrize("equation", ["ii,ij->j", "...i,ij->...j", "i,j->ij", "ij,jk", "ab,bc->c", "ab,bc,cd->ad"])
def test_rarer_sums_stay_as_they_are_written(equation: str) -> None:
    terms = equation.partition("->")[0].split(",")
    assert by_products(equation, [torch.ones([2] * len(t.replace("...", ""))) for t in terms]) is NotImplemented


def test_a_table_that_is_longer_than_the_example_stays_whole() -> None:
    net = made(
        lambda m, y: (y.flatten(2) + m.pe[:, :, : y.shape[2] * y.shape[3]]).view_as(y), pe=nn.Parameter(torch.randn(1, 8, 100))
    )
    plan = pj.plan_channels(net, X, ratio=0.5)
    small = pj.prune_channels(net, plan, X)
    wide = torch.randn(2, 3, 10, 10)
    assert small(wide).shape == net(wide).shape


def test_a_depthwise_layer_may_come_down_to_one_channel() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.Conv2d(4, 64, 1), nn.Conv2d(64, 3, 1))
    small = pj.prune(net.eval(), X, 0.9, steps=2)
    assert sum(p.numel() for p in small.parameters()) < 0.3 * sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_second_moments_of_half_precision_are_summed_in_more(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3)).eval().to(dtype)
    sparse = pj.sparsify(net, density=0.5, criterion="obs", data=[(100 * X.abs()).to(dtype)])
    assert sum(int(p.count_nonzero()) for p in sparse.parameters() if p.ndim > 1) == pytest.approx(
        0.5 * (32 * 27 + 4 * 288), abs=2
    )


class Stepped(nn.Module):
    """A second input that is no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.b(self.a(x).relu() * t)
        return found


@pytest.mark.parametrize(("t", "ratio"), [(torch.tensor(3.0), 0.5), (torch.ones(8, 1, 1), 0.0)])
def test_inputs_without_a_batch_are_whole_in_a_repair(t: Tensor, ratio: float) -> None:
    net, x = Stepped().eval(), torch.randn(32, 3, 8, 8)
    plan = pj.plan_channels(net, (x, t), ratio)
    small = pj.prune_channels(net, plan, (x, t))
    with torch.no_grad():
        assert pj.repair(small, net, plan, (x, t), [(x, t)])(x, t).shape == (32, 4, 6, 6)


def test_what_is_infinite_in_weights_is_refused_still() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net[1].running_var[0] = torch.inf
    with pytest.raises(ModelError, match=r"1\.running_var"):
        pj.plan_channels(net, X, ratio=0.5)


def test_costs_of_tied_weights_and_of_a_sample_alone() -> None:
    a = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=False)).eval()
    x = torch.randn(1, 4, 8, 8)
    apart = peak_memory(capture(a, x), 1)
    a[2].weight = a[0].weight
    assert peak_memory(capture(a, x), 1) == apart - 4 * a[0].weight.numel()
    assert macs(capture(nn.Conv2d(3, 4, 1).eval(), torch.randn(3, 8, 8))) == 3 * 4 * 64


def test_blocks_that_hold_others_go_with_them() -> None:
    class Block(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = x + self.inner(x)
            return found

    def leaf() -> nn.Module:
        return Block(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()))

    net = nn.Sequential(*(Block(nn.Sequential(leaf(), leaf())) for _ in range(2))).eval()
    with pytest.raises(RecipeError, match="which held others inside"):
        pj.plan_blocks(net, X, 6, [X])


def test_a_size_that_is_added_is_no_shortcut() -> None:
    net = made(lambda _m, y: y + y.shape[0])
    with pytest.raises(RecipeError, match="0 residual blocks"):
        pj.plan_blocks(net, X, 1, [X])


def test_a_graph_that_was_misread_does_not_stand_in_for_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    def misread(model: nn.Module, example: Any) -> Any:
        graph = capture(model, example)
        for node in graph.module.graph.nodes:
            if node.target is torch.ops.aten.relu.default:
                node.target = torch.ops.aten.tanh.default
        graph.module.recompile()
        return graph

    net = made(lambda _m, y: y.relu().view(-1, 8, 8, 8))  # which has to be rewritten
    plan = pj.plan_channels(net, X, ratio=0.5)
    with pytest.warns(RewrittenWarning):
        pj.prune_channels(net, plan, X)
    monkeypatch.setattr(importlib.import_module("penjing.prune.channels"), "capture", misread)
    with pytest.raises(NotEquivalent):
        pj.prune_channels(net, plan, X)


@pytest.mark.parametrize("training", [True, False])
def test_a_spectral_norm_in_train_mode_is_cut_and_left_as_it_is(training: bool) -> None:
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), norm(nn.Conv2d(8, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 3)).train(
        training
    )
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 12, 12)
    plan = pj.plan_channels(model, x, ratio=0.5, round_to=1, exclude=("2.*",))
    small = pj.prune_channels(model, plan, x)
    assert small.training is training and small[2].training is training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(small.state_dict()["2.parametrizations.weight.0._u"], before["2.parametrizations.weight.0._u"])


def test_statistics_of_half_precision_are_taken_in_more() -> None:
    torch.manual_seed(0)
    values = [(1000 + 300 * torch.randn(64, 2, 4, 4, dtype=torch.float64)).half()]
    mean, variance = statistics(values, 1, "norm")
    exact = values[0].double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(mean, exact.mean(1))
    torch.testing.assert_close(variance, exact.var(1), rtol=1e-4, atol=0.0)
