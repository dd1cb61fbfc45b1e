"""Losses on features, held against their papers' formulas, written with loops in float64."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.distill import TeacherLoss, attention, contrastive, hint, mimic, relations, similarity
from penjing.errors import ModelError, RecipeError
from tests.distill.lessons import STUDENT, TEACHER, drawn, on_features

Shape = tuple[int, ...]
PAIRS = st.sampled_from(
    [((3,), (5,)), ((3, 4), (3, 4)), ((3, 4, 4), (5, 2, 2)), ((2, 3, 2, 4), (4, 3, 2, 4)), ((3,), (5, 4, 4))]
)


def value(loss: TeacherLoss, ours: Tensor, theirs: Tensor) -> float:
    lesson = on_features(ours, theirs)
    loss.prepare(lesson)
    return float(loss(lesson).detach())


def smooth_l1(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def norm(x: np.ndarray) -> float:
    return float(np.sqrt((x * x).sum()))


@given(st.integers(0, 1000), st.integers(2, 5), PAIRS)
def test_similarity_by_hand(seed: int, batch: int, shapes: tuple[Shape, Shape]) -> None:
    ours, theirs = (drawn(seed + i, batch, *shape) for i, shape in enumerate(shapes))

    def likeness(feature: Tensor) -> np.ndarray:
        q = feature.reshape(batch, -1).numpy()
        gram = np.array([[sum(a * b for a, b in zip(q[i], q[j], strict=True)) for j in range(batch)] for i in range(batch)])
        return np.array([row / norm(row) for row in gram])

    expected = norm(likeness(ours) - likeness(theirs)) ** 2 / batch**2
    assert value(similarity(STUDENT, TEACHER), ours, theirs) == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 1000), st.integers(2, 5), PAIRS, st.floats(0, 30), st.floats(0, 60))
def test_relations_by_hand(seed: int, batch: int, shapes: tuple[Shape, Shape], distance: float, angle: float) -> None:
    ours, theirs = (drawn(seed + i, batch, *shape) for i, shape in enumerate(shapes))
    samples = range(batch)

    def far(feature: Tensor) -> np.ndarray:
        x = feature.reshape(batch, -1).numpy()
        found = np.array([[norm(x[i] - x[j]) for j in samples] for i in samples])
        return np.asarray(found / (found.sum() / (batch * (batch - 1))))

    def turn(feature: Tensor, i: int, j: int, k: int) -> float:
        x = feature.reshape(batch, -1).numpy()
        a, b = x[j] - x[i], x[k] - x[i]
        return float((a * b).sum() / (norm(a) * norm(b))) if i not in (j, k) else 0.0

    distances = np.mean([smooth_l1(d) for d in (far(ours) - far(theirs)).flatten()])
    angles = np.mean([smooth_l1(turn(ours, *t) - turn(theirs, *t)) for t in product(samples, repeat=3)])
    expected = distance * distances + angle * angles
    assert value(relations(STUDENT, TEACHER, distance, angle), ours, theirs) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-100, 100))
def test_relations_see_neither_size_nor_place_nor_direction(seed: int, factor: float, offset: float) -> None:
    theirs = drawn(seed, 5, 6)
    turned = torch.linalg.qr(drawn(seed + 1, 6, 6))[0]
    assert value(relations(STUDENT, TEACHER), factor * theirs @ turned + offset, theirs) < 1e-6
    assert value(relations(STUDENT, TEACHER), theirs * torch.arange(6), theirs) > 1e-2


@given(st.integers(0, 1000), st.sampled_from([((3, 4), (5, 4)), ((3, 4, 2), (5, 4, 2)), ((3, 2, 2, 3), (2, 2, 2, 3))]))
def test_attention_by_hand(seed: int, shapes: tuple[Shape, Shape]) -> None:
    ours, theirs = (drawn(seed + i, 3, *shape) for i, shape in enumerate(shapes))

    def where(sample: np.ndarray) -> np.ndarray:
        energy = np.array([sum(channel**2 for channel in column) for column in sample.reshape(len(sample), -1).T])
        return energy / norm(energy)

    gaps = [where(a) - where(b) for a, b in zip(ours.numpy(), theirs.numpy(), strict=True)]
    assert value(attention(STUDENT, TEACHER), ours, theirs) == pytest.approx(np.mean(np.square(gaps)), rel=1e-9)


def test_the_larger_map_is_averaged_down() -> None:
    ours, theirs = drawn(0, 2, 3, 8, 6), drawn(1, 2, 3, 4, 12)
    small, other = F.avg_pool2d(ours, (2, 1)), F.avg_pool2d(theirs, (1, 2))
    for make in (mimic, attention):
        assert value(make(STUDENT, TEACHER), ours, theirs) == pytest.approx(value(make(STUDENT, TEACHER), small, other))


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 4), (3, 2, 4, 4)])
def test_mimic_is_the_mean_squared_difference(shape: Shape) -> None:
    ours, theirs = drawn(0, 4, *shape), drawn(1, 4, *shape)
    loss = mimic(STUDENT, TEACHER)
    assert value(loss, ours, theirs) == pytest.approx(np.square(ours.numpy() - theirs.numpy()).mean())
    assert not list(loss.parameters())


@pytest.mark.parametrize("make", [hint, mimic])
@pytest.mark.parametrize(("conv", "shape"), [(nn.Conv1d, (4,)), (nn.Conv2d, (4, 2)), (nn.Conv3d, (2, 3, 2)), (nn.Linear, ())])
def test_the_projector_is_a_convolution_of_one_position(
    make: Callable[..., TeacherLoss], conv: Callable[..., nn.Module], shape: Shape
) -> None:
    ours, theirs = drawn(0, 4, 3, *shape), drawn(1, 4, 5, *shape)
    loss = make(STUDENT, TEACHER)
    found = value(loss, ours, theirs)
    weights = {name.rsplit(".", 1)[-1]: p for name, p in loss.named_parameters()}
    layer = (conv(3, 5, 1) if shape else conv(3, 5)).double()
    layer.load_state_dict({k: v.reshape(layer.get_parameter(k).shape) for k, v in weights.items()})
    assert found == pytest.approx(float((layer(ours) - theirs).detach().square().mean()))


def test_a_hint_is_learned() -> None:
    ours = drawn(0, 64, 3, 2, 2, dtype=torch.float32)
    theirs = torch.einsum("oc,nchw->nohw", drawn(1, 5, 3, dtype=torch.float32), ours)
    lesson, loss = on_features(ours, theirs), hint(STUDENT, TEACHER)
    loss.prepare(lesson)
    optimizer = torch.optim.Adam(loss.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss(lesson).backward()
        optimizer.step()
    assert loss(lesson) < 1e-3 < theirs.square().mean()


@given(st.integers(0, 1000), st.integers(1, 5), PAIRS, st.floats(0.05, 2))
def test_contrastive_by_hand(seed: int, batch: int, shapes: tuple[Shape, Shape], temperature: float) -> None:
    ours, theirs = (drawn(seed + i, batch, *shape) for i, shape in enumerate(shapes))
    loss = contrastive(STUDENT, TEACHER, temperature, 4)
    found = value(loss, ours, theirs)
    weights = {name: p.detach().numpy() for name, p in loss.named_parameters()}

    def shown(name: str, feature: Tensor) -> list[np.ndarray]:
        x = feature.reshape(*feature.shape[:2], -1).numpy().mean(2)
        z = [weights[f"{name}.weight"] @ sample + weights[f"{name}.bias"] for sample in x]
        return [row / norm(row) for row in z]

    a, b = shown("ours", ours), shown("theirs", theirs)
    total = 0.0
    for i in range(batch):
        for anchor, others in ((a[i], b), (b[i], a)):
            scores = [np.exp(anchor @ other / temperature) for other in others]
            total -= np.log(scores[i] / sum(scores))
    assert found == pytest.approx(total / (2 * batch), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("make", [similarity, relations])
def test_equal_and_dead_samples_have_no_wild_gradient(make: Callable[..., TeacherLoss]) -> None:
    ours = drawn(0, 6, 8, dtype=torch.float32)
    ours[1], ours[3:5] = ours[0], 0
    ours.requires_grad_()
    make(STUDENT, TEACHER)(on_features(ours, drawn(1, 6, 8, dtype=torch.float32))).backward()
    assert ours.grad is not None
    assert ours.grad.isfinite().all() and ours.grad.abs().max() < 100


@given(st.integers(0, 1000))
def test_samples_that_differ_by_rounding_count_as_equal(seed: int) -> None:
    ours = drawn(seed, 6, 50)
    ours[1] = ours[0] * (1 + 1e-15)
    ours.requires_grad_()
    relations(STUDENT, TEACHER)(on_features(ours, drawn(seed + 1, 6, 50))).backward()
    assert ours.grad is not None and ours.grad.abs().max() < 100


@given(st.integers(0, 1000))
def test_small_distances_are_exact_beside_large_ones(seed: int) -> None:
    ours, theirs = drawn(seed, 6, 4, dtype=torch.float32), drawn(seed + 1, 6, 4, dtype=torch.float32)
    ours[1], ours[5] = ours[0] + 1e-3 * ours[1], ours[5] + 1e3
    expected = value(relations(STUDENT, TEACHER), ours.double(), theirs.double())
    assert value(relations(STUDENT, TEACHER), ours, theirs) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [hint, mimic, attention])
def test_a_map_and_a_vector_are_refused(make: Callable[..., TeacherLoss]) -> None:
    with pytest.raises(ModelError, match=r"'body.ours'.*\(4, 3, 2, 2\).*'body.theirs'.*\(4, 5\)"):
        make(STUDENT, TEACHER).prepare(on_features(drawn(0, 4, 3, 2, 2), drawn(1, 4, 5)))


@pytest.mark.parametrize("make", [hint, mimic, attention, similarity, relations, contrastive])
def test_other_samples_are_refused(make: Callable[..., TeacherLoss]) -> None:
    with pytest.raises(ModelError, match="name two modules"):
        make(STUDENT, TEACHER).prepare(on_features(drawn(0, 4, 3, 2, 2), drawn(1, 8, 3, 2, 2)))


def test_attention_needs_places() -> None:
    with pytest.raises(ModelError, match="no places"):
        attention(STUDENT, TEACHER).prepare(on_features(drawn(0, 4, 3), drawn(1, 4, 3)))


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"temperature": float("nan")}, {"dimension": 0}, {"dimension": 1.5}])
def test_contrastive_refuses_what_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=f"contrastive.{next(iter(wrong))} is"):
        contrastive(STUDENT, TEACHER, **wrong)  # type: ignore[arg-type]
