import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from penjing.distill import kl
from penjing.errors import ModelError, RecipeError, TrainingError
from penjing.prune.sparsify import sparsify
from penjing.quant import Scheme, learn_steps, quantize
from penjing.task import Score
from penjing.train import Epoch, Training, fit
from penjing.train.sparse import ACDC, GradualMagnitude, GradualMovement, RigL, SparseRun, Sparsity
from penjing.train.state import Learner
from tests.train.test_fit import SETTINGS, Interrupted, after, batches, network, same, task

WAYS: dict[str, Callable[..., Sparsity]] = {
    "magnitude": GradualMagnitude, "movement": GradualMovement, "rigl": RigL, "acdc": ACDC,
}  # fmt: skip
TOTAL = 3 * 8 * 9 + 8 * 8 * 9 + 8 * 3


def kept(model: nn.Module) -> dict[str, int]:
    return {n: int(p.count_nonzero()) for n, p in model.named_parameters() if p.ndim > 1}


class Watched(Sparsity):
    """Another way, and the masks and weights that it leaves at every step."""

    def __init__(self, way: Sparsity) -> None:
        object.__setattr__(self, "way", way)
        object.__setattr__(self, "seen", [])
        for name in ("density", "pattern", "scope", "exclude"):
            object.__setattr__(self, name, getattr(way, name))

    def revise(self, run: SparseRun, step: int, total: int) -> None:
        self.way.revise(run, step, total)  # type: ignore[attr-defined]
        zero = {n: p.detach() == 0 for n, p in run.weights.items()}
        self.seen.append(({n: m.clone() for n, m in run.masks.items()}, zero))  # type: ignore[attr-defined]


def densities(way: Sparsity, *, epochs: int = 10, **more: Any) -> list[float]:
    watched = Watched(way)
    fit(network(), task(), epochs=epochs, settings=SETTINGS, sparsity=watched, **more)
    return [sum(int(m.sum()) for m in masks.values()) / TOTAL if masks else 1.0 for masks, _ in watched.seen]  # type: ignore[attr-defined]


# Exact zeros are the mask.


def test_zeros_stay_whatever_the_optimizer_does() -> None:
    sparse = sparsify(network(), 0.3)
    zeros = {n: p == 0 for n, p in sparse.named_parameters() if p.ndim > 1}
    settings = Training(precision="32-true", lr=0.2, weight_decay=0.1, mixup=0.3)
    after_training = fit(sparse, task(), epochs=5, settings=settings)
    assert all(torch.equal(p == 0, zeros[n]) for n, p in after_training.named_parameters() if n in zeros)
    assert not same(after_training, sparse)
    loose = fit(sparse, task(), epochs=1, settings=Training(precision="32-true", lr=0.1, hold_zeros=False))
    assert sum(kept(loose).values()) > 0.9 * TOTAL  # control


def test_dense_weights_and_those_that_are_all_zero_are_free() -> None:
    model = network()
    with torch.no_grad():
        model[4].weight.zero_()
        model[1].bias[:3] = 0
    found = fit(model, task(), epochs=2, settings=SETTINGS)
    assert found[4].weight.count_nonzero() > 100
    assert found[1].bias.all()


def test_a_dense_network_is_trained_as_ever() -> None:
    loose = Training(precision="32-true", lr=0.1, hold_zeros=False)
    expected = fit(network(), task(), epochs=2, settings=loose)
    assert same(fit(network(), task(), epochs=2, settings=SETTINGS), expected)


def test_forbidden_gradients_do_not_count_when_gradients_are_clipped() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0]]))
    settings = Training(lr=1, momentum=0, weight_decay=0, warmup=0, clip=0.5, precision="32-true")
    steep = task([(torch.tensor([[1.0, 1000]]), None)], lambda output, _target: output.sum())
    found = fit(model, steep, epochs=1, settings=settings).weight.tolist()
    assert found == [[pytest.approx(0.5, abs=1e-5), 0]]


# Every way.


@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
@pytest.mark.parametrize("way", WAYS)
def test_the_density_is_exact(way: str, scope: str) -> None:
    model = network()
    before = copy.deepcopy(model)
    found = fit(model, task(), epochs=8, settings=SETTINGS, sparsity=WAYS[way](density=0.2, scope=scope))
    assert sum(kept(found).values()) == round(0.2 * TOTAL)
    assert all(kept(found).values())
    assert same(model, before)


@pytest.mark.parametrize("way", WAYS)
def test_the_density_is_exact_in_the_shortest_run(way: str) -> None:
    found = fit(network(), task(batches()[:1]), epochs=1, settings=SETTINGS, sparsity=WAYS[way](density=0.2))
    assert sum(kept(found).values()) == round(0.2 * TOTAL)


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_goes_down_while_the_network_becomes_sparse(way: str) -> None:
    seen: list[Epoch] = []
    fit(network(), task(), epochs=10, settings=SETTINGS, sparsity=WAYS[way](density=0.3), on_epoch=seen.append)
    assert seen[-1].loss < 0.8 * seen[0].loss


