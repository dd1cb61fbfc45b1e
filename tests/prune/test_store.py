import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penjing.errors import ModelError, PenjingError, PlanError, RecipeError
from penjing.graph import capture, find_channels
from penjing.plan import ChannelPlan
from penjing.prune import plan_channels, prune_channels
from penjing.prune.blocks import plan_blocks
from penjing.prune.store import load, plan_of, save
from penjing.zoo import ZOO, ResNet
from tests.nets import CUTTABLE, IMAGE, REWRITTEN, SHAPES, Make, TwoNames, conv
from tests.oracle import channels_of, chosen, inputs, randomized

X = inputs(IMAGE, 1)


def same(a: object, b: object) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


def alike(a: object, b: object) -> bool:
    """Up to rounding: the same sums may run in another order where weights lie elsewhere in memory."""
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.allclose(x, y, rtol=1e-5, atol=1e-6) if isinstance(x, Tensor) else x == y for x, y in pairs)


def round_trip(make: Make, plan: ChannelPlan, x: tuple[Tensor, ...], file: Path) -> tuple[nn.Module, nn.Module]:
    """A network pruned and written, and what was read back."""
    small = prune_channels(randomized(make()).to(x[0].dtype), plan, x, verify=False)
    save(file, small, plan, x)
    return small, load(file, make)


@pytest.mark.parametrize("name", CUTTABLE)
def test_what_is_read_back_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    shapes, make = SHAPES.get(name, IMAGE), CUTTABLE[name]
    plan = chosen(channels_of(name))
    small, back = round_trip(make, plan, inputs(shapes), tmp_path / "small.safetensors")
    x = inputs(shapes, 3)
    with torch.no_grad():
        assert alike(back(*x), small(*x))
        assert not alike(prune_channels(make(), plan, x, verify=False).eval()(*x), small(*x))  # control: the factory's weights


@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_zoo_too(name: str, tmp_path: Path) -> None:
    make, shape = ZOO[name]
    x = inputs((shape,), 1)
    plan = chosen(find_channels(capture(make(), x)))
    small, back = round_trip(make, plan, x, tmp_path / "small.safetensors")
    assert type(back) is type(small)
    with torch.no_grad():
        assert alike(back(*inputs((shape,), 3)), small(*inputs((shape,), 3)))


@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore::penjing.prune.channels.RewrittenWarning")
@pytest.mark.parametrize("name", REWRITTEN)
def test_a_rewritten_network_comes_back_rewritten(name: str, tmp_path: Path) -> None:
    make, x = REWRITTEN[name], inputs(SHAPES.get(name, IMAGE))
    plan = chosen(find_channels(capture(make(), x)))
    small = prune_channels(randomized(make()), plan, x).eval()
    save(tmp_path / "small.safetensors", small, plan, x)
    back = load(tmp_path / "small.safetensors", make).eval()
    assert (back.rewritten, small.rewritten) == (True, True)
    assert back.state_dict().keys() == small.state_dict().keys()
    with torch.no_grad():
        assert alike(back(*x), small(*x))


def small_net() -> nn.Module:
    return nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 16), nn.Flatten(), nn.Linear(16 * 64, 5))


@pytest.fixture(scope="module")
def plan() -> ChannelPlan:
    return plan_channels(small_net(), X, 0.5, round_to=1)


@pytest.fixture
def file(plan: ChannelPlan, tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    save(path, prune_channels(small_net(), plan, X), plan, X)
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types_and_counters_survive(plan: ChannelPlan, dtype: torch.dtype, tmp_path: Path) -> None:
    small = prune_channels(small_net(), plan, X)
    for _ in range(3):
        small.train()(X[0].repeat(2, 1, 1, 1))
    small[0].weight.requires_grad_(False)
    small = small.to(dtype)
    save(tmp_path / "small.safetensors", small, plan, X)
    back = load(tmp_path / "small.safetensors", small_net)
    assert not back.training
    assert all(p.requires_grad for p in back.parameters())  # as the factory says
    assert back.state_dict().keys() == small.state_dict().keys()
    for name, value in small.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)
        assert back.state_dict()[name].dtype == value.dtype
    assert int(back[1].num_batches_tracked) == 3
    assert back[0].weight.dtype == dtype


