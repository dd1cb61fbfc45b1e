"""Losses on what is inside: maps ``(N, C, positions ...)`` or vectors ``(N, C)`` of one module each of student and teacher.

All leave the labels alone. Widths and sizes of the two may differ: where widths must agree, a projector is learned; where
positions must, the larger map is averaged down to the smaller.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.distill.lesson import Lesson, Tap, TeacherLoss
from penjing.distill.settings import count, not_negative, positive
from penjing.distill.vectors import angles, distances, unit, wide
from penjing.errors import ModelError

POOLS: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class _OnFeatures(TeacherLoss):
    """What all have in common: the two modules, and their features in float32, also under autocast."""

    alike = True  # both must be maps, or both vectors

    def __init__(self, student: str, teacher: str) -> None:
        super().__init__()
        self.tap = Tap(student, teacher)
        self.taps: tuple[Tap, ...] = (self.tap,)

    def pair(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's feature."""
        return wide(lesson.features[self.tap.student]), wide(lesson.shown[self.tap.teacher])

    def prepare(self, lesson: Lesson) -> None:
        ours, theirs = self.pair(lesson)
        if min(ours.ndim, theirs.ndim) < 2 or len(ours) != len(theirs) or (self.alike and ours.ndim != theirs.ndim):
            raise ModelError(
                f"{self.tap.student!r} of the student gives shape {tuple(ours.shape)} and {self.tap.teacher!r} of the teacher "
                f"{tuple(theirs.shape)}; name two modules that both give maps, or both give vectors"
            )

    def forward(self, lesson: Lesson) -> Tensor:
        ours, theirs = self.pair(lesson)
        with torch.autocast(ours.device.type, enabled=False):
            return self.compare(ours, theirs)

    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """The loss of the two features."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"student={self.tap.student!r}, teacher={self.tap.teacher!r}"


class _Projected(_OnFeatures):
    """With a learned map from the student's channels to the teacher's."""

    def __init__(self, student: str, teacher: str, *, always: bool) -> None:
        super().__init__(student, teacher)
        self.always = always
        self.projector: nn.Module = nn.Identity()

    def prepare(self, lesson: Lesson) -> None:
        super().prepare(lesson)
        ours, theirs = self.pair(lesson)
        if self.always or ours.shape[1] != theirs.shape[1]:
            self.projector = _linear(ours, theirs.shape[1])

    def projected(self, ours: Tensor) -> Tensor:
        """``(N, C, ...)`` to ``(N, teacher's C, ...)``, a convolution of one position."""
        found: Tensor = self.projector(ours.movedim(1, -1)).movedim(-1, 1)
        return found


class _Hint(_Projected):
    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        ours, theirs = _same_size(ours, theirs)
        return F.mse_loss(self.projected(ours), theirs)


def hint(student: str, teacher: str) -> TeacherLoss:
    """Squared difference of the teacher's feature and a learned projection of the student's (FitNets, arXiv:1412.6550)."""
    return _Hint(student, teacher, always=True)


def mimic(student: str, teacher: str) -> TeacherLoss:
    """Squared difference of the maps before they are pooled for the head (MiR, Wang et al. 2022, arXiv:2201.02620).

    The modules to name are those that ``graph.taps.last_map`` finds. A projector is learned only where the widths differ. Far
    better conditioned than logits where there are few images.
    """
    return _Hint(student, teacher, always=False)


class _Attention(_OnFeatures):
    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        ours, theirs = _same_size(ours, theirs)
        return (_where(ours) - _where(theirs)).square().mean()

    def prepare(self, lesson: Lesson) -> None:
        super().prepare(lesson)
        if self.pair(lesson)[0].ndim < 3:
            raise ModelError(f"{self.tap.student!r} gives vectors, which have no places to attend to; name a module with maps")


def attention(student: str, teacher: str) -> TeacherLoss:
    """Mean squared difference of where the energy is: the channels' mean square at each position, normalized.

    Zagoruyko & Komodakis 2017, arXiv:1612.03928, with powers of 2.
    """
    return _Attention(student, teacher)


class _Similarity(_OnFeatures):
    alike = False

    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return (_likeness(ours.flatten(1)) - _likeness(theirs.flatten(1))).square().mean()


def similarity(student: str, teacher: str) -> TeacherLoss:
    """Which samples of a batch look alike to the teacher shall to the student (Tung & Mori 2019, arXiv:1907.09682)."""
    return _Similarity(student, teacher)


class _Relations(_OnFeatures):
    alike = False

    def __init__(self, student: str, teacher: str, distance: float, angle: float) -> None:
        super().__init__(student, teacher)
        self.distance = not_negative("relations", "distance", distance)
        self.angle = not_negative("relations", "angle", angle)

    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        ours, theirs = ours.flatten(1), theirs.flatten(1)
        far = F.smooth_l1_loss(distances(ours), distances(theirs))
        turned = F.smooth_l1_loss(angles(ours), angles(theirs))
        return self.distance * far + self.angle * turned

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, distance={self.distance}, angle={self.angle}"


def relations(student: str, teacher: str, distance: float = 25.0, angle: float = 50.0) -> TeacherLoss:
    """Distances between the samples of a batch, over their mean, and angles of all triples (RKD, arXiv:1904.05068).

    Memory grows with the cube of the batch.

    Args:
        distance, angle: Weights of the two parts; the defaults are the paper's.
    """
    return _Relations(student, teacher, distance, angle)


class _Contrastive(_OnFeatures):
    alike = False

    def __init__(self, student: str, teacher: str, temperature: float, dimension: int) -> None:
        super().__init__(student, teacher)
        self.temperature = positive("contrastive", "temperature", temperature, 0.1)
        self.dimension = count("contrastive", "dimension", dimension, 128)
        self.ours: nn.Module = nn.Identity()
        self.theirs: nn.Module = nn.Identity()

    def prepare(self, lesson: Lesson) -> None:
        super().prepare(lesson)
        ours, theirs = self.pair(lesson)
        self.ours, self.theirs = _linear(ours, self.dimension), _linear(theirs, self.dimension)

    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        ours, theirs = (f if f.ndim == 2 else f.flatten(2).mean(2) for f in (ours, theirs))
        a, b = unit(self.ours(ours)), unit(self.theirs(theirs))
        like = a @ b.T / self.temperature
        right = torch.arange(len(like), device=like.device)
        return (F.cross_entropy(like, right) + F.cross_entropy(like.T, right)) / 2

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}, dimension={self.dimension}"


