"""Every loss that knows a teacher: a finite scalar with finite gradients, whatever the features; least where it should be."""

import copy
import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penjing.distill import LOSSES, Lesson, TeacherLoss, as_teacher_loss, loss_named, weighted
from penjing.errors import PenjingError, RecipeError
from tests.distill.lessons import STUDENT, TEACHER, whole

ON_FEATURES = {"hint", "mimic", "attention", "similarity", "relations", "contrastive"}
NEEDS_LABELS = {"dkd"}
LOOKS_AT_LABELS = NEEDS_LABELS | {"imitate"}
NO_LEAST = {"hint", "contrastive"}  # what they learn decides
NEEDS_MAPS = {"attention"}


@pytest.fixture(params=LOSSES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(name: str, **settings: Any) -> TeacherLoss:
    torch.manual_seed(0)
    return loss_named(name, **({"student": STUDENT, "teacher": TEACHER} if name in ON_FEATURES else {}), **settings)


def numbers(name: str) -> dict[str, Any]:
    """The settings that are numbers, with their defaults."""
    given = {k: p.default for k, p in inspect.signature(LOSSES[name]).parameters.items()}
    return {k: value for k, value in given.items() if k not in ("student", "teacher")}


def single(lesson: Lesson, change: Any = lambda x: x) -> Lesson:
    """In float32, every tensor of student and teacher changed."""

    def of(x: Tensor) -> Tensor:
        changed: Tensor = change(x.float())
        return changed

    features, shown = ({k: of(v) for k, v in held.items()} for held in (lesson.features, lesson.shown))
    return replace(lesson, output=of(lesson.output), taught=of(lesson.taught), features=features, shown=shown)


def ready(name: str, lesson: Lesson) -> TeacherLoss:
    loss = made(name)
    loss.prepare(lesson)
    return loss


def gradients(loss: TeacherLoss, lesson: Lesson) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradients for the student's output and feature and its own parameters; 0 where there are none."""
    output = lesson.output.detach().requires_grad_()
    feature = lesson.features[STUDENT].detach().requires_grad_()
    value = loss(replace(lesson, output=output, features={STUDENT: feature}))
    leaves = [output, feature, *loss.parameters()]
    return value, list(torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True))


def test_the_table_is_what_this_file_speaks_of() -> None:
    assert set(LOSSES) >= ON_FEATURES | LOOKS_AT_LABELS | NO_LEAST | NEEDS_MAPS
    assert {name for name in LOSSES if made(name).taps} == ON_FEATURES


def test_a_finite_scalar_with_gradients_that_reach_the_student_and_all_it_learns(name: str) -> None:
    lesson = single(whole(0))
    value, (output, feature, *own) = gradients(ready(name, lesson), lesson)
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite() and value > 0
    reached = feature if name in ON_FEATURES else output
    assert all(g.isfinite().all() for g in (output, feature, *own))
    assert reached.abs().max() > 0 and all(g.abs().max() > 0 for g in own)


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 4), (3, 2, 4, 4)])
def test_least_where_the_student_is_the_teacher(name: str, shape: tuple[int, ...]) -> None:
    if name in NO_LEAST or (name in NEEDS_MAPS and len(shape) == 1):
        return
    lesson = whole(0, 4, shape, shape)
    same = replace(lesson, taught=lesson.output, shown={TEACHER: lesson.features[STUDENT]})
    loss = ready(name, same)
    value, found = gradients(loss, same)
    assert value.abs() < 1e-9 and all(g.abs().max() < 1e-6 for g in found)
    assert loss(lesson) > 1e-4


@pytest.mark.parametrize("shapes", [((3, 4, 4), (5, 2, 2)), ((3, 4), (5, 4)), ((3,), (5,))])
def test_widths_and_sizes_may_differ(name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    if name in NEEDS_MAPS and len(shapes[0]) == 1:
        return
    lesson = single(whole(0, 4, *shapes))
    value, found = gradients(ready(name, lesson), lesson)
    assert value.isfinite() and all(g.isfinite().all() for g in found)


def test_half_precision_is_computed_in_single_also_under_autocast(name: str) -> None:
    half = single(whole(0, 8), lambda x: x.bfloat16())
    rounded = single(half)  # the same numbers in float32
    loss = ready(name, rounded)
    with torch.autocast("cpu", torch.bfloat16):
        value, found = gradients(loss, half)
    torch.testing.assert_close(value, loss(rounded), rtol=1e-5, atol=1e-6)
    assert value.dtype == torch.float32 and all(g.isfinite().all() for g in found)


@pytest.mark.parametrize("level", [0.0, 0.7])
@pytest.mark.parametrize("which", ["student", "teacher", "both"])
def test_never_nan_where_nothing_is_told_apart(name: str, which: str, level: float) -> None:
    lesson = single(whole(0))
    loss, flat = ready(name, lesson), single(lesson, lambda x: torch.full_like(x, level))
    if which != "teacher":
        lesson = replace(lesson, output=flat.output, features=flat.features)
    if which != "student":
        lesson = replace(lesson, taught=flat.taught, shown=flat.shown)
    value, found = gradients(loss, lesson)
    assert value.isfinite() and all(g.isfinite().all() for g in found)


@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_never_nan_at_any_size(name: str, size: float) -> None:
    lesson = single(whole(0), lambda x: size * x)
    value, found = gradients(ready(name, lesson), lesson)
    assert value.isfinite() and all(g.isfinite().all() for g in found)


def test_one_sample_gives_a_finite_value_or_is_refused(name: str) -> None:
    lesson = single(whole(0, batch=1))
    try:
        value, found = gradients(ready(name, lesson), lesson)
    except PenjingError:
        return
    assert value.isfinite() and all(g.isfinite().all() for g in found)


def test_labels_are_looked_at_only_where_it_says_so(name: str) -> None:
    lesson = single(whole(0))
    loss = ready(name, lesson)
    others = [replace(lesson, target=t) for t in (None, torch.zeros(4, 6), (lesson.target + 1) % 6)]
    if name in NEEDS_LABELS:
        with pytest.raises(PenjingError):
            loss(others[0])
        assert loss(others[2]) != loss(lesson)
    elif name not in LOOKS_AT_LABELS:
        assert all(loss(other) == loss(lesson) for other in others)


def test_a_copy_and_its_state_give_the_same(name: str) -> None:
    lesson = single(whole(0))
    loss, other = ready(name, lesson), ready(name, lesson)
    for p in other.parameters():
        nn.init.normal_(p)
    other.load_state_dict(loss.state_dict())
    assert loss(lesson) == other(lesson) == weighted((1.0, as_teacher_loss(loss)))(lesson)
    twin = copy.deepcopy(loss)
    assert twin(lesson) == loss(lesson) and repr(twin) == repr(loss) == repr(other)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in loss.parameters()}


def test_settings_out_of_range_are_refused_by_name(name: str) -> None:
    for setting in numbers(name):
        for wrong in (-1, float("nan"), float("inf")):
            with pytest.raises(RecipeError, match=f"{setting} is {wrong}"):
                made(name, **{setting: wrong})


def test_it_is_known_by_its_settings(name: str) -> None:
    assert repr(made(name)) == repr(made(name))
    for setting, usual in numbers(name).items():
        other = repr(made(name, **{setting: 2 * usual + 1}))
        assert other != repr(made(name)) and f"{setting}={2 * usual + 1}" in other
    if name in ON_FEATURES:
        assert f"student={STUDENT!r}, teacher={TEACHER!r}" in repr(made(name))
