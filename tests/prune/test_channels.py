import copy
import random

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import PenjingError, PlanError
from penjing.graph import capture, find_channels
from penjing.plan import ChannelPlan
from penjing.prune import plan_channels, prune_channels
from tests.nets import AWKWARD, CUTTABLE, IMAGE, SHAPES, STEPS, UNWILLING, Make, TwoNames, chain, conv
from tests.oracle import channels_of, chosen, difference, inputs, randomized, shifted, zeroed

# Those that compute in one precision whatever they are given, and how far two of their outputs may be apart.
IN_THEIR_OWN_PRECISION = {"float_inside": 1e-5, "autocast_inside": 0.05}


def outputs(name: str, make: Make, plan: ChannelPlan, *, verify: bool = False) -> tuple[object, object, object]:
    """What the pruned network gives, what the reference gives, and what it gives when the neighbours are dropped instead."""
    dtype = torch.float32 if name in IN_THEIR_OWN_PRECISION else torch.float64
    model, shapes = randomized(make()).to(dtype), SHAPES.get(name, IMAGE)
    small = prune_channels(model, plan, inputs(shapes, dtype=dtype), verify=verify)
    x = inputs(shapes, 3, dtype)
    with torch.no_grad():
        return small(*x), zeroed(model, plan)(*x), zeroed(model, shifted(model, plan))(*x)


@pytest.mark.parametrize("name", CUTTABLE)
def test_removing_channels_equals_zeroing_them(name: str) -> None:
    channels = channels_of(name)
    first = next(n for n, p in CUTTABLE[name]().named_parameters() if p.ndim > 1)
    for ratio in (0.25, 0.6):
        plan = chosen(channels, ratio)
        assert 0 in plan.keep[first]
        found, expected, others = outputs(name, CUTTABLE[name], plan)
        assert difference(found, expected) < 1e-9
        assert difference(others, expected) > 1e-4  # control: other channels differ


@pytest.mark.parametrize("name", AWKWARD)
def test_what_is_hard_to_follow_is_cut_rightly_or_left_whole(name: str) -> None:
    plan = chosen(channels_of(name))
    found, expected, others = outputs(name, AWKWARD[name], plan)
    assert difference(found, expected) < IN_THEIR_OWN_PRECISION.get(name, 1e-9)
    assert difference(others, expected) > 1e-4 or not plan.keep


@pytest.mark.parametrize("seed", range(10))
def test_networks_put_together_by_lot_are_cut_rightly(seed: int) -> None:
    steps = random.Random(seed).choices(sorted(STEPS), k=6)
    make = chain(*steps)
    plan = chosen(find_channels(capture(make(), inputs(IMAGE))), 0.4, seed=seed)
    found, expected, others = outputs("chain", make, plan)
    assert difference(found, expected) < 1e-9, steps
    assert difference(others, expected) > 1e-4 or not plan.keep


@pytest.mark.parametrize("name", UNWILLING)
def test_no_wrong_network_is_handed_back(name: str) -> None:
    try:
        found, expected, _ = outputs(name, UNWILLING[name], chosen(channels_of(name)), verify=True)
    except PenjingError:
        return
    assert difference(found, expected) < 1e-9


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