def contrastive(student: str, teacher: str, temperature: float = 0.1, dimension: int = 128) -> TeacherLoss:
    """Tell, among the samples of a batch, which of the teacher's features belongs to a student's, and the reverse.

    After CRD (Tian et al. 2020, arXiv:1910.10699), with both features projected to ``dimension`` by learned maps. The paper
    draws thousands of negatives from a memory of the whole training set; here they are the other samples of the batch, so
    nothing depends on how the data are numbered, and large batches help.
    """
    return _Contrastive(student, teacher, temperature, dimension)


def _linear(feature: Tensor, width: int) -> nn.Linear:
    return nn.Linear(feature.shape[1], width, device=feature.device, dtype=feature.dtype)


def _same_size(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Both at the smaller of their sizes, position by position averaged."""
    if ours.ndim == 2 or ours.shape[2:] == theirs.shape[2:]:
        return ours, theirs
    size = tuple(min(pair) for pair in zip(ours.shape[2:], theirs.shape[2:], strict=True))
    pool = POOLS[len(size)]
    return pool(ours, size), pool(theirs, size)


def _where(feature: Tensor) -> Tensor:
    return unit(feature.square().mean(1).flatten(1))


def _likeness(feature: Tensor) -> Tensor:
    return unit(feature @ feature.T)
