"""What a loss that knows a teacher looks at, and what it may ask for: one signature for all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from penjing.errors import RecipeError


@dataclass(frozen=True)
class Lesson:
    """One batch as both networks saw it."""

    output: Any  # the student's
    taught: Any  # the teacher's, without gradient
    target: Any = None  # labels; None where there are none
    features: Mapping[str, Tensor] = field(default_factory=dict)  # the student's, by module path
    shown: Mapping[str, Tensor] = field(default_factory=dict)  # the teacher's, by module path, without gradient
    done: float = 0.0  # share of all steps that are behind us, 0 to 1, for schedules


class Tap(NamedTuple):
    """Two modules whose outputs a loss compares, by their paths."""

    student: str
    teacher: str


class TeacherLoss(nn.Module):
    """``(Lesson) -> scalar``. A module, since some have weights of their own (projectors), which are trained along.

    Attributes:
        taps: The features it needs, besides the outputs.
    """

    taps: tuple[Tap, ...] = ()

    def prepare(self, lesson: Lesson) -> None:
        """Make what depends on the shapes of features, once, from the first lesson (in float32 on the CPU).

        Raises:
            ModelError: The two networks' outputs or features do not go together.
        """

    def forward(self, lesson: Lesson) -> Tensor:
        """The loss of one batch."""
        raise NotImplementedError


class _Given(TeacherLoss):
    """A loss that the user gave as a function of the lesson."""

    def __init__(self, function: Callable[[Lesson], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, lesson: Lesson) -> Tensor:
        return self.function(lesson)

    def extra_repr(self) -> str:
        return told(self.function)


def as_teacher_loss(loss: Callable[[Lesson], Tensor]) -> TeacherLoss:
    """``loss`` itself where it is a ``TeacherLoss``; else one that calls it.

    Raises:
        RecipeError: It cannot be called, or makes losses and is none.
    """
    if isinstance(loss, TeacherLoss):
        return loss
    if not callable(loss):
        raise RecipeError(f"the loss is {loss!r}; give one of penjing.distill, such as distill.kl(), or a function of a Lesson")
    makes = getattr(loss, "__annotations__", {}).get("return")
    if isinstance(loss, type) or makes in (TeacherLoss, TeacherLoss.__name__):
        raise RecipeError(f"the loss is {told(loss)}, which makes one; call it: {getattr(loss, '__name__', 'it')}(...)")
    return _Given(loss)


def told(value: Any) -> str:
    """``value`` as the ``repr`` of a loss names it: the same in every process, since checkpoints are known by it.

    That of a function, or of an object that has no ``repr`` of its own, would hold where it lies in memory.
    """
    if isinstance(value, partial):
        settings = [told(a) for a in value.args] + [f"{k}={told(v)}" for k, v in value.keywords.items()]
        return f"{told(value.func)}({', '.join(settings)})"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    plain = getattr(type(value), "__repr__", None) is object.__repr__
    return told(type(value)) if plain else repr(value)
