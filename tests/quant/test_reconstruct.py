"""Block reconstruction: which parts are blocks, and that each gives more nearly what the float network's gives."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from penjing.errors import DataError
from penjing.graph import capture
from penjing.progress import silent
from penjing.quant.insert import layers
from penjing.quant.lockstep import parameter
from penjing.quant.reconstruct import Block, Reconstruction, find_blocks
from penjing.quant.rounding import LayerByLayer, blocks, gptq
from penjing.quant.targets import WEIGHTED
from penjing.zoo import ZOO
from tests.quant.pairs import Pair, insert_weight_grids, pair

QUICK = replace(blocks, steps=60, batch=16)
NEAREST = LayerByLayer(quantizer=lambda p: p.encode(p.target))


def found(model: nn.Module, *shape: int) -> list[tuple[str, str, int]]:
    """Each block's entry and exit, by what gives them, and how many layers are between."""
    module = capture(model.eval(), torch.randn(2, *shape)).module
    weighted = [n.name for n in module.graph.nodes if n.target in WEIGHTED]
    order = [n.name for n in module.graph.nodes]

    def inside(block: Block) -> int:
        return sum(order.index(block.entry.name) < order.index(n) <= order.index(block.exit.name) for n in weighted)

    return [(b.entry.name, b.exit.name, inside(b)) for b in find_blocks(module, set(weighted))]


def test_a_residual_block_is_one_and_what_is_alone_is_by_itself() -> None:
    make, shape = ZOO["resnet20"]
    parts = found(make(), *shape)
    assert [n for *_, n in parts] == [1, 2, 2, 2, 3, 2, 2, 3, 2, 2, 1]
    assert all(one[1] == two[0] for one, two in pairwise(parts))
    assert parts[0][0] == "x"
    assert all(name.startswith("relu") for _, name, _ in parts[:-2])


def test_what_is_too_large_or_has_no_single_way_through_is_taken_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penjing.quant.reconstruct.LARGEST", 2)
    make, shape = ZOO["resnet20"]
    parts = found(make(), *shape)
    assert len(parts) == 15  # two blocks have a third layer on their shortcut
    assert sum(name.startswith("conv2d") for _, name, _ in parts) == 6


def test_concatenations_that_carry_all_are_ends() -> None:
    make, shape = ZOO["densenet"]
    assert [(one, two) for one, two, _ in found(make(), *shape)][1:4] == [
        ("avg_pool2d", "cat"), ("cat", "cat_1"), ("cat_1", "flatten")
    ]  # fmt: skip


class Shuffled(nn.Module):
    """A unit that leaves half of the channels alone (arXiv:1807.11164)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.rest = nn.Conv2d(2, 8, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = F.relu(self.stem(x)).chunk(2, 1)
        return torch.cat([kept, self.rest(changed)], 1)


def test_parts_of_a_split_are_needed_all() -> None:
    assert found(Shuffled(), 2, 6, 6) == [("x", "relu", 1), ("relu", "cat", 1)]


class Frames(nn.Module):
    """Of every sample, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.last(F.relu(self.first(x.flatten(0, 1)))))
        out: Tensor = self.head(y.unflatten(0, (-1, 3)).mean((1, 3, 4)))
        return out


def test_layers_whose_rows_are_no_samples_are_in_no_block_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(Frames(), 3, 2, 4, 4) == [("x", "mean", 2), ("mean", "linear", 1)]
    monkeypatch.setattr("penjing.quant.reconstruct.LARGEST", 1)
    assert found(Frames(), 3, 2, 4, 4) == [("mean", "linear", 1)]


