"""Losses on outputs, held against their papers' formulas in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from penjing.distill import Lesson, TeacherLoss, dist, dkd, imitate, kl, logit_mse, standardized_kl, with_labels
from penjing.errors import DataError, ModelError, RecipeError
from tests.distill.lessons import drawn, on_outputs

CLASSES = torch.tensor([0, 1, 2, 6])
SHAPES = st.sampled_from([(1, 2), (5, 10), (2, 3, 4), (2, 3, 4, 5)])


def softened(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Rows of probabilities, by the definition of softmax."""
    e: np.ndarray = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
    return np.asarray(e / e.sum(-1, keepdims=True))


def rows(logits: Tensor) -> np.ndarray:
    """Classes last, all else in one dimension."""
    return np.moveaxis(logits.double().numpy(), 1, -1).reshape(-1, logits.shape[1])


def divergence(theirs: np.ndarray, ours: np.ndarray) -> float:
    return float(
        np.mean([sum(t * np.log(t / s) for t, s in zip(a, b, strict=True)) for a, b in zip(theirs, ours, strict=True)])
    )


def by_hand(output: Tensor, taught: Tensor, temperature: float) -> float:
    return divergence(softened(rows(taught), temperature), softened(rows(output), temperature)) * temperature**2


def pair(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    return 3 * drawn(seed, *shape), 3 * drawn(seed + 1, *shape)


def value(loss: TeacherLoss, output: Tensor, taught: Tensor, target: Tensor | None = None) -> float:
    lesson = on_outputs(output, taught, target)
    loss.prepare(lesson)
    return float(loss(lesson).detach())


@given(st.integers(0, 1000), st.floats(0.5, 20), SHAPES)
def test_kl_by_hand(seed: int, temperature: float, shape: tuple[int, ...]) -> None:
    output, taught = pair(seed, *shape)
    assert value(kl(temperature), output, taught) == pytest.approx(by_hand(output, taught, temperature), rel=1e-9)


@given(st.integers(0, 1000), st.floats(-50, 50))
def test_kl_is_zero_for_the_same_classes_and_positive_for_others(seed: int, offset: float) -> None:
    output, taught = pair(seed, 4, 7)
    assert abs(value(kl(), output + offset, output)) < 1e-9  # softmax does not see a constant
    assert value(kl(), output, taught) > 1e-3


def test_kl_teaches_the_student_alone_and_stays_finite() -> None:
    output, taught = drawn(0, 4, 7).float().requires_grad_(), (drawn(1, 4, 7) * 1e4).float()
    found = kl(1.0)(on_outputs(output, taught))
    found.backward()
    assert found.isfinite()
    expected = (output.detach().softmax(1) - taught.softmax(1)) / 4  # the derivative by hand, at temperature 1
    torch.testing.assert_close(output.grad, expected)


def test_the_square_of_the_temperature_keeps_gradients_of_one_size() -> None:
    sizes = []
    for temperature in (10.0, 100.0):
        output = drawn(0, 4, 7).requires_grad_()
        kl(temperature)(on_outputs(output, drawn(1, 4, 7))).backward()
        assert output.grad is not None
        sizes.append(output.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)


@given(st.integers(0, 1000), st.floats(0.5, 20), SHAPES)
def test_standardized_kl_by_hand(seed: int, temperature: float, shape: tuple[int, ...]) -> None:
    output, taught = pair(seed, *shape)

    def standard(logits: Tensor) -> np.ndarray:
        z = rows(logits)
        return np.asarray((z - z.mean(1, keepdims=True)) / (z.std(1, ddof=1, keepdims=True) + 1e-7))

    ours, theirs = softened(standard(output), temperature), softened(standard(taught), temperature)
    expected = divergence(theirs, ours) * temperature**2
    assert value(standardized_kl(temperature), output, taught) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.floats(0.1, 50), st.floats(-20, 20))
def test_standardized_kl_sees_neither_size_nor_offset(factor: float, offset: float) -> None:
    taught = pair(0, 4, 7)[1]
    assert abs(value(standardized_kl(), factor * taught + offset, taught)) < 1e-6
    assert value(kl(), 3 * taught, taught) > 1e-2


