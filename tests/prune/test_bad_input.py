"""What is wrong with a model, an example or a plan is said in words; what looks odd but is not, works."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import ModelError, PenjingError, PlanError, RecipeError
from penjing.plan import ChannelPlan
from penjing.prune import plan_channels, prune, prune_channels
from penjing.zoo import ZOO
from tests.nets import IMAGE, TwoNames, conv
from tests.oracle import difference, inputs, randomized, zeroed

X = torch.randn(1, 3, 8, 8)


def sound() -> nn.Module:
    return nn.Sequential(
        conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 5)
    )


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, float("nan"), float("inf"), None])
def test_a_ratio_out_of_range(ratio: Any) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"ratio is {ratio}")):
        plan_channels(sound(), X, ratio)


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (torch.randn(1, 4, 8, 8), r"shape \[\(1, 4, 8, 8\)\].*3 channels, but got 4"),
        (torch.randn(1, 3, 9, 9), r"shape \[\(1, 3, 9, 9\)\]"),
        (torch.randn(3, 8), r"shape \[\(3, 8\)\]"),
        ((X, X), r"shape \[\(1, 3, 8, 8\), \(1, 3, 8, 8\)\]"),
        (X.long(), "type"),
        (X.numpy(), "example is ndarray; give a tensor"),
        ((), "example is tuple; give a tensor"),
        ({"x": X}, "example is dict; give a tensor"),
        (X[:0], r"example has shape \(0, 3, 8, 8\)"),
    ],
)
def test_an_example_that_the_model_does_not_take(example: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        prune(sound(), example, 0.5)


@pytest.mark.parametrize("name", ZOO)
def test_a_plan_for_another_model(name: str) -> None:
    make, shape = ZOO[name]
    plan = plan_channels(make(), torch.randn(1, *shape), 0.5)
    with pytest.raises(PlanError, match=r"the plan (cuts|keeps indices of dim \d of) \S+"):
        prune_channels(sound(), plan, X)


def test_a_plan_for_a_wider_model_of_the_same_names() -> None:
    wide = nn.Sequential(conv(3, 64), nn.ReLU(), conv(64, 5))
    narrow = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 5))
    with pytest.raises(PlanError, match=r"0\.\w+ that its shape \(16,"):
        prune_channels(narrow, plan_channels(wide, X, 0.5), X)


class Reader(nn.Module):
    """A network whose forward is up to its heirs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 8), nn.Linear(8, 3)


class Branch(Reader):
    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        if y.sum() > 0:
            y = -y
        return self.head(y.mean((2, 3)))


class Loop(Reader):
    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        while y.abs().max() > 1:
            y = y / 2
        return self.head(y.mean((2, 3)))


class Item(Reader):
    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        rows = int(y.abs().max().item())
        return self.head(y[:, :, :rows].mean((2, 3)))


class Chosen(Reader):
    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        positive = y[y > 0]
        return self.head(y.mean((2, 3)) + positive.sum())


class Numpy(Reader):
    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        y = torch.from_numpy(y.detach().numpy())
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "source", "cure"),
    [
        (Branch, "if y.sum() > 0:", "torch.where"),
        (Loop, "while y.abs().max() > 1:", "torch.where"),
        (Item, "rows = int(", "torch.where"),
        (Chosen, "positive = y[y > 0]", "torch.where"),
        (Numpy, "y = torch.from_numpy(", "numpy"),
    ],
)
def test_what_cannot_be_exported_is_told_with_the_line_and_the_cure(model: type[Reader], source: str, cure: str) -> None:
    lines, first = inspect.getsourcelines(model)
    number = first + next(i for i, line in enumerate(lines) if source in line)
    with pytest.raises(ModelError) as caught:
        prune(model(), X, 0.5)
    told = str(caught.value)
    assert f"test_bad_input.py:{number}" in told
    assert source in told
    assert cure in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: torch.jit.script(sound()), "script"),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.Conv2d(8, 8, 3)), r"0\.weight has no shape yet"),
        (lambda: sound().to("meta"), r"0\.weight is on the meta device"),
        (lambda: sound, "model is function"),
        (lambda: nn.Identity, "model is type"),
        (lambda: sound().state_dict(), "model is OrderedDict"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_what_is_no_network_in_python(model: Callable[[], Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        prune(model(), X, 0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "6.bias"])
def test_weights_that_are_not_numbers_are_named(name: str, bad: float) -> None:
    model = sound()
    model.state_dict()[name].view(-1)[2] = bad
    with pytest.raises(ModelError, match=rf"1 of \d+ values of {re.escape(name)} are NaN or infinite"):
        prune(model, X, 0.5)


class Integers(nn.Module):
    """A network without a single floating-point number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.arange(12).view(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w.T  # type: ignore[operator]


@pytest.mark.parametrize(
    ("model", "x"),
    [(nn.Sequential(), X), (nn.Identity(), X), (nn.ReLU(), X), (Integers(), torch.ones(2, 3, dtype=torch.int64))],
    ids=["empty", "identity", "activation", "integers"],
)
def test_where_nothing_can_be_cut_nothing_is(model: nn.Module, x: Tensor) -> None:
    with pytest.warns(UserWarning, match="nothing can be cut: (there is no layer|w stays)"):
        plan = plan_channels(model, x, 0.5)
    assert plan == ChannelPlan({})
    assert torch.equal(prune_channels(model, plan, x)(x), model(x))


def test_a_network_in_data_parallel_is_cut_as_the_network_in_it() -> None:
    inner = randomized(sound())
    model = nn.DataParallel(inner, device_ids=[])
    small = prune(model, X, 0.5)
    assert isinstance(small, nn.DataParallel)
    assert small.module[0].out_channels == 8
    with torch.no_grad():
        assert difference(small(X), prune(inner, X, 0.5)(X)) == 0
    with pytest.raises(PlanError, match="which the model does not have"):
        prune_channels(model, plan_channels(inner, X, 0.5), X)


def test_tied_weights_stay_tied_and_right() -> None:
    model, x = randomized(TwoNames()).double(), inputs(IMAGE, dtype=torch.float64)
    plan = plan_channels(model, x, 0.5, round_to=1)
    assert plan.keep
    small = prune_channels(model, plan, x)
    assert small.first.weight is small.second.weight
    tied = {name: dims for name, dims in plan.keep.items() if name.startswith("first")}
    whole = ChannelPlan({**plan.keep, **{n.replace("first", "second"): d for n, d in tied.items()}})
    with torch.no_grad():
        assert difference(small(*x), zeroed(model, whole)(*x)) < 1e-9


def test_a_network_that_was_pruned_already_is_pruned_again() -> None:
    model, x = randomized(sound()).double(), X.double()
    first = plan_channels(model, x, 0.5, round_to=1)
    once = prune_channels(model, first, x)
    second = plan_channels(once, x, 0.5, round_to=1)
    twice = prune_channels(once, second, x)
    assert [m.out_channels for m in (once[0], twice[0])] == [8, 4]  # type: ignore[index]
    with torch.no_grad():
        assert difference(twice(x), zeroed(model, first.then(second))(x)) < 1e-9
    with pytest.raises(PenjingError):
        prune_channels(once, first, x)  # the first plan is of the whole network
