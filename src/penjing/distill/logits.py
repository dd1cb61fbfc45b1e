"""Losses on the outputs of a student and its teacher; logits have shape ``(N, classes, ...)``, classes along dimension 1."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from penjing.distill.lesson import Lesson, TeacherLoss, told
from penjing.distill.settings import not_negative, positive
from penjing.distill.vectors import correlation, wide
from penjing.errors import DataError, ModelError


def _tensors(output: Any) -> list[Tensor]:
    return [t for t in tree_leaves(output) if isinstance(t, Tensor)]


class _OnOutputs(TeacherLoss):
    """What all losses on outputs check before the first step."""

    def prepare(self, lesson: Lesson) -> None:
        ours, theirs = ([tuple(t.shape) for t in _tensors(o)] for o in (lesson.output, lesson.taught))
        if not ours or ours != theirs:
            raise ModelError(
                f"the student gives outputs of shape {ours} and the teacher {theirs}; they must be the same, sample by sample, "
                "and hold a tensor"
            )


class _OnLogits(_OnOutputs):
    name: str  # as users call it

    def prepare(self, lesson: Lesson) -> None:
        super().prepare(lesson)
        if not isinstance(lesson.output, Tensor) or lesson.output.ndim < 2 or lesson.output.shape[1] < 2:
            raise ModelError(
                f"{self.name} compares classes, and the networks do not give logits of shape (N, classes, ...); "
                "use imitate or logit_mse"
            )


class _KL(_OnLogits):
    name = "kl"

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = positive("kl", "temperature", temperature, 4)

    def forward(self, lesson: Lesson) -> Tensor:
        return _divergence(wide(lesson.output), wide(lesson.taught), self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def kl(temperature: float = 4.0) -> TeacherLoss:
    """Divergence (Kullback-Leibler) from the teacher's softened classes, times ``temperature ** 2`` (arXiv:1503.02531).

    The mean is over all but the classes. Needs no labels.
    """
    return _KL(temperature)


class _StandardizedKL(_OnLogits):
    name = "standardized_kl"

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = positive("standardized_kl", "temperature", temperature, 2)

    def forward(self, lesson: Lesson) -> Tensor:
        ours, theirs = (_standardized(wide(logits)) for logits in (lesson.output, lesson.taught))
        return _divergence(ours, theirs, self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def standardized_kl(temperature: float = 2.0) -> TeacherLoss:
    """``kl`` of logits that have mean 0 and deviation 1 over the classes (Sun et al. 2024, arXiv:2403.01427).

    A small student need not reach the size of its teacher's logits, only their proportions. Needs no labels.
    """
    return _StandardizedKL(temperature)


class _LogitMSE(_OnOutputs):
    def forward(self, lesson: Lesson) -> Tensor:
        pairs = zip(_tensors(lesson.output), _tensors(lesson.taught), strict=True)
        first, *rest = (F.mse_loss(wide(ours), wide(theirs)) for ours, theirs in pairs)
        return sum(rest, start=first)


def logit_mse() -> TeacherLoss:
    """Mean squared difference of the outputs, summed over them where there are several (arXiv:1312.6184). Needs no labels."""
    return _LogitMSE()


class _DKD(_OnLogits):
    name = "dkd"

    def __init__(self, alpha: float, beta: float, temperature: float) -> None:
        super().__init__()
        self.alpha, self.beta = not_negative("dkd", "alpha", alpha), not_negative("dkd", "beta", beta)
        self.temperature = positive("dkd", "temperature", temperature, 4)

    def prepare(self, lesson: Lesson) -> None:
        super().prepare(lesson)
        target, classes = _class_numbers(lesson), lesson.output.shape[1]
        if not ((target >= 0) & (target < classes)).all():
            raise DataError(f"dkd takes labels from 0 to {classes - 1}, and there are others; it has none to leave out")

    def forward(self, lesson: Lesson) -> Tensor:
        ours, theirs = wide(lesson.output) / self.temperature, wide(lesson.taught) / self.temperature
        own = F.one_hot(_class_numbers(lesson), ours.shape[1]).movedim(-1, 1).bool()
        whole = [_yes_and_no(logits, own) for logits in (ours, theirs)]
        # Without the class itself: its logit as low as can be, so that it takes no part.
        others = [F.log_softmax(logits.masked_fill(own, torch.finfo(logits.dtype).min), 1) for logits in (ours, theirs)]
        among = (others[1].exp() * (others[1] - others[0])).sum(1).mean()
        between = (whole[1].exp() * (whole[1] - whole[0])).sum(1).mean()
        return (self.alpha * between + self.beta * among) * self.temperature**2

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}"


def dkd(alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> TeacherLoss:
    """Decoupled: the class itself against all others, and the others among themselves (Zhao et al. 2022, arXiv:2203.08679).

    Args:
        alpha: Weight of the first part.
        beta: Weight of the second; to be tuned, the paper has 8 on CIFAR-100 and 0.5 on ImageNet.

    Needs class numbers as labels.
    """
    return _DKD(alpha, beta, temperature)


class _DIST(_OnLogits):
    name = "dist"

    def __init__(self, beta: float, gamma: float, temperature: float) -> None:
        super().__init__()
        self.beta, self.gamma = not_negative("dist", "beta", beta), not_negative("dist", "gamma", gamma)
        self.temperature = positive("dist", "temperature", temperature, 1)

    def forward(self, lesson: Lesson) -> Tensor:
        ours, theirs = (
            F.softmax(wide(logits) / self.temperature, 1).movedim(1, -1).flatten(0, -2)
            for logits in (lesson.output, lesson.taught)
        )
        within = 1 - correlation(ours, theirs).mean()
        # One sample has no correlation with itself over the batch.
        across = 1 - correlation(ours.T, theirs.T).mean() if len(ours) > 1 else within.new_zeros(())
        return (self.beta * within + self.gamma * across) * self.temperature**2

    def extra_repr(self) -> str:
        return f"beta={self.beta}, gamma={self.gamma}, temperature={self.temperature}"


def dist(beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> TeacherLoss:
    """Correlation of the probabilities, over the classes and over the batch (Huang et al. 2022, arXiv:2205.10536).

    Asks for the teacher's order and proportions, not for its values, which suits a student that is much smaller or of another
    family. Take batches of 64 or more. Needs no labels.
    """
    return _DIST(beta, gamma, temperature)


class _Imitate(_OnOutputs):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.classes, self.values = kl(temperature), logit_mse()
        self.known: bool | None = None  # whether targets are classes: settled once, lest a batch looks so by chance

    def prepare(self, lesson: Lesson) -> None:
        super().prepare(lesson)
        self.known = is_classes(lesson.output, lesson.target)

    def forward(self, lesson: Lesson) -> Tensor:
        known = is_classes(lesson.output, lesson.target) if self.known is None else self.known
        found: Tensor = (self.classes if known else self.values)(lesson)
        return found


def imitate(temperature: float = 4.0) -> TeacherLoss:
    """Follow the teacher whatever the task: ``kl`` where targets are classes, mean squared error of the outputs elsewhere.

    Targets are classes when they are integers, one for all classes of an output (which has two or more), or are probabilities
    over the output's classes.
    """
    return _Imitate(temperature)


class _WithLabels(TeacherLoss):
    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, lesson: Lesson) -> Tensor:
        return self.loss(lesson.output, lesson.target)

    def extra_repr(self) -> str:
        return told(self.loss)


def with_labels(loss: Callable[[Any, Any], Tensor]) -> TeacherLoss:
    """A loss on the labels alone, ``(output, target) -> scalar``, in the form of those that know a teacher."""
    return _WithLabels(loss)


def _divergence(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    a, b = F.log_softmax(ours / temperature, dim=1), F.log_softmax(theirs / temperature, dim=1)
    return F.kl_div(a, b, reduction="none", log_target=True).sum(1).mean() * temperature**2


def _standardized(logits: Tensor) -> Tensor:
    mean, deviation = logits.mean(1, keepdim=True), logits.std(1, keepdim=True)
    return (logits - mean) / (deviation + 1e-7)


def _class_numbers(lesson: Lesson) -> Tensor:
    target = lesson.target
    if not isinstance(target, Tensor) or target.is_floating_point() or not _one_a_prediction(target, lesson.output):
        raise DataError(
            "dkd needs class numbers as labels, one a prediction; without labels, or with mixed or smoothed ones, use kl "
            "or dist"
        )
    return target.long()


def _yes_and_no(logits: Tensor, own: Tensor) -> Tensor:
    """Logarithms of the probabilities of the class itself and of all others together, ``(N, 2, ...)``."""
    whole = torch.logsumexp(logits, 1)
    low = torch.finfo(logits.dtype).min
    yes = torch.logsumexp(logits.masked_fill(~own, low), 1) - whole
    no = torch.logsumexp(logits.masked_fill(own, low), 1) - whole
    return torch.stack([yes, no], 1)


def _one_a_prediction(target: Tensor, output: Tensor) -> bool:
    return target.shape == (output.shape[0], *output.shape[2:])


def is_classes(output: Any, target: Any) -> bool:
    """Whether targets are classes (see ``imitate``) of an output that gives their logits."""
    if not isinstance(target, Tensor) or not isinstance(output, Tensor) or output.ndim < 2 or output.shape[1] < 2:
        return False  # of a single class, probabilities would teach nothing
    if not target.is_floating_point():
        return _one_a_prediction(target, output)
    return output.shape == target.shape and bool((target >= 0).all() and ((target.sum(1) - 1).abs() < 1e-3).all())
