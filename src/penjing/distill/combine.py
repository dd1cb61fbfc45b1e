"""Sums of losses, with weights that may change over the training."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from penjing.distill.lesson import Lesson, Tap, TeacherLoss, as_teacher_loss, told
from penjing.errors import RecipeError

Weight = float | Callable[[float], float]  # a number, or a function of the share of all steps that are done


@dataclass(frozen=True)
class Ramp:
    """A weight that goes from ``start`` to ``end`` in a line, between the shares ``begin`` and ``stop`` of all steps."""

    start: float
    end: float
    begin: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.stop <= 1:
            raise RecipeError(f"a ramp from {self.begin} to {self.stop} of all steps; give rising shares from 0 to 1")

    def __call__(self, done: float) -> float:
        return self.start + (self.end - self.start) * self._part(done)

    def _part(self, done: float) -> float:
        return min(1.0, max(0.0, (done - self.begin) / (self.stop - self.begin)))


@dataclass(frozen=True)
class CosineRamp(Ramp):
    """The same as half a cosine: slow at both ends."""

    def _part(self, done: float) -> float:
        return 1 - half_cosine(super()._part(done))


def half_cosine(share: float) -> float:
    """From 1, at a share of 0, down to 0, at one of 1; slow at both ends."""
    return 0.5 * (1 + math.cos(math.pi * share))


class _Weighted(TeacherLoss):
    def __init__(self, terms: tuple[tuple[Weight, Callable[[Lesson], Tensor]], ...]) -> None:
        super().__init__()
        self.weights = tuple(weight for weight, _ in terms)
        self.losses = nn.ModuleList(as_teacher_loss(loss) for _, loss in terms)
        self.taps: tuple[Tap, ...] = tuple(dict.fromkeys(tap for loss in self.terms() for tap in loss.taps))

    def terms(self) -> list[TeacherLoss]:
        return [loss for loss in self.losses if isinstance(loss, TeacherLoss)]

    def prepare(self, lesson: Lesson) -> None:
        for loss in self.terms():
            loss.prepare(lesson)

    def forward(self, lesson: Lesson) -> Tensor:
        at = (weight(lesson.done) if callable(weight) else weight for weight in self.weights)
        first, *rest = (weight * loss(lesson) for weight, loss in zip(at, self.terms(), strict=True))
        total: Tensor = sum(rest, start=first)
        return total

    def extra_repr(self) -> str:
        return f"weights=({', '.join(told(weight) for weight in self.weights)})"


def weighted(*terms: tuple[Weight, Callable[[Lesson], Tensor]]) -> TeacherLoss:
    """The sum of ``weight * loss`` over the terms; a weight is a number or a schedule such as ``Ramp(1, 0)``.

    Raises:
        RecipeError: There is no term.
    """
    if not terms:
        raise RecipeError("weighted has no terms; give at least one (weight, loss) pair")
    return _Weighted(terms)