@pytest.mark.parametrize("way", sorted(set(WAYS) - {"rigl"}))
def test_patterns_are_kept(way: str) -> None:
    found = fit(network(), task(), epochs=4, settings=SETTINGS, sparsity=WAYS[way](pattern="2:4", exclude=("0.*",)))
    assert kept(found)["0.weight"] == 3 * 8 * 9
    assert ((found[4].weight != 0).view(8, 2, 4, 9).sum(2) == 2).all()
    assert ((found[8].weight != 0).view(3, 2, 4).sum(2) == 2).all()


def test_rigl_moves_whole_kernels() -> None:
    found = fit(network(), task(), epochs=4, settings=SETTINGS, sparsity=RigL(density=0.5, pattern="kernel"))
    assert set((found[4].weight != 0).flatten(2).sum(2).unique().tolist()) == {0, 9}


@pytest.mark.parametrize("way", WAYS)
def test_a_teacher_is_followed(way: str) -> None:
    teacher = fit(network(), task(), epochs=6, settings=SETTINGS)
    found = fit(network(), task(), epochs=4, teacher=teacher, loss=kl(2.0), settings=SETTINGS, sparsity=WAYS[way](density=0.2))
    assert sum(kept(found).values()) == round(0.2 * TOTAL)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("epoch", [1, 2, 3, 5])
def test_an_interrupted_run_ends_as_if_it_had_not_been(way: str, epoch: int, tmp_path: Path) -> None:
    def run(**more: Any) -> nn.Module:
        return fit(network(), task(), epochs=6, settings=SETTINGS, sparsity=WAYS[way](density=0.3, scope="global"), **more)

    with pytest.raises(Interrupted):
        run(checkpoint=tmp_path / "c", on_epoch=after(epoch))
    assert same(run(checkpoint=tmp_path / "c"), run())


def test_a_run_that_holds_zeros_can_be_interrupted(tmp_path: Path) -> None:
    def run(**more: Any) -> nn.Module:
        return fit(sparsify(network(), 0.3), task(), epochs=4, settings=SETTINGS, **more)

    with pytest.raises(Interrupted):
        run(checkpoint=tmp_path / "c", on_epoch=after(2))
    assert same(run(checkpoint=tmp_path / "c"), run())


def test_a_checkpoint_of_another_way_is_refused(tmp_path: Path) -> None:
    fit(network(), task(), epochs=1, settings=SETTINGS, sparsity=RigL(exclude=("0.*",)), checkpoint=tmp_path / "c")
    fit(network(), task(), epochs=1, settings=SETTINGS, sparsity=RigL(exclude=("0.*",)), checkpoint=tmp_path / "c")
    for other in (None, RigL(), RigL(density=0.2, exclude=("0.*",)), GradualMagnitude(exclude=("0.*",))):
        with pytest.raises(TrainingError, match="other sparsity"):
            fit(network(), task(), epochs=1, settings=SETTINGS, sparsity=other, checkpoint=tmp_path / "c")


# Each by itself.


@pytest.mark.parametrize("way", [GradualMagnitude, GradualMovement])
def test_the_density_falls_as_a_cube_and_stops(way: Callable[..., Sparsity]) -> None:
    seen = densities(way(density=0.1, start=0.2, end=0.8))
    assert seen[:7] == [1] * 7
    for step in range(7, 24):
        expected = 0.1 + 0.9 * (1 - (step - 6) / 18) ** 3
        assert seen[step] == pytest.approx(expected, abs=1 / TOTAL)
    assert set(seen[24:]) == {round(0.1 * TOTAL) / TOTAL}


def test_few_updates_are_few() -> None:
    assert len(set(densities(GradualMagnitude(density=0.1, end=0.8, updates=4)))) == 5


def test_a_gradual_run_begins_where_the_network_is() -> None:
    watched = Watched(GradualMagnitude(density=0.1))
    fit(sparsify(network(), 0.4), task(), epochs=10, settings=SETTINGS, sparsity=watched)
    seen = [sum(int(m.sum()) for m in masks.values()) / TOTAL for masks, _ in watched.seen]  # type: ignore[attr-defined]
    assert seen[0] == pytest.approx(0.4, abs=1 / TOTAL)
    assert seen == sorted(seen, reverse=True)
    assert seen[2] < 0.4


def test_phases_take_turns() -> None:
    seen = densities(ACDC(density=0.2, dense=0.1, final=0.3, phases=6))
    sparse = round(0.2 * TOTAL) / TOTAL
    turns = [1, sparse, 1, sparse, 1, sparse, 1, sparse]
    assert [d for i, d in enumerate(seen) if not i or d != seen[i - 1]] == turns
    assert seen[:3] == [1] * 3
    assert seen[20:] == [1] + [sparse] * 9


def test_what_was_cut_comes_back_in_a_dense_phase() -> None:
    watched = Watched(ACDC(density=0.2))
    fit(network(), task(), epochs=10, settings=SETTINGS, sparsity=watched)
    zeros = [sum(int(z.sum()) for z in zero.values()) for _, zero in watched.seen]  # type: ignore[attr-defined]
    assert zeros[-1] == TOTAL - round(0.2 * TOTAL)
    assert sum(b < a for a, b in itertools.pairwise(zeros)) >= 3


