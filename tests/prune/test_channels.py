import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penjing.errors import PenjingError, PlanError
from penjing.plan import ChannelPlan
from penjing.prune import plan_channels, prune, prune_channels
from penjing.prune.channels import RewrittenWarning
from penjing.prune.verify import verify_against
from tests.nets import AWKWARD, CUTTABLE, IMAGE, MIXING, REWRITTEN, SHAPES, UNWILLING, TwoNames, conv
from tests.oracle import (
    IN_THEIR_OWN_PRECISION,
    absent,
    channels_of,
    chosen,
    difference,
    first_layer,
    inputs,
    randomized,
    read_of,
    shifted,
    zeroed,
)  # fmt: skip

UNTRAINABLE = {"in_place", "summed_in_place"}  # they write over what the gradient needs, cut or not


def proved(name: str, plan: ChannelPlan) -> tuple[nn.Module, nn.Module]:
    """A network of ``tests/nets.py`` at random, and what the plan leaves of it, as ``prune_channels`` proves it."""
    model, graph, channels = read_of(name)
    small = prune_channels(model, plan, graph.example, verify=False)
    verify_against(graph, channels, small, plan)
    return model, small


def handed_back(name: str, plan: ChannelPlan) -> tuple[nn.Module, nn.Module]:
    """The same, all by ``prune_channels``, which reads the network once more."""
    model, graph, _ = read_of(name)
    return model, prune_channels(model, plan, graph.example)


def check_absent(model: nn.Module, small: nn.Module, plan: ChannelPlan, name: str = "", tolerance: float = 1e-9) -> None:
    """What is dropped takes no part, for another batch too; and as a control, other channels would matter."""
    x = inputs(SHAPES.get(name, IMAGE), 3, next(model.parameters()).dtype)
    with torch.no_grad():
        found = small(*x)
    assert difference(found, absent(model, plan)(*x)) < tolerance
    assert not plan.keep or unlike(found, absent(model, shifted(model, plan))(*x))


def unlike(found: Any, other: Any) -> bool:
    """Whether two outputs differ; one in which channels are missing that are needed is NaN."""
    pairs = zip(tree_leaves(found), tree_leaves(other), strict=True)
    return any(not (a - b).abs().max() <= 1e-4 * b.abs().max() for a, b in pairs)


def check_trainable(model: nn.Module, small: nn.Module, name: str) -> None:
    """In train mode every parameter that had a gradient has one."""
    lacking = []
    for net in (model, small):
        net = copy.deepcopy(net).train()
        outputs = tree_leaves(net(*inputs(SHAPES.get(name, IMAGE), 3, torch.float64)))
        sum(y.square().mean() for y in outputs).backward()
        lacking.append({n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()})
    assert lacking[0] == lacking[1]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [*CUTTABLE, *MIXING])
def test_what_is_dropped_takes_no_part(name: str) -> None:
    plan = chosen(channels_of(name))
    model, small = proved(name, plan)
    assert 0 in plan.keep[first_layer(model)]
    assert type(small) is type(model)
    check_absent(model, small, plan, name)
    if name not in UNTRAINABLE:
        check_trainable(model, small, name)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", REWRITTEN)
def test_sizes_written_into_forward_are_rewritten(name: str) -> None:
    name = f"{name}, rewritten"
    plan = chosen(channels_of(name))
    with pytest.warns(RewrittenWarning, match="sizes written into it"):
        model, small = handed_back(name, plan)
    assert 0 in plan.keep[first_layer(model)]
    assert isinstance(small, type(model))
    assert small.state_dict().keys() == model.state_dict().keys()
    check_absent(model, small, plan, name)
    check_trainable(model, small, name)


@pytest.mark.parametrize("name", CUTTABLE)
def test_removing_channels_equals_zeroing_them(name: str) -> None:
    """The same by the textbook's words, which hold where nothing but layers sums over channels."""
    plan = chosen(channels_of(name), 0.25, seed=1)
    model, graph, _ = read_of(name)
    small = prune_channels(model, plan, graph.example, verify=False)
    x = inputs(SHAPES.get(name, IMAGE), 3, torch.float64)
    with torch.no_grad():
        expected = zeroed(model, plan)(*x)
        assert difference(small(*x), expected) < 1e-9
        assert unlike(expected, zeroed(model, shifted(model, plan))(*x))  # control: other channels differ


