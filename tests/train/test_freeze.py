from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from penjing.errors import ModelError, RecipeError
from penjing.files import read_tensors
from penjing.quant import Scheme, quantize
from penjing.quant.grids import TINY
from penjing.quant.learned import learn_steps, trained_steps, weight_grids
from penjing.task import Score, Task
from penjing.train import Training, fit
from penjing.train.freeze import FreezeRun, Freezing, Swings

EAGER = Freezing(start=0.2, end=0.05, momentum=0.1)


def followed(path: list[int], thresholds: list[float], momentum: float) -> tuple[list[int], bool]:
    """Algorithm 1 of the paper for one weight: its integers, and whether it is frozen in the end."""
    before, way, turns, mean, frozen = path[0], 0, 0.0, float(path[0]), False
    codes = []
    for code, threshold in zip(path[1:], thresholds, strict=True):
        if frozen:
            codes.append(before)
            continue
        change = code - before
        turned = change != 0 and way != 0 and (change > 0) != (way > 0)
        turns = momentum * turned + (1 - momentum) * turns
        mean = momentum * code + (1 - momentum) * mean
        way = change or way
        frozen = turns > threshold
        before = round(mean) if frozen else code
        codes.append(before)
    return codes, frozen


@given(
    st.integers(2, 30).flatmap(
        lambda n: st.tuples(
            st.lists(st.lists(st.integers(-3, 3), min_size=n, max_size=n), min_size=1, max_size=5),
            st.lists(st.floats(0.05, 0.5), min_size=n - 1, max_size=n - 1),
        )
    )
)
def test_every_weight_is_followed_as_in_the_paper(case: tuple[list[list[int]], list[float]]) -> None:
    paths, thresholds = case
    momentum = 0.1875
    steps = torch.tensor(paths, dtype=torch.int32).T
    swings = Swings.of(steps[0])
    found = []
    for codes, threshold in zip(steps[1:], thresholds, strict=True):
        swings.update(codes, threshold, momentum)
        found.append(swings.codes.tolist())
    expected = [followed(path, thresholds, momentum) for path in paths]
    assert [list(column) for column in zip(*found, strict=True)] == [codes for codes, _ in expected]
    assert swings.frozen.tolist() == [frozen for _, frozen in expected]


def test_a_weight_that_goes_one_way_is_never_frozen() -> None:
    swings = Swings.of(torch.tensor([-8, -8]))
    for step in range(14):
        swings.update(torch.tensor([-7 + step, -8 + step % 2]), 0.2, 0.1)
    assert swings.frozen.tolist() == [False, True]


def test_the_threshold_falls_as_half_a_cosine() -> None:
    way = Freezing(start=0.1, end=0.02)
    assert [way.threshold(step, 11) for step in (0, 5, 10)] == pytest.approx([0.1, 0.06, 0.02])
    assert way.threshold(0, 1) == 0.1


def network() -> tuple[fx.GraphModule, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    x = torch.randn(32, 4, 6, 6)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2))
    y = (x.mean((1, 2, 3)) > 0).long()
    module = quantize(model, x[:2], [x], scheme=Scheme(weight_bits=3, value_bits=4, edge_bits=3))
    return module, list(zip(x.split(8), y.split(8), strict=True))


def task(train: Any) -> Task:
    return Task(
        train=train, search=[], confirm=[], metric=lambda _run, _batches: Score(0, 0, None), loss=nn.functional.cross_entropy
    )


def integers(module: nn.Module) -> dict[str, Tensor]:
    return {name: grid.now().encode(module.get_parameter(name)) for name, grid in weight_grids(module).items()}


def settings(freezing: Freezing | None = EAGER) -> Training:
    return Training(precision="32-true", lr=0.2, freezing=freezing)


def frozen_after(module: fx.GraphModule, train: Any, path: Path) -> dict[str, Tensor]:
    """Which weights a run of 5 epochs froze, from its checkpoint."""
    fit(module, task(train), epochs=5, settings=settings(), checkpoint=path)
    return {n.removeprefix("freeze.frozen."): t for n, t in read_tensors(path)[0].items() if n.startswith("freeze.frozen.")}


@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_what_is_frozen_keeps_its_integer_while_steps_are_learned(tmp_path: Path, learned: bool) -> None:
    module, train = network()
    module = learn_steps(module) if learned else module
    frozen = frozen_after(module, train, tmp_path / "c")
    assert 0 < sum(int(t.sum()) for t in frozen.values()) < sum(t.numel() for t in frozen.values())
    trained = fit(module, task(train), epochs=5, settings=settings(), checkpoint=tmp_path / "c")
    for name, grid in weight_grids(trained).items():
        weight, now = trained.get_parameter(name)[frozen[name]], grid.now()
        whole = trained.get_parameter(name) / now.scale
        assert (whole - whole.round()).abs()[frozen[name]].max() < 1e-5
        assert (whole - whole.round()).abs()[~frozen[name]].max() > 0.1
        assert not (weight == 0).any()
        assert (weight == TINY).any()


def test_no_gradient_and_no_momentum_reach_what_is_frozen() -> None:
    module, train = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    run = FreezeRun(module, optimizer, EAGER)
    for step, (x, y) in enumerate(train * 3):
        run.at(step, 12)
        nn.functional.cross_entropy(module(x), y).backward()
        if step == 5:
            for swings in run.swings.values():
                swings.frozen[0] = True
        run.before_step()
        optimizer.step()
        run.after_step()
        if step >= 5:
            for p in run.weights.values():
                assert p.grad is not None
                assert not p.grad[0].any()
                assert not optimizer.state[p]["momentum_buffer"][0].any()
                assert p.grad[1].any()
        optimizer.zero_grad()


def test_freezing_ends_the_swinging() -> None:
    """At a rate that does not fall, integers go on turning unless they are frozen."""
    module, train = network()

    def changes(freezing: Freezing | None) -> int:
        moves, last = 0, integers(module)
        run_of = FreezeRun(copied := learn_steps(module), torch.optim.SGD(copied.parameters(), lr=0.2), freezing)
        for step, (x, y) in enumerate(train * 20):
            run_of.at(step, 80)
            nn.functional.cross_entropy(copied(x), y).backward()
            run_of.before_step()
            run_of.optimizer.step()
            run_of.after_step()
            copied.zero_grad()
            now = integers(copied)
            moves += sum(int((now[n] != last[n]).sum()) for n in now) if step >= 40 else 0
            last = now
        return moves

    free = changes(None)
    assert 0 < changes(Freezing(start=0.02, end=0.02, momentum=0.1)) < free / 2


def test_a_second_run_takes_nothing_frozen_for_a_mask(tmp_path: Path) -> None:
    module, train = network()
    frozen_after(module, train, tmp_path / "c")
    first = fit(module, task(train), epochs=5, settings=settings(), checkpoint=tmp_path / "c")
    second = fit(first, task(train), epochs=1, settings=settings(None))
    at_rest = first.get_parameter("0.weight") == TINY
    assert at_rest.any()
    assert (second.get_parameter("0.weight")[at_rest] != TINY).all()


def test_mistakes_are_told() -> None:
    for name in ("start", "end", "momentum"):
        with pytest.raises(RecipeError, match=f"freezing.{name} is 1.5"):
            Freezing(**{name: 1.5})
    _, train = network()
    plain = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
    with pytest.raises(ModelError, match="quantize the network first"):
        fit(plain, task(train), epochs=1, settings=settings())
    assert trained_steps(plain) == []
