"""Two classifiers, sample by sample: classes given up, answers that flipped, confidence, and what only the first one knew."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penjing.measure.paired import mcnemar

ERROR = 0.05  # of calling a class worse when it is not, over all classes together (Bonferroni)
FLIPPED = 0.10  # share of predictions that may change
CALIBRATION = 0.03  # that the expected calibration error may grow by
BINS = 15  # of confidence, as Guo et al. 2017 have them
SHOWN = 12  # forgotten samples that are listed


@dataclass(frozen=True)
class ClassScore:
    """Share of a class's samples that each network gets right."""

    label: int
    samples: int
    before: float
    after: float


@dataclass(frozen=True)
class Flips:
    """Share of the predictions that changed; how many samples that made wrong (``worse``), and right (``better``)."""

    flipped: float
    worse: int
    better: int


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error of each network, between 0 and 1."""

    before: float
    after: float


@dataclass(frozen=True)
class Forgotten:
    """A sample that only the first network gets right.

    Attributes:
        index: Its place in a walk over the batches, from 0.
        label: What it is, and the first network says.
        now: What the second says instead, with a ``confidence`` between 0 and 1.
    """

    index: int
    label: int
    now: int
    confidence: float


@dataclass(frozen=True)
class Classified:
    """What both networks say of each sample: ``labels`` ``(N,)``, and the shares ``(N, K)`` they give each class."""

    labels: np.ndarray
    before: np.ndarray
    after: np.ndarray

    def right(self, shares: np.ndarray) -> np.ndarray:
        """Which samples those shares get right."""
        found: np.ndarray = shares.argmax(1) == self.labels
        return found


def classified(before: Sequence[Tensor | None], after: Sequence[Tensor | None], targets: Sequence[Any]) -> Classified | None:
    """The outputs as shares of classes; ``None`` where they, or the targets, are of another kind."""
    if not all(map(_are_labels, targets)):
        return None
    labels = torch.cat([t.detach().cpu().long() for t in targets])
    shares = []
    for outputs in (before, after):
        there = [x for x in outputs if x is not None]
        if [len(x) for x in there] != [len(t) for t in targets] or len({x.shape[1] for x in there}) != 1:
            return None
        shares.append(_shares(torch.cat(there)))
    width = shares[0].shape[1]
    if shares[1].shape[1] != width or width < 2 or labels.min() < 0 or labels.max() >= width:
        return None
    return Classified(labels.numpy(), *(x.numpy() for x in shares))


def _are_labels(target: Any) -> bool:
    whole = isinstance(target, Tensor) and not target.is_floating_point() and not target.is_complex()
    return whole and target.ndim == 1 and target.dtype != torch.bool


def _shares(outputs: Tensor) -> Tensor:
    """The softmax of logits; outputs that are shares of one already, as they are."""
    if bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < 1e-3).all()):
        return outputs
    return outputs.softmax(1)


def scores_of_classes(found: Classified, share: float) -> tuple[tuple[ClassScore, ...], list[str]]:
    """Each class, and a warning for those that lose more than ``share``, by more than chance."""
    was, now = found.right(found.before), found.right(found.after)
    labels = np.unique(found.labels)
    rows, notes = [], []
    for label in labels:
        a, b = was[found.labels == label], now[found.labels == label]
        row = ClassScore(int(label), len(a), float(a.mean()), float(b.mean()))
        rows.append(row)
        if row.before - row.after > share and mcnemar(int((a & ~b).sum()), int((b & ~a).sum())) < ERROR / len(labels):
            notes.append(
                f"Class {row.label} falls from {row.before:.1%} to {row.after:.1%} right on its {row.samples:,} samples: "
                f"{_points(row.before - row.after)} points, where {_points(share)} is the threshold."
            )
    return tuple(rows), notes


def flips(found: Classified) -> Flips:
    """How many predictions changed."""
    was, now = found.right(found.before), found.right(found.after)
    flipped = float((found.before.argmax(1) != found.after.argmax(1)).mean())
    return Flips(flipped, int((was & ~now).sum()), int((now & ~was).sum()))


def flip_notes(found: Flips) -> list[str]:
    """A warning where too many changed."""
    if found.flipped <= FLIPPED:
        return []
    return [
        f"{found.flipped:.1%} of the predictions changed, where {FLIPPED:.0%} is the threshold: "
        f"{found.worse:,} samples became wrong and {found.better:,} right."
    ]


def calibration(found: Classified) -> Calibration:
    """How well the confidence of each network fits what it gets right."""
    return Calibration(*(expected_calibration_error(x, found.labels) for x in (found.before, found.after)))


def expected_calibration_error(shares: np.ndarray, labels: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over 15 equal bins of confidence (Guo et al. 2017, arXiv:1706.04599).

    Args:
        shares: What each class is given, ``(N, K)``.
        labels: Integers, ``(N,)``.
    """
    sure, right = shares.max(1), shares.argmax(1) == labels
    bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)  # each closed above, as in the paper
    gaps = np.bincount(bins, right, BINS) - np.bincount(bins, sure, BINS)
    return float(np.abs(gaps).sum() / len(labels))


def calibration_notes(found: Calibration) -> list[str]:
    """A warning where the error grows by too much."""
    if found.after - found.before <= CALIBRATION:
        return []
    return [
        f"The expected calibration error grows from {_points(found.before)} to {_points(found.after)} points, where "
        f"{_points(CALIBRATION)} more is the threshold: confidences mean less than they did."
    ]


def forgotten(found: Classified) -> tuple[Forgotten, ...]:
    """What the second network is most sure of among what it newly gets wrong."""
    was, now, sure = found.right(found.before), found.right(found.after), found.after.max(1)
    lost = np.flatnonzero(was & ~now)
    order = lost[np.argsort(-sure[lost], kind="stable")][:SHOWN]
    said = found.after.argmax(1)
    return tuple(Forgotten(int(i), int(found.labels[i]), int(said[i]), float(sure[i])) for i in order)


def _points(share: float) -> str:
    return f"{100 * share:.1f}"