@pytest.mark.parametrize("name", AWKWARD)
def test_what_is_hard_to_follow_is_cut_rightly_or_left_whole(name: str) -> None:
    plan = chosen(channels_of(name))
    model, small = proved(name, plan)
    check_absent(model, small, plan, name, IN_THEIR_OWN_PRECISION.get(name, 1e-9))


@pytest.mark.parametrize("name", UNWILLING)
def test_no_wrong_network_is_handed_back(name: str) -> None:
    plan = chosen(channels_of(name))
    try:
        model, small = handed_back(name, plan)
    except PenjingError:
        return
    x = inputs(IMAGE, 3, torch.float64)
    with torch.no_grad():
        assert difference(small(*x), absent(model, plan)(*x)) < 1e-9


def test_the_reference_with_nothing_absent_is_the_model() -> None:
    for name in MIXING:
        model, graph, _ = read_of(name)
        x = graph.example
        with torch.no_grad():
            assert difference(absent(model, ChannelPlan({}))(*x), model(*x)) < 1e-9, name


class Hooked(nn.Module):
    """A network with what a copy could lose: hooks, a shared weight, frozen weights, a mode of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 16, groups=16), conv(16, 8))
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.head = nn.Linear(8, 5)
        self.body[0].weight.requires_grad_(False)
        self.body[1].eval()
        self.calls = 0
        self.register_forward_hook(lambda m, _x, _y: setattr(m, "calls", m.calls + 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.up(self.body(x)).mean((2, 3)))
        return out


Pruned = tuple[Hooked, Hooked, ChannelPlan, dict[str, Tensor]]


@pytest.fixture(scope="module")
def pruned() -> Pruned:
    """A model that was pruned while it was in train mode, what came of it, the plan, and the model's state before."""
    model = Hooked()
    before = copy.deepcopy(model.state_dict())
    x = inputs(IMAGE, 1)
    plan = plan_channels(model, x, 0.5, round_to=1)
    return model, prune_channels(model, plan, x), plan, before


def test_the_argument_is_left_alone(pruned: Pruned) -> None:
    model, _, _, before = pruned
    assert model.training
    assert not model.body[1].training
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.body[0].out_channels == 16
    assert all(p.grad is None for p in model.parameters())


