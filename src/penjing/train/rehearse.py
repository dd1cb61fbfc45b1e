"""Before anything is trained: one batch through student and teacher, so that a mistake shows at once."""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from penjing.distill import Lesson, TeacherLoss, as_teacher_loss
from penjing.errors import RecipeError
from penjing.graph.taps import Taps
from penjing.task import Batch, Inputs, Loss, as_tuple
from penjing.train.mixing import soft
from penjing.train.settings import Training
from penjing.train.share import by_sample
from penjing.train.tensors import state_of


@dataclass(frozen=True)
class Rehearsed:
    """What one batch tells.

    Attributes:
        loss: A copy of the loss, made ready for the shapes of the networks' features.
        classes: How many there are, where labels must become probabilities, because they are mixed or smoothed.
        mixes: Whether samples are mixed: it is asked for, and inputs and targets can be.
    """

    loss: TeacherLoss | None
    classes: int | None
    mixes: bool


def rehearse(
    model: nn.Module,
    teacher: nn.Module | None,
    loss: Callable[[Lesson], Tensor] | None,
    batch: Batch,
    settings: Training,
    task_loss: Loss,
) -> Rehearsed:
    """Walk a batch through both networks before anything is trained.

    Raises:
        RecipeError: Inputs have no places, and ``cutmix`` wants some.
    """
    judge = None if loss is None else copy.deepcopy(as_teacher_loss(loss))
    blends = bool(settings.smoothing or settings.mixup or settings.cutmix)
    if judge is None and not blends:
        return Rehearsed(None, None, mixes=False)
    inputs, target = batch
    given = as_tuple(inputs)
    if settings.cutmix and given[0].ndim < 3:
        raise RecipeError(
            f"training.cutmix cuts boxes, and inputs of shape {tuple(given[0].shape)} have no places; set it to 0"
        )
    pairs = judge.taps if judge is not None else ()
    with torch.no_grad():
        output, features = _shown(model, [p.student for p in pairs], given)
        taught: Any = None
        shown: Any = {}
        if judge is not None and teacher is not None:
            taught, shown = _shown(teacher, [p.teacher for p in pairs], given)
            judge.prepare(Lesson(output, taught, target, features, shown))
    classes = _classes(output, target) if blends else None
    if classes is not None:

        def value(labels: Any) -> Any:
            loss, lesson = copy.deepcopy((judge, Lesson(output, taught, labels, features, shown)))  # it may change either
            return task_loss(lesson.output, labels) if loss is None else loss(lesson)

        as_shares = partial(soft, target, classes, as_a_mean=is_cross_entropy(task_loss))
        if why := _unlike(value, target, as_shares, settings.smoothing):
            warnings.warn(
                f"the loss {why}, which mixed or smoothed labels are, so that neither is done; set training.mixup, "
                "training.cutmix and training.smoothing to 0 to be rid of this",
                stacklevel=2,
            )
            return Rehearsed(judge, None, mixes=False)
    return Rehearsed(judge, classes, mixes=bool(settings.mixup or settings.cutmix) and _mixable(given, target, classes))


def is_cross_entropy(loss: Loss) -> bool:
    """Whether a loss is torch's cross-entropy, a mean over the positions that count."""
    return loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)


def _unlike(value: Callable[[Any], Any], target: Tensor, as_shares: Callable[[float], Tensor], smoothing: float) -> str | None:
    """Why probabilities of classes cannot stand for class numbers in a loss; None where they can."""
    numbers, sure = _told(value, target), _told(value, as_shares(0.0))
    if numbers is None:
        return None
    if _told(value, as_shares(smoothing)) is None:
        return "does not take probabilities of classes"
    # Cross-entropy divides by the weights of the class numbers that it sees, and of probabilities by how many there are.
    if sure is not None and not math.isclose(numbers, sure, rel_tol=1e-3, abs_tol=1e-6):
        return f"is {numbers:.4g} of class numbers, and {sure:.4g} of the same as probabilities of classes"
    return None


def _told(loss: Callable[[Any], Any], labels: Any) -> float | None:
    """What a loss gives, with the same chance at every call; None where it raises something or gives no finite number."""
    with torch.no_grad(), torch.random.fork_rng():
        try:
            value = float(loss(labels))
        except Exception:  # whatever a loss of somebody else's raises
            return None
    return value if math.isfinite(value) else None


def two_of(inputs: Inputs) -> tuple[Tensor, ...]:
    """The first two samples."""
    return tuple(x[:2] for x in as_tuple(inputs))


def _shown(model: nn.Module, paths: list[str], inputs: tuple[Tensor, ...]) -> tuple[Any, Any]:
    """Output and features of a copy in eval mode, which leaves the model's own mode and statistics alone."""
    net = copy.deepcopy(model).eval()
    device = next((t.device for t in state_of(net).values()), torch.device("cpu"))
    taps = Taps(net, paths, call=net)
    found = taps(*(x.to(device) for x in inputs))
    taps.close()
    return found


def _mixable(inputs: tuple[Tensor, ...], target: Any, classes: int | None) -> bool:
    """Whether both can be mixed; of one alone, the other would tell of samples that are not there."""
    batch = len(inputs[0])
    targets = [] if classes is not None else tree_leaves(target, is_leaf=lambda node: by_sample(node, batch))
    parts = {"inputs": inputs, "targets": targets}
    unfit = [what for what, leaves in parts.items() if not all(_blends(leaf, batch) for leaf in leaves)]
    if unfit:
        warnings.warn(
            f"samples are not mixed, since the {' and '.join(unfit)} are neither floats nor class numbers; set training.mixup "
            "and training.cutmix to 0 to be rid of this",
            stacklevel=2,
        )
    return not unfit


def _blends(leaf: Any, batch: int) -> bool:
    alone = isinstance(leaf, Tensor) and (not leaf.ndim or leaf.shape[0] != batch)  # no sample's own
    return leaf is None or alone or (isinstance(leaf, Tensor) and leaf.is_floating_point())


def _classes(output: Any, target: Any) -> int | None:
    """How many classes the labels number, where they are class numbers."""
    integers = isinstance(target, Tensor) and not target.is_floating_point()
    if not (integers and isinstance(output, Tensor) and output.ndim > 1 and output.shape[1] > 1):
        return None
    without = (*output.shape[:1], *output.shape[2:])
    return output.shape[1] if target.shape[1:] == without[1:] else None