@given(st.integers(0, 1000), st.floats(0, 3), st.floats(0, 9), st.floats(0.5, 8), st.sampled_from([(4, 7), (2, 3, 4), (3, 2)]))
def test_dkd_by_hand(seed: int, alpha: float, beta: float, temperature: float, shape: tuple[int, ...]) -> None:
    output, taught = pair(seed, *shape)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(seed))
    ours, theirs = softened(rows(output), temperature), softened(rows(taught), temperature)
    total = 0.0
    for own, s, t in zip(target.flatten().tolist(), ours, theirs, strict=True):
        others = [k for k in range(len(s)) if k != own]
        rest_t, rest_s = sum(t[k] for k in others), sum(s[k] for k in others)
        between = t[own] * np.log(t[own] / s[own]) + rest_t * np.log(rest_t / rest_s)
        among = sum(t[k] / rest_t * np.log((t[k] / rest_t) / (s[k] / rest_s)) for k in others)  # the paper's p-hat
        total += alpha * between + beta * among
    expected = total / target.numel() * temperature**2
    assert value(dkd(alpha, beta, temperature), output, taught, target) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_dkd_is_kl_where_its_parts_are_weighted_as_in_kl() -> None:
    output, taught = pair(0, 1, 7)
    target = torch.tensor([3])
    surplus = 1 - float(softened(rows(taught), 4.0)[0, 3])
    assert value(dkd(1.0, surplus, 4.0), output, taught, target) == pytest.approx(by_hand(output, taught, 4.0), rel=1e-9)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_dkd_stays_finite_where_one_class_is_sure(size: float) -> None:
    output = (size * drawn(0, 4, 7)).float().requires_grad_()
    found = dkd()(on_outputs(output, (size * drawn(1, 4, 7)).float(), CLASSES))
    found.backward()
    assert output.grad is not None
    assert found.isfinite() and output.grad.isfinite().all()


@pytest.mark.parametrize("target", [None, torch.zeros(4), torch.zeros(4, 7), torch.zeros(4, 7, dtype=torch.int64)])
def test_dkd_needs_class_numbers(target: Tensor | None) -> None:
    lesson = Lesson(*pair(0, 4, 7), target)
    with pytest.raises(DataError, match="use kl or dist"):
        dkd().prepare(lesson)
    with pytest.raises(DataError, match="use kl or dist"):
        dkd()(lesson)


@pytest.mark.parametrize("label", [-100, 7])
def test_dkd_refuses_labels_that_are_no_class(label: int) -> None:
    with pytest.raises(DataError, match="labels from 0 to 6"):
        dkd().prepare(Lesson(*pair(0, 4, 7), torch.tensor([0, 1, 2, label])))


def test_dkd_takes_class_numbers_of_any_integer_type() -> None:
    output, taught = pair(0, 4, 7)
    assert value(dkd(), output, taught, CLASSES.to(torch.uint8)) == value(dkd(), output, taught, CLASSES)


@given(st.integers(0, 1000), st.floats(0, 3), st.floats(0, 3), st.floats(0.5, 8), st.sampled_from([(5, 10), (3, 4, 2)]))
def test_dist_by_hand(seed: int, beta: float, gamma: float, temperature: float, shape: tuple[int, ...]) -> None:
    output, taught = pair(seed, *shape)
    ours, theirs = softened(rows(output), temperature), softened(rows(taught), temperature)
    within = np.mean([1 - np.corrcoef(s, t)[0, 1] for s, t in zip(ours, theirs, strict=True)])
    across = np.mean([1 - np.corrcoef(s, t)[0, 1] for s, t in zip(ours.T, theirs.T, strict=True)])
    expected = temperature**2 * (beta * within + gamma * across)
    assert value(dist(beta, gamma, temperature), output, taught) == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_dist_of_one_sample_is_its_correlation_over_the_classes() -> None:
    output, taught = pair(0, 1, 7)
    ours, theirs = (softened(rows(z), 1.0)[0] for z in (output, taught))
    assert value(dist(gamma=5.0), output, taught) == pytest.approx(1 - np.corrcoef(ours, theirs)[0, 1])


def test_dist_of_a_student_that_tells_nothing_apart_has_no_wild_gradient() -> None:
    output = torch.full((8, 10), 0.3).requires_grad_()
    found = dist()(on_outputs(output, pair(0, 8, 10)[1].float()))
    found.backward()
    assert output.grad is not None
    assert found.item() == pytest.approx(2) and output.grad.abs().max() < 10


def test_logit_mse_by_hand() -> None:
    output, taught = pair(0, 4, 7)
    assert value(logit_mse(), output, taught) == pytest.approx(np.square(output.numpy() - taught.numpy()).mean())