def test_class_names_hooks_and_modes_survive(pruned: Pruned) -> None:
    model, small, plan, _ = pruned
    assert type(small) is Hooked
    assert small.state_dict().keys() == model.state_dict().keys()
    assert {n: m.training for n, m in small.named_modules()} == {n: m.training for n, m in model.named_modules()}
    assert {n: p.requires_grad for n, p in small.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    calls = small.calls
    small(*inputs(IMAGE))
    assert small.calls == calls + 1
    for name, dims in plan.keep.items():
        assert all(small.state_dict()[name].shape[dim] == len(index) for dim, index in dims.items())


def test_the_kept_weights_are_the_model_s_own(pruned: Pruned) -> None:
    model, small, plan, _ = pruned
    for name, value in small.state_dict().items():
        expected = model.state_dict()[name]
        for dim, index in plan.keep.get(name, {}).items():
            expected = torch.stack([expected.select(dim, i) for i in index], dim)
        assert torch.equal(value, expected)
        assert value.data_ptr() != model.state_dict()[name].data_ptr()


def check_sizes(small: nn.Module) -> None:
    """What every layer remembers of its sizes is what its tensors have."""
    for m in small.modules():
        if isinstance(m, nn.modules.conv._ConvTransposeNd):
            assert m.weight.shape[:2] == (m.in_channels, m.out_channels // m.groups)
        elif isinstance(m, nn.modules.conv._ConvNd):
            assert m.weight.shape[:2] == (m.out_channels, m.in_channels // m.groups)
            assert m.out_channels % m.groups == 0
        elif isinstance(m, nn.Linear):
            assert m.weight.shape == (m.out_features, m.in_features)
        elif isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None:
            assert m.running_mean.shape == (m.num_features,)


@pytest.mark.filterwarnings("ignore:The tensor attribute")
@pytest.mark.parametrize(
    "first",
    [
        nn.Sequential(conv(3, 8), nn.InstanceNorm2d(8)),
        nn.Sequential(nn.utils.spectral_norm(conv(3, 8)), nn.BatchNorm2d(8, affine=False, track_running_stats=False)),
    ],
)
def test_layers_whose_tensors_do_not_tell_remember_their_new_sizes(first: nn.Sequential) -> None:
    small = prune(nn.Sequential(first, conv(8, 2)), inputs(IMAGE), 0.5, round_to=4)
    assert small[0][0].out_channels == small[0][1].num_features == small[1].in_channels == 4


def test_what_only_training_reads_is_told_and_can_be_excluded() -> None:
    class Aided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.aux = conv(3, 8), conv(8, 2), conv(8, 2)

        def forward(self, x: Tensor) -> Any:
            y = self.a(x)
            return (self.b(y), self.aux(y)) if self.training else self.b(y)

    x = inputs(IMAGE)
    plan = plan_channels(Aided(), x, 0.5, exclude=["aux.*"], round_to=4)
    with pytest.warns(UserWarning, match=r"aux\.weight and 1 more take no part in eval mode"):
        prune_channels(Aided(), plan, x)


def test_layers_remember_their_new_sizes(pruned: Pruned) -> None:
    _, small, _, _ = pruned
    check_sizes(small)
    assert (small.body[3].groups, small.up.in_channels, small.head.in_features) == (8, 4, 4)


@pytest.mark.parametrize("name", ["grouped", "concatenated_then_depthwise", "norm_without_scale", "conv3d", "transposed"])
def test_layers_of_every_kind_remember_their_new_sizes(name: str) -> None:
    check_sizes(prune_channels(CUTTABLE[name](), chosen(channels_of(name)), inputs(SHAPES.get(name, IMAGE)), verify=False))


def test_what_is_left_can_be_trained(pruned: Pruned) -> None:
    small = copy.deepcopy(pruned[1]).train()
    small(*inputs(IMAGE)).square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for p in small.parameters())
    small.to(memory_format=torch.channels_last)


def test_a_shared_weight_stays_shared() -> None:
    small = prune_channels(TwoNames(), chosen(channels_of("two_names")), inputs(IMAGE), verify=False)
    assert small.first.weight is small.second.weight
    assert small.first.bias is small.second.bias
    assert small.first.weight.shape[:2] == (8, 8)


def test_a_plan_that_keeps_all_changes_nothing() -> None:
    model = randomized(CUTTABLE["plain"]())
    small = prune_channels(model, ChannelPlan({}), inputs(IMAGE), verify=False)
    assert small is not model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), small.parameters(), strict=True))


def test_pruning_twice_is_pruning_once_by_both_plans() -> None:
    model, x = randomized(CUTTABLE["csp"]()).double(), inputs(IMAGE, dtype=torch.float64)
    first = chosen(channels_of("csp"), 0.25)
    middle = prune_channels(model, first, x, verify=False)
    second = plan_channels(middle, x, 0.5, round_to=1)
    in_turn = prune_channels(middle, second, x, verify=False)
    at_once = prune_channels(model, first.then(second), x, verify=False)
    assert all(torch.equal(a, b) for a, b in zip(at_once.parameters(), in_turn.parameters(), strict=True))


@pytest.mark.parametrize(
    ("keep", "named"),
    [
        ({"c.weight": {0: (0,)}}, r"c\.weight"),
        ({"a.weight": {0: (0, 16)}}, r"dim 0 of a\.weight"),
        ({"a.weight": {0: (-1, 2)}}, r"dim 0 of a\.weight"),
        ({"a.weight": {0: ()}}, r"dim 0 of a\.weight"),
        ({"a.weight": {4: (0,)}}, r"dim 4 of a\.weight"),
        ({"a.weight": {-4: (0, 1)}}, r"dim -4 of a\.weight"),
        ({"a.weight": {0: (0, 0, 1)}}, r"dim 0 of a\.weight"),
    ],
)
def test_a_plan_for_another_model_is_refused(keep: dict[str, dict[int, tuple[int, ...]]], named: str) -> None:
    with pytest.raises(PlanError, match=named):
        prune_channels(CUTTABLE["plain"](), ChannelPlan(keep), inputs(IMAGE), verify=False)