def test_what_is_read_back_can_be_trained_and_cut_again(file: Path, plan: ChannelPlan, tmp_path: Path) -> None:
    back = load(file, small_net)
    later = plan_channels(back, X, 0.5, round_to=1)
    smaller = prune_channels(back, later, X)
    smaller.train()(X[0].repeat(2, 1, 1, 1)).square().mean().backward()
    assert all(p.grad is not None for p in smaller.parameters())
    save(tmp_path / "smaller.safetensors", smaller, plan.then(later), X)
    again = load(tmp_path / "smaller.safetensors", small_net)
    assert again[0].out_channels == 4
    assert alike(again(*X), smaller.eval()(*X))


def test_dropped_blocks_stay_dropped(tmp_path: Path) -> None:
    model, x = randomized(ResNet(blocks=3, width=4)), torch.randn(2, 1, 12, 12)
    blocks = plan_blocks(model, x, 2, [x])
    smaller = prune_channels(model, blocks, x)
    later = plan_channels(smaller, x, 0.5, round_to=1)
    smallest = prune_channels(smaller, later, x)
    save(tmp_path / "small.safetensors", smallest, blocks.then(later), x)
    back = load(tmp_path / "small.safetensors", lambda: ResNet(blocks=3, width=4))
    assert back.state_dict().keys() == smallest.state_dict().keys() != model.state_dict().keys()
    with torch.no_grad():
        assert alike(back(x[:1]), smallest(x[:1]))


def test_a_shared_weight_stays_shared(tmp_path: Path) -> None:
    _, back = round_trip(TwoNames, chosen(channels_of("two_names")), inputs(IMAGE), tmp_path / "small.safetensors")
    assert back.first.weight is back.second.weight


def test_the_network_and_the_example_are_left_alone(plan: ChannelPlan, tmp_path: Path) -> None:
    small = prune_channels(small_net(), plan, X).train()
    before = {n: t.clone() for n, t in small.state_dict().items()}
    save(tmp_path / "small.safetensors", small, plan, X)
    assert small.training
    assert same(dict(small.state_dict()), before)


def test_the_header_tells_what_it_is(file: Path, plan: ChannelPlan) -> None:
    with safe_open(file, framework="pt") as f:
        about = json.loads(f.metadata()["about"])
    assert ChannelPlan.from_json(about["plan"]) == plan
    assert about["example"] == [[[1, 3, 8, 8], "float32"]]
    assert about["network"].endswith("Sequential")
    assert plan_of(file) == plan
    save_file({"x": torch.zeros(1)}, file)
    assert plan_of(file) is None


