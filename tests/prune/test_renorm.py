"""Statistics by hand, with batch norm and with it folded; and the choice between repairs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.errors import DataError, PlanError
from penjing.graph import capture, find_channels
from penjing.plan import ChannelPlan
from penjing.prune import plan_channels, prune_channels
from penjing.prune.renorm import reestimate, repair, rescale
from penjing.zoo import MobileNet, resnet20
from tests.nets import CUTTABLE, IMAGE, SHAPES, conv, head, net, pooled
from tests.oracle import chosen, inputs, randomized


def cut(model: nn.Module, x: Tensor, ratio: float = 0.5) -> tuple[ChannelPlan, nn.Module]:
    plan = plan_channels(model, x[:2], ratio, round_to=1)
    return plan, prune_channels(model, plan, x[:2], verify=False)


class TwoNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.3)
        self.b, self.m = nn.Linear(8, 5), nn.BatchNorm1d(5, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.m(self.b(F.relu(self.n(self.a(x))).mean((2, 3))))
        return out


def test_norms_get_the_statistics_of_what_reaches_them() -> None:
    model = randomized(TwoNorms()).double().train()
    x = torch.randn(37, 3, 8, 8, dtype=torch.float64) * 3 + 1
    fresh = reestimate(model, x[:2], [(part, "target") for part in x.split(10)])
    with torch.no_grad():
        y = model.a(x)
        torch.testing.assert_close(fresh.n.running_mean, y.mean((0, 2, 3)))
        torch.testing.assert_close(fresh.n.running_var, y.var((0, 2, 3)))
        by_hand = F.batch_norm(y, y.mean((0, 2, 3)), y.var((0, 2, 3)), model.n.weight, model.n.bias)
        z = model.b(F.relu(by_hand).mean((2, 3)))
        torch.testing.assert_close(fresh.m.running_mean, z.mean(0))
        torch.testing.assert_close(fresh.m.running_var, z.var(0))


def test_one_batch_gives_what_a_pass_in_train_mode_gives() -> None:
    model, x = randomized(TwoNorms()).double(), torch.randn(400, 3, 8, 8, dtype=torch.float64)
    trained = copy.deepcopy(model).train()
    for norm in (trained.n, trained.m):
        norm.reset_running_stats()
        norm.momentum = None
    trained(x)
    fresh = reestimate(model, x[:2], [x])
    torch.testing.assert_close(fresh.n.running_mean, trained.n.running_mean)
    torch.testing.assert_close(fresh.n.running_var, trained.n.running_var)
    torch.testing.assert_close(fresh.m.running_var, trained.m.running_var, rtol=1e-3, atol=0)


def test_nothing_but_the_statistics_changes() -> None:
    model = randomized(resnet20(width=4)).train()
    model.stage1[0].bn1.eval()
    x = torch.randn(20, 1, 12, 12)
    before = copy.deepcopy(model.state_dict())
    fresh = reestimate(model, x[:2], [x])
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    changed = {n.rsplit(".", 1)[1] for n, v in fresh.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"running_mean", "running_var"}
    assert {n: m.training for n, m in fresh.named_modules()} == {n: m.training for n, m in model.named_modules()}
    assert fresh.bn.momentum == model.bn.momentum


def test_a_norm_that_serves_two_places_is_left_alone() -> None:
    make = net(lambda m, x: m.n(m.c(m.n(m.c(x)))), c=conv(3, 3), n=nn.BatchNorm2d(3))
    model = randomized(make())
    fresh = reestimate(model, torch.randn(2, 3, 8, 8), [torch.randn(9, 3, 8, 8)])
    assert torch.equal(fresh.n.running_mean, model.n.running_mean)


FOLDED = net(
    lambda m, x: m.h(pooled(F.relu(m.c(F.relu(m.b(F.relu(m.a(x)))))))),
    a=conv(3, 16), b=conv(16, 16, groups=4), c=conv(16, 12), h=head(12),
)  # fmt: skip


def moments_of(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name: str) -> Any:
        return lambda _m, _x, y: seen.update({name: torch.std_mean(y.movedim(1, 0).flatten(1), dim=1)})

    hooks = [m.register_forward_hook(look(n)) for n, m in model.named_children()]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_folded_networks_get_the_original_s_means_and_deviations() -> None:
    model, x = randomized(FOLDED()).double(), torch.randn(40, 3, 8, 8, dtype=torch.float64)
    plan, small = cut(model, x, 0.25)
    scaled = rescale(small, model, plan, x[:2], x.split(15))
    wanted, before, found = (moments_of(m, x) for m in (model, small, scaled))
    for name in ("b", "c"):
        kept = list(plan.keep[f"{name}.weight"][0])
        for had, has, should in zip(before[name], found[name], wanted[name], strict=True):
            torch.testing.assert_close(has, should[kept])
            assert not torch.allclose(had, should[kept])
    assert torch.equal(scaled.h.weight, small.h.weight)  # what the network says is left as it is


def test_channels_next_to_dead_are_not_blown_up() -> None:
    model, x = randomized(FOLDED()).double(), torch.randn(40, 3, 8, 8, dtype=torch.float64)
    plan, small = cut(model, x, 0.25)
    with torch.no_grad():
        small.c.weight[2] *= 1e-3
        small.c.weight[4] = 0
    scaled = rescale(small, model, plan, x[:2], [x])
    assert torch.equal(scaled.c.weight[2], small.c.weight[2])
    assert not scaled.c.weight[4].any()
    kept = list(plan.keep["c.weight"][0])
    (_, wanted), (_, found) = moments_of(model, x)["c"], moments_of(scaled, x)["c"]
    torch.testing.assert_close(found, wanted[kept])


def output_error(model: nn.Module, candidate: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - candidate.eval()(x)).square().mean())


@pytest.mark.parametrize("make", [FOLDED, lambda: MobileNet(width=8), lambda: resnet20(width=4)])
def test_repair_brings_the_output_nearer(make: Any) -> None:
    model = randomized(make())
    x = torch.randn(90, 3 if make is FOLDED else 1, 8, 8)
    plan, small = cut(model, x)
    fixed = repair(small, model, plan, x[:2], x[:60].split(20))
    assert output_error(model, fixed, x[60:]) < 0.5 * output_error(model, small, x[60:])


def test_repair_never_takes_what_is_worse() -> None:
    model, x = randomized(FOLDED()), torch.randn(60, 3, 8, 8)
    plan = ChannelPlan({})
    fixed = repair(copy.deepcopy(model), model, plan, x[:2], [x])
    assert output_error(model, fixed, x) == 0


@pytest.mark.parametrize("name", ["two_inputs", "dict_output", "conv3d", "norm_without_scale"])
def test_repair_takes_networks_of_every_kind(name: str) -> None:
    model, shapes = randomized(CUTTABLE[name]()), SHAPES.get(name, IMAGE)
    plan = chosen(find_channels(capture(model, inputs(shapes))))
    small = prune_channels(model, plan, inputs(shapes), verify=False)
    fixed = repair(small, model, plan, inputs(shapes), [(inputs(shapes, n), None) for n in (11, 12, 13)])
    assert type(fixed) is type(small)
    assert all(v.isfinite().all() for v in fixed.state_dict().values())


def test_wrong_networks_and_data_are_refused() -> None:
    model, x = randomized(FOLDED()), torch.randn(9, 3, 8, 8)
    plan, small = cut(model, x)
    _, smaller = cut(model, x, 0.75)
    with pytest.raises(PlanError, match="shape"):
        rescale(smaller, model, plan, x[:2], [x])
    with pytest.raises(DataError, match="empty"):
        repair(small, model, plan, x[:2], [])
    with pytest.raises(DataError, match="NaN"):
        rescale(small, model, plan, x[:2], [x * 3e38])
    with pytest.raises(DataError, match="NaN"):
        reestimate(randomized(TwoNorms()), x[:2], [x * 3e38])
