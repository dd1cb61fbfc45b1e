"""Students made from their teacher, held against its own weights and shapes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penjing.distill import plan_student, student_of
from penjing.errors import ModelError, PlanError, RecipeError
from penjing.plan import ChannelPlan
from penjing.zoo import ResNet, two_convolutions
from tests.oracle import randomized

X = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
DATA = [torch.randn(8, 1, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]


class Block(nn.Module):
    """A branch beside an identity shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn(self.conv(x)))


def residual(width: int) -> nn.Module:
    blocks = [Block(width) for _ in range(4)]
    return randomized(nn.Sequential(nn.Conv2d(1, width, 3), *blocks, nn.Flatten(), nn.Linear(100 * width, 10)))


@pytest.fixture
def teacher() -> nn.Module:
    return randomized(ResNet(blocks=1, width=16))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_half_the_width_is_half_of_all_channels_but_inputs_and_classes(teacher: nn.Module) -> None:
    student = student_of(teacher, X, plan_student(teacher, X, width=0.5))
    assert shapes(student) == shapes(ResNet(blocks=1, width=8))
    assert student(X).shape == (2, 10)


def test_what_stays_are_the_teachers_weights(teacher: nn.Module) -> None:
    before = values(teacher)
    plan = plan_student(teacher, X, width=0.5)
    student = values(student_of(teacher, X, plan))
    assert same(values(teacher), before)
    assert "conv.weight" in plan.keep and set(student) == set(before)
    for name, value in student.items():
        expected = before[name]
        for dim, kept in plan.keep.get(name, {}).items():
            expected = expected.index_select(dim, torch.tensor(kept))
        assert torch.equal(value, expected), name


def test_the_channels_that_stay_have_the_largest_weights() -> None:
    net = two_convolutions(width=16)
    conv = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    name = next(n for n, p in net.named_parameters() if p is conv.weight)
    with torch.no_grad():
        conv.weight[1::2] *= 100
    assert plan_student(net, torch.zeros(1, 3, 32, 32), width=0.5).keep[name][0] == tuple(range(1, 16, 2))


@pytest.mark.parametrize(("depth", "dropped"), [(0.5, 2), (0.99, 1), (0.01, 4)])
def test_depth_drops_blocks(depth: float, dropped: int) -> None:
    net = residual(8)
    plan = plan_student(net, X, depth=depth, data=DATA)
    assert len(plan.blocks) == dropped and not plan.keep
    student = student_of(net, X, plan)
    gone = {n for n in shapes(net) if n.startswith(tuple(f"{block}." for block in plan.blocks))}
    assert len(gone) == 3 * dropped and set(shapes(student)) == set(shapes(net)) - gone
    assert all(torch.equal(p, net.get_parameter(n)) for n, p in student.named_parameters())


@pytest.mark.parametrize("inherit", [True, False])
def test_width_and_depth_together(inherit: bool) -> None:
    net = residual(16).train()
    before = values(net)
    plan = plan_student(net, X, width=0.5, depth=0.5, data=DATA)
    student = student_of(net, X, plan, inherit=inherit)
    assert net.training and same(values(net), before)
    narrow = shapes(residual(8))
    assert len(plan.blocks) == 2 and len(shapes(student)) == len(narrow) - 2 * 3
    assert shapes(student) == {n: s for n, s in narrow.items() if n in shapes(student)}
    student(X).sum().backward()
    assert all(p.grad is not None for p in student.parameters())


def test_fresh_weights_are_drawn_from_the_seed_alone(teacher: nn.Module) -> None:
    plan = plan_student(teacher, X, width=0.5)
    state = torch.random.get_rng_state()
    first, again, other = (values(student_of(teacher, X, plan, inherit=False, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(first, again) and not same(first, other)
    old = values(student_of(teacher, X, plan))
    for name, value in first.items():
        if value.ndim > 1:
            assert not (value == old[name]).any() and not (value == other[name]).any()
            bound = 1 / value[0].numel() ** 0.5  # of torch's own initialization
            assert 0.9 * bound < value.abs().max() <= bound
        elif name.endswith("running_mean"):
            assert (value == 0).all()
        elif name.endswith("running_var"):
            assert (value == 1).all()


class Own(nn.Module):
    """Starts its layer in its own way, which must not be undone by the layer's."""

    def __init__(self, start: bool) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 16, 3)
        self.last = nn.Conv2d(16, 2, 3)
        if start:
            self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Any:
        return self.last(self.inner(x).relu()) * getattr(self, "scale", 1.0)


class Started(Own):
    def reset_parameters(self) -> None:
        nn.init.constant_(self.inner.weight, 7.0)


def test_a_module_that_starts_its_layers_has_the_last_word() -> None:
    net = Started(False)
    fresh = student_of(net, X, plan_student(net, X, width=0.5), inherit=False)
    assert (fresh.get_parameter("inner.weight") == 7).all()


def test_fresh_weights_of_what_cannot_make_them_are_refused() -> None:
    net = Own(True)
    with pytest.raises(ModelError, match=r"the model \(Own\) has parameters but no reset_parameters"):
        student_of(net, X, plan_student(net, X, width=0.5), inherit=False)


@pytest.mark.parametrize("share", [0, -0.5, 1.1, float("nan")])
@pytest.mark.parametrize("name", ["width", "depth"])
def test_a_share_that_is_none_is_refused(teacher: nn.Module, name: str, share: float) -> None:
    with pytest.raises(RecipeError, match=f"student.{name} is {share}"):
        plan_student(teacher, X, **{name: share})  # type: ignore[arg-type]


def test_the_teacher_itself_is_no_student(teacher: nn.Module) -> None:
    with pytest.raises(RecipeError, match="is the teacher"):
        plan_student(teacher, X)


def test_blocks_need_data_and_blocks(teacher: nn.Module) -> None:
    with pytest.raises(RecipeError, match="give data"):
        plan_student(teacher, X, depth=0.5)
    with pytest.raises(RecipeError, match="no residual block"):
        plan_student(two_convolutions(width=8), torch.zeros(1, 3, 32, 32), depth=0.5, data=DATA)


def test_a_plan_of_another_network_is_refused(teacher: nn.Module) -> None:
    with pytest.raises(PlanError):
        student_of(teacher, X, ChannelPlan({"nowhere.weight": {0: (0, 1)}}))