def test_rigl_swaps_in_every_layer_ever_fewer_and_then_none() -> None:
    watched = Watched(RigL(density=0.3, swap=0.5, end=0.5, scope="erk"))
    fit(network(), task(), epochs=10, settings=SETTINGS, sparsity=watched)
    masks = [m for m, _ in watched.seen]  # type: ignore[attr-defined]
    for name in masks[0]:
        assert len({int(m[name].sum()) for m in masks}) == 1
    swapped = [int((a["4.weight"] & ~b["4.weight"]).sum()) for a, b in itertools.pairwise(masks)]
    assert swapped[0] > swapped[7] > swapped[13]
    assert not any(swapped[14:])


def test_one_swap_by_hand() -> None:
    """Of four weights two stay; the smaller of them, -1, goes for the zero of the larger gradient, which is -5."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, -1, 0, 0]]))
    run = Learner(model, SETTINGS, sparsity=RigL(density=0.5)).sparse
    run.weights["weight"].grad = torch.tensor([[9.0, 9, 4, -5]])
    run.masks["weight"] = model.weight != 0
    run.swap(0.5)
    assert run.masks["weight"].tolist() == [[True, False, False, True]]
    run.weights["weight"].grad = torch.zeros(1, 4)  # nothing asks to come back: nothing goes
    run.swap(0.5)
    assert run.masks["weight"].tolist() == [[True, False, False, True]]


def test_movement_keeps_what_grows() -> None:
    """With a loss that pulls one weight up from zero and the other down to it, the larger one goes."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, 1.0]]))

    def pull(output: Tensor, _target: object) -> Tensor:
        return output.sum()

    settings = Training(precision="32-true", lr=0.01, momentum=0, weight_decay=0)
    data = task([(torch.tensor([[-1.0, 1.0]]), None)], pull)
    for way, expected in ((GradualMovement, [True, False]), (GradualMagnitude, [False, True])):
        found = fit(model, data, epochs=4, settings=settings, sparsity=way(density=0.5))
        assert (found.weight != 0).tolist() == [expected]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradualMagnitude(density=0), "density is 0"),
        (lambda: RigL(pattern="nonsense"), "choose 'unstructured'"),
        (lambda: ACDC(scope="nonsense"), "choose one of"),
        (lambda: RigL(pattern="2:4"), "does not take pattern"),
        (lambda: ACDC(phases=3), "even"),
        (lambda: ACDC(dense=0.6, final=0.6), "at most 1"),
        (lambda: GradualMovement(updates=0), "updates is 0"),
        (lambda: GradualMagnitude(end=1.5), r"end is 1\.5"),
    ],
)
def test_a_setting_out_of_range_is_named(make: Callable[[], Sparsity], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_a_model_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ModelError, match="ask for less"):
        fit(sparsify(network(), 0.1), task(), epochs=1, settings=SETTINGS, sparsity=GradualMagnitude(density=0.5))
    with pytest.raises(RecipeError, match=r"does not divide.*0\.weight"):
        fit(network(), task(), epochs=1, settings=SETTINGS, sparsity=ACDC(pattern="2:4"))
    frozen = network()
    for layer in (0, 4, 8):
        frozen[layer].requires_grad_(False)
    with pytest.raises(ModelError, match="none of the weights to cut is trained"):
        fit(frozen, task(), epochs=1, settings=SETTINGS, sparsity=RigL())


@pytest.mark.parametrize("accumulate", [1, 2, 3, 4])
@pytest.mark.parametrize("way", WAYS)
def test_the_density_is_reached_however_many_batches_make_a_step(way: str, accumulate: int) -> None:
    settings = replace(SETTINGS, accumulate=accumulate)
    five = task([*batches(), *batches()[:2]])
    net = fit(network(), five, epochs=6, settings=settings, sparsity=WAYS[way](density=0.3))
    assert sum(kept(net).values()) / TOTAL == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("more", [{"keep": "best"}, {"patience": 1}])
@pytest.mark.parametrize("way", WAYS)
def test_the_best_network_is_one_of_those_that_are_sparse(way: str, more: dict[str, Any]) -> None:
    falling = itertools.count(1)
    worse = replace(task(), search=batches(), metric=lambda _run, _batches: Score(1 / next(falling), 1, np.zeros(1)))
    net = fit(network(), worse, epochs=8, settings=replace(SETTINGS, **more), sparsity=WAYS[way](density=0.3))
    assert sum(kept(net).values()) / TOTAL == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("kind", ["whole", "blocks", "learned"])
def test_weights_behind_grids_are_found(kind: str, padding: Any) -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=padding), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(4, 4, 6, 6)
    scheme = Scheme(block=4, weight_bits=4) if kind == "blocks" else Scheme()
    module = quantize(net, x[:1], [x], scheme=scheme)
    module = learn_steps(module) if kind == "learned" else module
    cut = sparsify(module, density=0.25)
    assert {n: int(p.count_nonzero()) for n, p in cut.named_parameters() if p.ndim > 1} == {"0.weight": 72, "2.weight": 8}
