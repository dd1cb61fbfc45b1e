"""Losses on the outputs of a student and its teacher.

Every loss is ``(output, teacher output, target) -> scalar``; those that need no labels leave the target alone.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from penjing.errors import RecipeError

TeacherLoss = Callable[[Any, Any, Any], Tensor]


def kl(temperature: float = 4.0) -> TeacherLoss:
    """Divergence (Kullback-Leibler) from the teacher's softened classes, times ``temperature ** 2`` (arXiv:1503.02531).

    Both outputs are logits of shape ``(N, classes, ...)``; the mean is over all but the classes. Needs no labels.
    """
    if not temperature > 0:
        raise RecipeError(f"kl.temperature is {temperature}; give a positive number, e.g. 4")

    def loss(output: Tensor, taught: Tensor, _target: object) -> Tensor:
        ours = F.log_softmax(output / temperature, dim=1)
        theirs = F.log_softmax(taught / temperature, dim=1)
        divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1).mean()
        return divergence * temperature**2

    return loss


def imitate(temperature: float = 4.0) -> TeacherLoss:
    """Follow the teacher whatever the task: ``kl`` where targets are classes, mean squared error of the outputs elsewhere.

    Targets are classes when they are integers and have one dimension less than the output.
    """
    classes = kl(temperature)

    def loss(output: Any, taught: Any, target: Any) -> Tensor:
        integers = isinstance(target, Tensor) and not target.is_floating_point()
        if integers and isinstance(output, Tensor) and output.ndim == target.ndim + 1:
            return classes(output, taught, target)
        pairs = zip(tree_leaves(output), tree_leaves(taught), strict=True)
        first, *rest = (F.mse_loss(ours, theirs) for ours, theirs in pairs)
        return sum(rest, start=first)

    return loss


def with_labels(loss: Callable[[Any, Any], Tensor]) -> TeacherLoss:
    """A loss on the labels alone, in the form of those that know a teacher."""
    return lambda output, _taught, target: loss(output, target)


def weighted(*terms: tuple[float, TeacherLoss]) -> TeacherLoss:
    """The sum of ``weight * loss`` over the terms."""
    if not terms:
        raise RecipeError("weighted has no terms; give at least one (weight, loss) pair")

    def loss(output: Any, taught: Any, target: Any) -> Tensor:
        first, *rest = (weight * term(output, taught, target) for weight, term in terms)
        return sum(rest, start=first)

    return loss
