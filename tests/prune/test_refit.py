"""The refit against least squares by hand, and what it must never do: make a layer worse or touch what is not its own."""

import copy
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from penjing.errors import DataError, PlanError, RecipeError
from penjing.graph import capture, find_channels
from penjing.plan import ChannelPlan
from penjing.prune import plan_channels, prune_channels
from penjing.prune.pair import Pair
from penjing.prune.refit import refit
from penjing.zoo import ResNet
from tests.nets import CUTTABLE, IMAGE, SHAPES, TwoNames, Wired, conv, head, net, pooled
from tests.oracle import chosen, inputs, randomized

RIDGE = (1e-12,)


def correlated(samples: int, channels: int, size: int = 8, seed: int = 0) -> Tensor:
    """Images whose channels tell much the same."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(samples, 2, size, size, generator=generator, dtype=torch.float64)
    mix = torch.randn(channels, 2, generator=generator, dtype=torch.float64)
    return torch.einsum("oc,nchw->nohw", mix, few) + 0.1 * torch.randn(
        samples, channels, size, size, generator=generator, dtype=torch.float64
    )


def cut(model: nn.Module, x: Tensor, ratio: float = 0.5) -> tuple[ChannelPlan, nn.Module]:
    plan = plan_channels(model, x[:2], ratio, round_to=1)
    return plan, prune_channels(model, plan, x[:2], verify=False)


def error(small: nn.Module, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((small(x) - model(x)).square().mean())


def two_layers(**second: Any) -> nn.Module:
    make = net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 16), b=conv(16, 4, **second))
    return randomized(make()).double()


def test_the_consumer_is_what_least_squares_gives() -> None:
    model, x = two_layers(), correlated(30, 3)
    plan, small = cut(model, x)
    fixed = refit(small, model, plan, x[:2], x.split(7), ridges=RIDGE)
    with torch.no_grad():
        read = F.unfold(F.relu(small.a(x)), 3, padding=1).transpose(1, 2).flatten(0, 1)
        wanted = model(x).movedim(1, -1).reshape(-1, 4)
    rows = torch.cat([read, torch.ones(len(read), 1)], 1).numpy()
    expected = np.linalg.lstsq(rows, wanted.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(fixed.b.weight.detach().flatten(1).numpy(), expected[:, :-1], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(fixed.b.bias.detach().numpy(), expected[:, -1], rtol=1e-6)
    assert torch.equal(fixed.a.weight, small.a.weight)  # it reads what the original reads
    assert error(fixed, model, x) < 0.2 * error(small, model, x)


def test_the_arguments_are_left_alone_and_what_comes_out_is_of_their_kind() -> None:
    model, x = CUTTABLE["norm_after_flatten"](), torch.randn(30, 3, 8, 8)
    model = randomized(model)
    plan, small = cut(model, x)
    small.train()
    states = [copy.deepcopy(m.state_dict()) for m in (small, model)]
    fixed = refit(small, model, plan, x[:2], x.split(16))
    for module, state in zip((small, model), states, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert type(fixed) is type(small)
    assert all(m.training for m in fixed.modules())
    assert {n: (v.shape, v.dtype) for n, v in fixed.state_dict().items()} == {
        n: (v.shape, v.dtype) for n, v in small.state_dict().items()
    }
    assert all(p.requires_grad and p.grad is None for p in fixed.parameters())


def test_a_layer_without_bias_gives_its_constant_to_the_norm_behind_it() -> None:
    make = net(
        lambda m, x: m.n(m.b(F.relu(m.a(x)) + 2)), a=conv(3, 16), b=conv(16, 4, bias=False, kernel=1), n=nn.BatchNorm2d(4)
    )
    model, x = randomized(make()).double(), correlated(40, 3)
    plan, small = cut(model, x)
    fixed = refit(small, model, plan, x[:2], [x], ridges=RIDGE)
    with torch.no_grad():
        read = (F.relu(small.a(x)) + 2).movedim(1, -1).reshape(-1, 8)
        wanted = model.b(F.relu(model.a(x)) + 2).movedim(1, -1).reshape(-1, 4)
        rows = torch.cat([read, torch.ones(len(read), 1)], 1)
        solution = torch.linalg.lstsq(rows, wanted).solution
        expected = (rows @ solution - model.n.running_mean) * (model.n.running_var + model.n.eps).rsqrt()
        expected = expected * model.n.weight + model.n.bias
        torch.testing.assert_close(fixed(x).movedim(1, -1).reshape(-1, 4), expected)
    assert torch.equal(fixed.n.running_var, small.n.running_var)
    assert torch.equal(fixed.n.weight, small.n.weight)
    assert not torch.allclose(fixed.n.running_mean, small.n.running_mean)


def test_a_layer_without_anything_to_take_a_constant_does_without() -> None:
    model, x = two_layers(bias=False), correlated(30, 3)
    plan, small = cut(model, x)
    fixed = refit(small, model, plan, x[:2], [x], ridges=RIDGE)
    with torch.no_grad():
        rows = F.unfold(F.relu(small.a(x)), 3, padding=1).transpose(1, 2).flatten(0, 1)
        expected = torch.linalg.lstsq(rows, model(x).movedim(1, -1).reshape(-1, 4)).solution.mT
    torch.testing.assert_close(fixed.b.weight.flatten(1).detach(), expected, rtol=1e-6, atol=1e-8)


def residual(norm: bool) -> nn.Module:
    """A sum of two paths, of which one has a weight that is computed, so that the other must make up for it."""

    def wiring(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.a(x))
        shortcut, z = F.conv2d(y, m.p.weight * 1, padding=1), m.c(y)
        return (m.n(z) if norm else z) + shortcut

    layers = {"a": conv(3, 16), "p": conv(16, 6), "c": conv(16, 6, bias=not norm), "n": nn.BatchNorm2d(6)}
    return randomized(net(wiring, **layers)()).double()


@pytest.mark.parametrize("norm", [False, True])
def test_the_sum_is_what_is_made_right(norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = residual(norm), correlated(40, 3)
    kept = tuple(range(6))
    plan = ChannelPlan({"a.weight": {0: kept}, "a.bias": {0: kept}, "p.weight": {1: kept}, "c.weight": {1: kept}})
    small = prune_channels(model, plan, x[:2], verify=False)
    fixed = refit(small, model, plan, x[:2], [x], ridges=RIDGE)
    monkeypatch.setattr(import_module("penjing.prune.refit"), "_added", lambda *_: None)
    branch_only = refit(small, model, plan, x[:2], [x], ridges=RIDGE)
    errors = [error(m, model, x) for m in (small, branch_only, fixed)]
    assert errors[0] > 1.2 * errors[1] > 1.2 * 1.2 * errors[2]
    assert torch.equal(fixed.p.weight, small.p.weight)
    with torch.no_grad():  # the best that the layer can do for the sum
        rows = F.unfold(F.relu(small.a(x)), 3, padding=1).transpose(1, 2).flatten(0, 1)
        rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
        wanted = model(x).movedim(1, -1).reshape(-1, 6)
        left = rows @ torch.linalg.lstsq(rows, wanted).solution - wanted
    assert errors[2] == pytest.approx(float(left.square().mean()), rel=1e-6)


NETS = [
    "grouped", "shuffled_then_grouped", "concatenated_then_depthwise", "csp", "transposed", "conv1d", "conv3d", "two_inputs",
    "dict_output", "tuple_output", "unet", "pre_activation", "norm_after_flatten", "channels_last_linear", "groups_as_batch",
    "layer_scale", "used_twice", "rows_as_channels", "padded_by_itself", "windows",
]  # fmt: skip


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", NETS)
def test_awkward_networks_come_nearer_to_the_original(name: str) -> None:
    model, shapes = randomized(CUTTABLE[name]()), SHAPES.get(name, IMAGE)
    x = inputs(shapes, 40)
    plan = chosen(find_channels(capture(model, inputs(shapes))))
    small = prune_channels(model, plan, inputs(shapes), verify=False)
    step = 2 if name == "groups_as_batch" else 16
    fixed = refit(small, model, plan, inputs(shapes), [tuple(t[i : i + step] for t in x) for i in range(0, 40, step)])
    with torch.no_grad():
        wanted, before, after = (tree_leaves(m(*x)) for m in (model, small, fixed))
    far = [
        sum(float((a - b).square().sum() / b.square().sum()) for a, b in zip(y, wanted, strict=True)) for y in (before, after)
    ]
    assert far[1] < 0.7 * far[0]


def test_a_sum_with_a_map_of_one_channel_is_let_be() -> None:
    make = net(lambda m, x: m.b(F.relu(m.a(x))) + m.c(x), a=conv(3, 16), b=conv(16, 6), c=conv(3, 1))
    model, x = randomized(make()).double(), correlated(30, 3)
    plan, small = cut(model, x)
    fixed = refit(small, model, plan, x[:2], [x])
    assert error(fixed, model, x) < error(small, model, x)


def test_shared_weights_are_left_alone() -> None:
    model, x = randomized(TwoNames()), torch.randn(30, 3, 8, 8)
    plan, small = cut(model, x)
    fixed = refit(small, model, plan, x[:2], [x])
    assert fixed.first.weight is fixed.second.weight
    assert torch.equal(fixed.first.weight, small.first.weight)
    assert not torch.equal(fixed.head.weight, small.head.weight)


def test_what_is_not_cut_is_not_changed() -> None:
    model, x = randomized(CUTTABLE["csp"]()), torch.randn(30, 3, 8, 8)
    fixed = refit(copy.deepcopy(model), model, ChannelPlan({}), x[:2], [x])
    assert all(torch.equal(a, b) for a, b in zip(fixed.parameters(), model.parameters(), strict=True))


def test_a_layer_that_would_get_worse_keeps_its_weights() -> None:
    """With as many samples as columns, noise is all that there is to fit."""
    model = nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 8)).double()
    with torch.no_grad():
        model[1].weight[:, 70:] *= 0.01  # those are cut
    x = torch.randn(80, 80, dtype=torch.float64)
    kept = {0: tuple(range(70))}
    plan = ChannelPlan({"0.weight": kept, "0.bias": kept, "1.weight": {1: kept[0]}})
    small = prune_channels(model, plan, x[:2], verify=False)
    fixed = refit(small, model, plan, x[:2], [x], ridges=RIDGE)
    assert torch.equal(fixed[1].weight, small[1].weight)
    held = refit(small, model, plan, x[:2], [x], ridges=(1.0,))
    assert not torch.equal(held[1].weight, small[1].weight)


def test_graphs_are_refitted_like_modules() -> None:
    model, x = two_layers(), correlated(30, 3)
    plan, small = cut(model, x)
    expected = refit(small, model, plan, x[:2], [x])
    a, b = (capture(m, x[:2]).module for m in (small, model))
    found = refit(a, b, plan, x[:2], [x])
    assert isinstance(found, fx.GraphModule)
    torch.testing.assert_close(found.state_dict(), dict(expected.state_dict()))


def test_progress_names_every_layer_that_is_fitted() -> None:
    from contextlib import contextmanager

    notes: list[str] = []

    @contextmanager
    def shown(label: str, total: int) -> Any:
        notes.append(f"{label} {total}")
        yield notes.append

    model, x = two_layers(), correlated(30, 3)
    plan, small = cut(model, x)
    refit(small, model, plan, x[:2], [x], progress=shown)
    assert notes[0] == "refitting 2"
    assert [n.split(":")[0] for n in notes[1:]] == ["b"]


def test_a_seed_gives_the_same_again() -> None:
    model, x = two_layers(), correlated(30, 3)
    plan, small = cut(model, x)
    a, b = (refit(small, model, plan, x[:2], [x], seed=4) for _ in range(2))
    assert torch.equal(a.b.weight, b.b.weight)


def test_a_network_that_does_not_belong_to_the_plan_is_refused() -> None:
    model, x = two_layers(), correlated(30, 3)
    plan, small = cut(model, x)
    _, smaller = cut(model, x, 0.75)
    with pytest.raises(PlanError, match=r"shape \(4,"):
        refit(smaller, model, plan, x[:2], [x])
    with pytest.raises(PlanError, match="drops the block 'a', which the model does not have"):
        refit(small, model, ChannelPlan(plan.keep, ("a",)), x[:2], [x])
    other = Wired(lambda m, x: m.b(F.gelu(m.a(x))), dict(small.named_children()))
    with pytest.raises(PlanError, match=r"gelu.* where the original computes .*relu"):
        refit(other, model, plan, x[:2], [x])
    longer = Wired(lambda m, x: m.b(F.relu(m.a(x))).abs(), dict(small.named_children()))
    with pytest.raises(PlanError, match="the original"):
        Pair.of(model, longer, plan, (x[:2],))


def test_bad_settings_and_data_are_refused() -> None:
    model, x = two_layers(), correlated(30, 3)
    plan, small = cut(model, x)
    with pytest.raises(RecipeError, match="ridges"):
        refit(small, model, plan, x[:2], [x], ridges=(0.0,))
    with pytest.raises(DataError, match="empty"):
        refit(small, model, plan, x[:2], [])
    with pytest.raises(DataError, match="shape"):
        refit(small, model, plan, x[:2], [x[:, :2]])
    with pytest.raises(DataError, match=r"b\.weight.*NaN"):
        refit(small, model, plan, x[:2], [x * 1e300])


def test_few_samples_and_a_fixed_batch_will_do() -> None:
    make = net(lambda m, x: m.h(pooled(F.relu(m.a(x))).view(2, -1)), a=conv(3, 16), h=head(16))
    model = randomized(make())
    x = torch.randn(2, 3, 8, 8)
    plan, small = cut(model, x)
    batches = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    fixed = refit(small, model, plan, x, batches)
    assert all(p.isfinite().all() for p in fixed.parameters())
    with pytest.raises(DataError, match="shape"):
        refit(small, model, plan, x, [torch.randn(3, 3, 8, 8)])


def linear_branch() -> nn.Module:
    make = net(
        lambda m, x: m.head((y := m.stem(x).relu()) + m.branch(y)), stem=conv(3, 8), branch=nn.Conv2d(8, 8, 1), head=conv(8, 4)
    )
    return randomized(make()).double()


def test_what_comes_after_a_block_that_went_makes_up_for_it() -> None:
    """The branch is linear, and pointwise, so a head that has its weights multiplied in says just the same."""
    model, x = linear_branch(), correlated(30, 3)
    plan = ChannelPlan({}, ("branch",))
    small = prune_channels(model, plan, x[:2])
    assert error(small, model, x) > 1e-3
    with torch.no_grad():  # so that nothing is lost at the border, where the bias is padded with zeros
        model.branch.bias.zero_()  # type: ignore[union-attr, operator]
    fixed = refit(small, model, plan, x[:2], x.split(10), ridges=RIDGE)
    assert error(fixed, model, x) < 1e-12
    taken = torch.einsum("oihw,ij->ojhw", model.head.weight, model.branch.weight[:, :, 0, 0])  # type: ignore[union-attr, index, operator]
    torch.testing.assert_close(fixed.head.weight, model.head.weight + taken, rtol=1e-4, atol=1e-6)  # type: ignore[union-attr, operator]


def test_blocks_and_channels_go_together() -> None:
    model, x = randomized(ResNet(blocks=2, width=8)), torch.randn(64, 1, 12, 12)
    whole = ChannelPlan({}, ("stage1.1", "stage3.1"))
    shallow = prune_channels(model, whole, x[:2])
    cut_too = ChannelPlan(plan_channels(shallow, x[:2], 0.5, round_to=2).keep, whole.blocks)
    small = prune_channels(model, cut_too, x[:2])
    fixed = refit(small, model, cut_too, x[:2], x.split(16))
    assert error(fixed, model, x) < 0.5 * error(small, model, x)
    assert sorted(n for n, _ in fixed.named_parameters()) == sorted(n for n, _ in small.named_parameters())
