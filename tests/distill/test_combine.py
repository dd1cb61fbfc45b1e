import math
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.distill import CosineRamp, Lesson, Ramp, TeacherLoss, as_teacher_loss, hint, kl, similarity, weighted, with_labels
from penjing.errors import ModelError, RecipeError
from tests.distill.lessons import STUDENT, TEACHER, drawn, on_outputs, whole


def test_terms_add_up_by_weight() -> None:
    lesson = whole(0)
    expected = (
        0.7 * kl(2.0)(lesson) + 0.3 * F.cross_entropy(lesson.output, lesson.target) + 2 * similarity(STUDENT, TEACHER)(lesson)
    )
    terms = (0.7, kl(2.0)), (0.3, with_labels(F.cross_entropy)), (0, kl(8.0)), (2, similarity(STUDENT, TEACHER))
    assert weighted(*terms)(lesson).item() == pytest.approx(expected.item(), rel=1e-9)
    assert weighted((2, kl(2.0)))(lesson).item() == pytest.approx(2 * kl(2.0)(lesson).item(), rel=1e-9)


def test_a_plain_function_of_the_lesson_is_a_term() -> None:
    assert weighted((3.0, lambda lesson: lesson.output.sum()))(whole(0)).item() == pytest.approx(
        3 * whole(0).output.sum().item()
    )


def test_weights_follow_the_share_that_is_done() -> None:
    lesson = whole(0)
    loss = weighted((Ramp(1, 0), kl(1.0)), (lambda done: done**2, kl(4.0)))
    for done in (0.0, 0.25, 1.0):
        expected = (1 - done) * kl(1.0)(lesson) + done**2 * kl(4.0)(lesson)
        assert loss(on_outputs(lesson.output, lesson.taught, done=done)).item() == pytest.approx(expected.item(), rel=1e-9)


def test_a_sum_asks_for_what_its_terms_ask_for_once() -> None:
    two = hint("a", "b"), similarity("a", "b"), similarity("c", "b")
    assert weighted(*((1.0, loss) for loss in two), (1.0, kl())).taps == (("a", "b"), ("c", "b"))
    nested = weighted((1.0, weighted((1.0, two[0]), (1.0, two[2]))), (2.0, two[1]))
    assert nested.taps == (("a", "b"), ("c", "b"))


def test_preparing_reaches_every_term() -> None:
    loss = weighted((1.0, weighted((1.0, hint(STUDENT, TEACHER)))), (1.0, hint(STUDENT, TEACHER)))
    assert not list(loss.parameters())
    loss.prepare(whole(0))
    assert [tuple(p.shape) for p in loss.parameters()] == [(5, 3), (5,)] * 2
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in loss.parameters())
    with pytest.raises(ModelError):
        weighted((1.0, kl())).prepare(on_outputs(drawn(0, 4, 2), drawn(1, 4, 3)))


def test_no_terms_are_refused() -> None:
    with pytest.raises(RecipeError, match="no terms"):
        weighted()


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0, 0.5), st.floats(0.51, 1), st.floats(0, 1))
def test_ramps_by_hand(start: float, end: float, begin: float, stop: float, done: float) -> None:
    part = 0.0 if done <= begin else 1.0 if done >= stop else (done - begin) / (stop - begin)
    assert Ramp(start, end, begin, stop)(done) == pytest.approx(start * (1 - part) + end * part, abs=1e-9)
    slow = math.sin(math.pi * part / 2) ** 2
    assert CosineRamp(start, end, begin, stop)(done) == pytest.approx(start * (1 - slow) + end * slow, abs=1e-9)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.6, 0.2), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
def test_shares_that_do_not_rise_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(RecipeError, match="rising shares"):
        Ramp(1, 0, *shares)


def test_a_sum_tells_its_weights() -> None:
    text = repr(weighted((0.25, kl(3.0)), (Ramp(1, 0), hint("a", "b"))))
    assert all(part in text for part in ("0.25", "Ramp(start=1, end=0", "temperature=3.0", "student='a'"))


def faded(done: float) -> float:
    return 1 - done


class Faded:
    def __call__(self, done: float) -> float:
        return 1 - done


def scaled(lesson: Lesson, by: float = 1.0) -> Tensor:
    total: Tensor = by * lesson.output.sum()
    return total


def test_what_it_is_known_by_names_functions_and_not_where_they_lie() -> None:
    """A checkpoint that another process wrote is of the same loss."""
    sums = [weighted((weight, kl())) for weight in (faded, Faded(), Faded(), partial(faded, done=1))]
    losses = [as_teacher_loss(scaled), as_teacher_loss(partial(scaled, by=2.0)), as_teacher_loss(partial(scaled, by=3.0))]
    labels = [with_labels(F.cross_entropy), with_labels(F.mse_loss), with_labels(partial(F.cross_entropy, label_smoothing=0.1))]
    texts = [repr(loss) for loss in (*sums, *losses, *labels)]
    assert not any(" at 0x" in text for text in texts)
    assert texts[1] == texts[2] and len(set(texts)) == len(texts) - 1
    assert "test_combine.faded" in texts[0] and "label_smoothing=0.1" in texts[-1]


@pytest.mark.parametrize(
    ("loss", "told"),
    [("kl", "the loss is 'kl'"), (kl, r"kl, which makes one; call it: kl\(...\)"), (TeacherLoss, "which makes one; call it")],
)
def test_what_is_no_loss_is_refused(loss: Any, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        as_teacher_loss(loss)