class Two(nn.Module):
    """Two inputs, which meet behind a layer each, with a number for all samples; and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.both = nn.Linear(5, 8), nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        z = F.relu(self.one(x)) * t + self.other(y)
        return self.both(z), z


def test_networks_of_several_inputs_and_outputs_are_rounded() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(32, 5), torch.randn(32, 3), torch.tensor(0.5))
    reference = capture(Two().eval(), inputs).module
    module = copy.deepcopy(reference)
    insert_weight_grids(module, 2)
    before = copy.deepcopy(module)
    QUICK(reference, module, [tuple(x[part] if x.ndim else x for x in inputs) for part in (slice(20), slice(20, None))], silent)
    with torch.no_grad():
        wanted, plain, learned = (m(*inputs)[0] for m in (reference, before, module))
    assert (learned - wanted).norm() < (plain - wanted).norm()


class Residual(nn.Module):
    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        self.first, self.last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        y = F.relu(y + self.last(F.relu(self.first(y))))
        out: Tensor = self.head(y.mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def x() -> Tensor:
    x = torch.randn(96, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    return x + x.roll(1, -1)


def residual(x: Tensor, bits: int, value_bits: int) -> Pair:
    torch.manual_seed(0)
    return pair(Residual(), x, weight_bits=bits, value_bits=value_bits)


def rounded(both: Pair, rounding: Callable[..., None], x: Tensor) -> fx.GraphModule:
    module = copy.deepcopy(both.module)
    rounding(both.reference, module, [(part,) for part in x.split(40)], silent)
    return module


def error(both: Pair, module: fx.GraphModule, x: Tensor) -> float:
    with torch.no_grad():
        return float((module(x) - both.reference(x)).square().mean())


def errors(both: Pair, rounding: Reconstruction, x: Tensor) -> dict[str, tuple[float, float]]:
    """Each block's squared error before and after it was learned, as progress tells it."""
    notes: list[str] = []

    @contextmanager
    def noting(label: str, total: int) -> Iterator[Callable[[str], None]]:
        del label, total
        yield notes.append

    rounding(both.reference, copy.deepcopy(both.module), [(x,)], noting)
    told = [n.replace(":", "").split() for n in notes if "squared error" in n]
    return {words[0]: (float(words[3]), float(words[5])) for words in told}


def test_no_block_gets_worse_and_one_with_coarse_values_gets_better(x: Tensor) -> None:
    """Than its layers, fitted one by one, were on the same inputs."""
    found = errors(residual(x, 4, 2), replace(QUICK, steps=100), x)
    assert len(found) == 3
    assert all(after <= before for before, after in found.values())
    assert found["mean"][1] < 0.9 * found["mean"][0]


def test_a_whole_block_is_learned_from_the_nearest(x: Tensor) -> None:
    """Without steps of values to learn: the weights alone."""
    before, after = errors(residual(x, 2, 8), replace(QUICK, layers=NEAREST, steps=100, lr=0.01), x)["mean"]
    assert after < 0.95 * before


def test_the_whole_network_ends_nearer_to_the_float_one_than_its_layers_alone_bring_it(x: Tensor) -> None:
    both = residual(x, 2, 8)
    assert error(both, rounded(both, replace(QUICK, steps=100), x), x) < error(both, rounded(both, gptq, x), x)


def test_a_block_that_learns_nothing_better_stays_as_it_was(x: Tensor) -> None:
    both = residual(x, 3, 4)
    wild = rounded(both, replace(QUICK, steps=3, lr=30.0, value_lr=3.0, bias_lr=100.0), x).state_dict()
    assert all(torch.equal(v, wild[k]) for k, v in rounded(both, gptq, x).state_dict().items())


def test_weights_lie_on_their_grids_and_grids_of_8_bits_stay(x: Tensor) -> None:
    both = residual(x, 3, 8)
    module = rounded(both, QUICK, x)
    for layer in layers(module):
        weight = parameter(module, layer.weight).detach()
        assert torch.equal(layer.grid.nearest(weight), weight)
    before, after = both.module.state_dict(), module.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items() if k.startswith("grids."))


def test_steps_of_coarse_values_are_learned(x: Tensor) -> None:
    both = residual(x, 4, 2)
    module = rounded(both, QUICK, x)
    before, after = both.module.state_dict(), module.state_dict()
    changed = {k for k in before if k.startswith("grids.") and not torch.equal(before[k], after[k])}
    assert changed
    assert all(k.endswith(".scale") and "weight" not in k for k in changed)
    assert error(both, module, x) < error(both, rounded(both, replace(QUICK, value_lr=0.0), x), x)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(x: Tensor) -> None:
    both = residual(x, 2, 4)
    state = torch.get_rng_state()
    one, again, other = (rounded(both, replace(QUICK, steps=20, lr=0.01, seed=s), x).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(v, again[k]) for k, v in one.items())
    assert not all(torch.equal(v, other[k]) for k, v in one.items())
    assert torch.equal(state, torch.get_rng_state())


def test_samples_of_different_shapes_are_refused(x: Tensor) -> None:
    both = residual(x, 4, 8)
    with pytest.raises(DataError, match="one shape"):
        blocks(both.reference, both.module, [(x[:8],), (x[:8, :, :4],)], silent)
