import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import DataError, ModelError, NotEquivalent, PlanError, RecipeError
from penjing.graph import capture
from penjing.plan import ChannelPlan
from penjing.prune import blocks as blocks_module
from penjing.prune.blocks import block_effects, drop_blocks, find_blocks, plan_blocks
from penjing.prune.channels import prune_channels
from penjing.prune.decide import plan_channels
from penjing.prune.store import load, save
from penjing.zoo import ResNet, two_convolutions
from tests.nets import conv, net
from tests.oracle import randomized

X = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> nn.Module:
    return randomized(ResNet(blocks=3, width=4))


class Silenced(nn.Module):
    """A block of a ``ResNet`` whose branch adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


class Two(nn.Module):
    """Two residual branches in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(4, 4), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x)
        y: Tensor = x + self.b(x)
        return y


def test_blocks_are_those_with_an_identity_shortcut(model: nn.Module) -> None:
    found = find_blocks(capture(model, X))
    assert [b.name for b in found] == ["stage1.0", "stage1.1", "stage1.2", "stage2.1", "stage2.2", "stage3.1", "stage3.2"]
    held = {n for n, _ in [*model.named_parameters(), *model.named_buffers()] if n.startswith("stage2.1.")}
    assert set(next(b for b in found if b.name == "stage2.1").weights) == {n for n in held if "num_batches" not in n}


def test_a_chain_has_no_blocks() -> None:
    assert find_blocks(capture(two_convolutions(width=4), torch.zeros(1, 3, 32, 32))) == []


def test_a_shortcut_that_is_spread_over_the_sum_is_no_identity() -> None:
    make = net(lambda m, x: m.b(x + m.a(x)), a=conv(1, 16), b=conv(16, 4))
    assert find_blocks(capture(make(), X)) == []


def test_of_two_blocks_in_one_module_the_second_goes_after_the_first() -> None:
    model = randomized(net(lambda m, x: m.head(m.blocks(m.stem(x))), stem=conv(1, 4), blocks=Two(), head=conv(4, 2))())
    names = [b.name for b in find_blocks(capture(model, X))]
    first = drop_blocks(model, names[:1], X)
    both = drop_blocks(first, names[1:], X)
    torch.testing.assert_close(both(X), drop_blocks(model, names, X)(X))


