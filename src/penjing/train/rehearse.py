"""Before anything is trained: two samples through student and teacher, so that a mistake shows at once."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penjing.distill import Lesson, TeacherLoss, as_teacher_loss
from penjing.graph.taps import Taps
from penjing.task import Batch, Inputs, as_tuple
from penjing.train.settings import Training


def rehearse(
    model: nn.Module,
    teacher: nn.Module | None,
    loss: Callable[[Lesson], Tensor] | None,
    batch: Batch,
    settings: Training,
) -> tuple[TeacherLoss | None, int | None]:
    """Walk two samples of a batch through both networks before anything is trained.

    Returns:
        A copy of the loss, made ready for the shapes of their features, and the number of classes where labels must become
        probabilities, because they are mixed or smoothed.
    """
    judge = None if loss is None else copy.deepcopy(as_teacher_loss(loss))
    blends = bool(settings.smoothing or settings.mixup or settings.cutmix)
    if judge is None and not blends:
        return None, None
    inputs, target = batch
    few = two_of(inputs)
    pairs = judge.taps if judge is not None else ()
    with torch.no_grad():
        output, features = _shown(model, [p.student for p in pairs], few)
        if judge is not None and teacher is not None:
            taught, shown = _shown(teacher, [p.teacher for p in pairs], few)
            judge.prepare(Lesson(output, taught, target, features, shown))
    return judge, _classes(output, target) if blends else None


def two_of(inputs: Inputs) -> tuple[Tensor, ...]:
    """The first two samples."""
    return tuple(x[:2] for x in as_tuple(inputs))


def _shown(model: nn.Module, paths: list[str], inputs: tuple[Tensor, ...]) -> tuple[Any, Any]:
    """Output and features of a copy in eval mode, which leaves the model's own mode and statistics alone."""
    net = copy.deepcopy(model).eval()
    device = next((t.device for t in tree_leaves(dict(net.state_dict()))), torch.device("cpu"))
    taps = Taps(net, paths, call=net)
    found = taps(*(x.to(device) for x in inputs))
    taps.close()
    return found


def _classes(output: Any, target: Any) -> int | None:
    """How many classes the labels number, where they are class numbers."""
    integers = isinstance(target, Tensor) and not target.is_floating_point()
    if not (integers and isinstance(output, Tensor) and output.ndim > 1 and output.shape[1] > 1):
        return None
    without = (*output.shape[:1], *output.shape[2:])
    return output.shape[1] if target.shape[1:] == without[1:] else None