def test_labels_alone() -> None:
    output = drawn(0, 4, 7)
    assert with_labels(F.cross_entropy)(on_outputs(output, drawn(1, 4, 7), CLASSES)) == F.cross_entropy(output, CLASSES)


def test_imitation_follows_classes_where_targets_are_classes() -> None:
    output, taught = pair(0, 4, 7)
    expected = pytest.approx(by_hand(output, taught, 2.0))
    assert value(imitate(2.0), output, taught, CLASSES) == expected
    assert value(imitate(2.0), output, taught, 0.9 * F.one_hot(CLASSES, 7) + 0.1 / 7) == expected  # smoothed or mixed
    maps, taught_maps = pair(0, 2, 3, 4, 5)
    found = value(imitate(2.0), maps, taught_maps, torch.zeros(2, 4, 5, dtype=torch.int64))
    assert found == pytest.approx(by_hand(maps, taught_maps, 2.0))


@pytest.mark.parametrize(("shape", "labels"), [((4, 1), (4,)), ((2, 5, 7), (2, 5)), ((4,), ())])
def test_imitation_follows_values_where_integers_number_no_classes(shape: tuple[int, ...], labels: tuple[int, ...]) -> None:
    output, taught = pair(0, *shape)  # counts; classes along another dimension; one number in all
    target = torch.zeros(labels, dtype=torch.int64)
    assert value(imitate(), output, taught, target) == pytest.approx(np.square(output.numpy() - taught.numpy()).mean())


@pytest.mark.parametrize("target", [torch.zeros(4, 7), torch.zeros(4, 7, dtype=torch.int64), None, torch.zeros(4)])
def test_imitation_follows_values_elsewhere(target: Tensor | None) -> None:
    output, taught = pair(0, 4, 7)
    expected = np.square(output.numpy() - taught.numpy()).mean()
    assert imitate()(Lesson(output, taught, target)).item() == pytest.approx(expected)
    several = imitate()(Lesson({"a": output, "b": [taught]}, {"a": taught, "b": [2 * taught]}, target))
    assert several.item() == pytest.approx(expected + np.square(taught.numpy()).mean())


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("make", [kl, imitate, standardized_kl, lambda t: dkd(temperature=t), lambda t: dist(temperature=t)])
def test_a_temperature_that_is_not_positive_is_refused(make: Callable[[float], TeacherLoss], temperature: float) -> None:
    with pytest.raises(RecipeError, match="temperature is"):
        make(temperature)


@pytest.mark.parametrize("make", [kl, imitate, logit_mse, standardized_kl, dkd, dist])
def test_outputs_of_other_shapes_are_refused(make: Callable[[], TeacherLoss]) -> None:
    with pytest.raises(ModelError, match=r"\(4, 7\).*\(4, 8\)"):
        make().prepare(on_outputs(drawn(0, 4, 7), drawn(1, 4, 8), CLASSES))


@pytest.mark.parametrize("make", [kl, standardized_kl, dkd, dist])
@pytest.mark.parametrize("shape", [(4, 1), (4,)])
def test_outputs_without_classes_are_refused_where_they_are_compared(
    make: Callable[[], TeacherLoss], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ModelError, match=f"^{make.__name__} compares classes.*use imitate or logit_mse"):
        make().prepare(on_outputs(drawn(0, *shape), drawn(1, *shape), CLASSES))


@pytest.mark.parametrize("make", [kl, imitate, logit_mse])
def test_outputs_without_a_tensor_are_refused(make: Callable[[], TeacherLoss]) -> None:
    with pytest.raises(ModelError, match="hold a tensor"):
        make().prepare(Lesson({}, {}))


def test_imitate_settles_once_whether_targets_are_classes() -> None:
    torch.manual_seed(0)
    output, taught = torch.randn(4, 3), torch.randn(4, 3)
    one, two = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    loss = imitate()
    loss.prepare(Lesson(output, taught, two))
    assert loss(Lesson(output, taught, one)) == logit_mse()(Lesson(output, taught, one))
    loss.prepare(Lesson(output, taught, one))
    assert loss(Lesson(output, taught, two)) == kl(4.0)(Lesson(output, taught, two))


def test_outputs_that_are_nothing_are_left_out() -> None:
    ours, theirs = torch.randn(4, 3), torch.randn(4, 3)
    loss = logit_mse()
    lesson = Lesson((ours, None), (theirs, None), None, {}, {})
    loss.prepare(lesson)
    assert torch.allclose(loss(lesson), F.mse_loss(ours, theirs))