class Counting(nn.Conv2d):
    """A layer that puts something else than tensors into the state."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def set_extra_state(self, state: object) -> None:
        pass


def test_a_state_that_a_file_of_tensors_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"0\._extra_state in the network's state is dict"):
        save(tmp_path / "small.safetensors", nn.Sequential(Counting(3, 4, 3)), ChannelPlan({}), X)


def wider() -> nn.Module:
    return nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 16), nn.Flatten(), nn.Linear(16 * 64, 7))


def narrower() -> nn.Module:
    return nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 16), nn.Flatten(), nn.Linear(16 * 64, 5))


def longer() -> nn.Module:
    return nn.Sequential(*small_net(), nn.Linear(5, 5))


@pytest.mark.parametrize(
    ("factory", "error", "said"),
    [
        (wider, PlanError, r"5\.weight is \(5, 512\) in .*, cut along dim 1, and \(7, 1024\) in the factory's Sequential"),
        (narrower, PlanError, r"0\.weight is \(8, 3, 3, 3\) in .*, cut along dim 0, and \(4, 3, 3, 3\)"),
        (longer, ModelError, r"the file lacks 6\.weight, 6\.bias"),
        (lambda: nn.Sequential(conv(3, 16), nn.ReLU()), PlanError, r"the plan cuts 1\.\w+, which the model does not have"),
        (lambda: nn.Conv2d(3, 16, 3), PlanError, "which the model does not have"),
        (small_net(), RecipeError, "factory is Sequential; give a function"),
        ("net:build", RecipeError, "factory is str; give a function"),
        (lambda: None, RecipeError, "factory gives NoneType"),
    ],
)
def test_another_network_is_refused_with_the_place(
    file: Path, factory: Callable[[], nn.Module], error: type[PenjingError], said: str
) -> None:
    with pytest.raises(error, match=said):
        load(file, factory)


def test_a_file_that_lacks_a_weight_is_refused(file: Path, plan: ChannelPlan, tmp_path: Path) -> None:
    with safe_open(file, framework="pt") as f:
        tensors, header = {n: f.get_tensor(n) for n in f.keys() if n != "3.bias"}, f.metadata()  # noqa: SIM118
    save_file(tensors, tmp_path / "less.safetensors", metadata=header)
    with pytest.raises(ModelError, match=r"the file lacks 3\.bias"):
        load(tmp_path / "less.safetensors", small_net)
    tensors["0.weight"] = tensors["0.weight"][:3]
    save_file({**tensors, "3.bias": torch.zeros(8)}, tmp_path / "short.safetensors", metadata=header)
    with pytest.raises(ModelError, match=r"0\.weight is \(3, 3, 3, 3\) in the file and \(8, 3, 3, 3\)"):
        load(tmp_path / "short.safetensors", small_net)
    assert load(file, small_net)[0].out_channels == len(plan.keep["0.weight"][0])


def test_missing_truncated_and_wrong_files_are_told_apart(file: Path, tmp_path: Path) -> None:
    with pytest.raises(PenjingError, match="cannot read tensors from"):
        load(tmp_path / "none.safetensors", small_net)
    whole = file.read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(PenjingError, match=r"cannot read tensors from .*small\.safetensors"):
            load(file, small_net)
    save_file(small_net().state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(PenjingError, match=r"plain\.safetensors holds tensors but no plan"):
        load(tmp_path / "plain.safetensors", small_net)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"penjing": 99}, "is of format 99"),
        ({"plan": {"keep": 3}}, "not a channel plan"),
        ({"example": [[[1, 3, 8, 8], "float33"]]}, "damaged"),
        ({"example": [[[1, -3], "float32"]]}, "damaged"),
        ({"example": [[[1, 3, 8, 8], "nn"]]}, "damaged"),
        ({"example": 3}, "damaged"),
    ],
)
def test_a_damaged_header_is_refused(file: Path, tmp_path: Path, change: dict[str, object], said: str) -> None:
    with safe_open(file, framework="pt") as f:
        tensors, about = {n: f.get_tensor(n) for n in f.keys()}, json.loads(f.metadata()["about"])  # noqa: SIM118
    save_file(tensors, tmp_path / "changed.safetensors", metadata={"about": json.dumps({**about, **change})})
    with pytest.raises(PenjingError, match=said):
        load(tmp_path / "changed.safetensors", small_net)


def test_what_the_plan_did_not_make_is_not_written(plan: ChannelPlan, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"0\.\w+ is \(16.*but the plan keeps 8 along dim 0"):
        save(tmp_path / "whole.safetensors", small_net(), plan, X)
    with pytest.raises(ModelError, match="example"):
        save(tmp_path / "whole.safetensors", prune_channels(small_net(), plan, X), plan, 3)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_told(plan: ChannelPlan, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for place in ("folder", "file/small.safetensors"):
        with pytest.raises(PenjingError, match=f"cannot write .*{place}"):
            save(tmp_path / place, prune_channels(small_net(), plan, X), plan, X)
    assert {p.name for p in tmp_path.iterdir()} == {"folder", "file"}