def test_dropping_a_block_leaves_what_its_shortcut_carries(model: nn.Module) -> None:
    expected = copy.deepcopy(model)
    expected.stage2[1] = expected.stage1[2] = Silenced()  # type: ignore[index, union-attr, operator]
    small = drop_blocks(model, ["stage2.1", "stage1.2"], X)
    x = torch.randn(3, 1, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(small(x), expected(x))
        assert not torch.allclose(small(x), model(x))
    assert isinstance(small, ResNet)
    assert {n for n, _ in small.named_parameters()} == {n for n, _ in expected.named_parameters()}
    assert {n for n, _ in small.named_buffers()} == {n for n, _ in expected.named_buffers()}


def test_what_is_left_trains_and_keeps_its_modes(model: nn.Module) -> None:
    small = drop_blocks(model, ["stage1.1"], X).train()
    before = small.bn.running_mean.clone()  # type: ignore[union-attr, operator]
    small(X).square().mean().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert not torch.equal(small.bn.running_mean, before)  # type: ignore[union-attr, arg-type]
    small.eval()
    before = small.bn.running_mean.clone()  # type: ignore[union-attr, operator]
    small(X)
    assert torch.equal(small.bn.running_mean, before)  # type: ignore[union-attr, arg-type]


def test_the_block_that_does_least_goes_first(model: nn.Module) -> None:
    with torch.no_grad():
        model.stage3[1].bn2.weight.mul_(1e-9)  # type: ignore[index, union-attr]
        model.stage3[1].bn2.bias.mul_(1e-9)  # type: ignore[index, union-attr]
    graph = capture(model, X)
    effects = block_effects(graph, find_blocks(graph), [X, X])
    assert min(effects, key=lambda n: effects[n]) == "stage3.1"
    assert effects["stage3.1"] < 1e-6 < max(effects.values())
    assert plan_blocks(model, X, 1, [X]).blocks == ("stage3.1",)


def test_a_plan_of_blocks_and_channels_is_replayed(model: nn.Module) -> None:
    first = plan_blocks(model, X, 2, [X])
    smaller = prune_channels(model, first, X)
    then = plan_channels(smaller, X, 0.5, round_to=1)
    both = ChannelPlan.from_json(first.then(then).to_json())
    assert both.blocks == first.blocks
    with torch.no_grad():
        assert torch.equal(prune_channels(model, both, X)(X), prune_channels(smaller, then, X)(X))


def test_a_wrong_drop_is_not_handed_back(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = copy.deepcopy(model)
    monkeypatch.setattr(blocks_module, "with_forward", lambda *_: whole)
    with pytest.raises(NotEquivalent, match=r"stage1\.0"):
        drop_blocks(model, ["stage1.0"], X)


def test_mistakes_are_told(model: nn.Module) -> None:
    with pytest.raises(PlanError, match=r"'stage9'.*stage1\.0"):
        drop_blocks(model, ["stage9"], X)
    with pytest.raises(RecipeError, match="count is 8"):
        plan_blocks(model, X, 8, [X])
    with pytest.raises(DataError, match="no batch"):
        plan_blocks(model, X, 1, [])


def test_a_branch_that_others_read_is_no_block() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(1, 4), conv(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.a(x)
            branch = self.b(x)
            return x + branch, branch

    assert find_blocks(capture(Read(), X)) == []


def test_a_network_without_its_blocks_takes_back_its_own_state() -> None:
    """Also as a plain dictionary, as files and checkpoints hold it."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.norm(self.conv(x))).relu()

    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), Block(), Block(), nn.Flatten(), nn.Linear(64, 2)).eval(), torch.randn(2, 3, 6, 6)
    names = [b.name for b in find_blocks(capture(net, x))]
    small = drop_blocks(net, names[-1:], x)
    small.load_state_dict({**small.state_dict()})


def test_both_blocks_of_one_module_can_be_planned_to_go() -> None:
    make = net(lambda m, x: m.head(m.two(m.stem(x))), stem=conv(1, 4), two=Two(), head=conv(4, 2))
    model = randomized(make())
    plan = plan_blocks(model, X, 2, [X])
    small = prune_channels(model, plan, X)
    torch.testing.assert_close(small.eval()(X), model.eval().head(model.stem(X)))


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_blocks_whose_weights_are_computed_of_others_go_too(wrap: Callable[[nn.Module], nn.Module]) -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = wrap(conv(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.inner(x)
            return y

    make = net(lambda m, x: m.head(m.block(m.stem(x))), stem=conv(1, 4), block=Inner(), head=wrap(conv(4, 2)))
    model = randomized(make()).train()
    plan = plan_blocks(model, X, 1, [X])
    small = prune_channels(model, plan, X)
    assert not any(name.startswith("block") for name, _ in small.named_parameters())


def test_channels_that_were_cut_before_a_block_went_are_no_hindrance(model: nn.Module, tmp_path: Path) -> None:
    first = plan_channels(model, X, ratio=0.5, round_to=1)
    thin = prune_channels(model, first, X)
    second = plan_blocks(thin, X, 1, [X])
    small = prune_channels(thin, second, X)
    assert any(name.startswith(second.blocks[0]) for name in first.keep)
    save(tmp_path / "s.safetensors", small, first.then(second), X)
    again = load(tmp_path / "s.safetensors", lambda: randomized(ResNet(blocks=3, width=4)))
    torch.testing.assert_close(again(X), small.eval()(X))


def test_a_network_of_one_batch_without_a_block_is_read_back(tmp_path: Path) -> None:
    make = net(lambda m, x: m.head(m.two(m.stem(x))).view(int(x.shape[0]), -1), stem=conv(1, 4), two=Two(), head=conv(4, 2))
    model = randomized(make()).eval()
    plan = plan_blocks(model, X, 1, [X])
    small = prune_channels(model, plan, X).eval()
    save(tmp_path / "s.safetensors", small, plan, X)
    torch.testing.assert_close(load(tmp_path / "s.safetensors", make)(X), small(X))
    with pytest.raises(ModelError, match=r"\[2, 1, 12, 12\]"):  # the samples of a larger batch would be mixed
        small(torch.cat([X, X]))


def test_an_assertion_about_the_precision_of_the_original_is_no_obstacle() -> None:
    """torch writes one beside every ``to``, and the proof is in float64."""
    make = net(
        lambda m, x: m.head(m.two(m.stem(x) * m.s.to(x.dtype))),
        stem=conv(1, 4),
        s=nn.Parameter(torch.ones(1)),
        two=Two(),
        head=conv(4, 2),
    )
    model = randomized(make()).eval()
    assert len(prune_channels(model, plan_blocks(model, X, 1, [X]), X)(X)) == 2


def test_a_network_that_takes_logarithms_is_proved_on_its_example() -> None:
    make = net(lambda m, x: m.head(m.two(m.stem(x.log()))), stem=conv(1, 4), two=Two(), head=conv(4, 2))
    model = randomized(make()).eval()
    x = X.abs() + 0.1
    plan = plan_blocks(model, x, 1, [x])
    assert len(prune_channels(model, plan, x, verify=False)(x)) == 2
