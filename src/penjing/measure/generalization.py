"""What one number hides: classes given up, predictions that flipped, confidence, and accuracy on images a camera spoiled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from penjing.errors import DataError
from penjing.measure.classes import (
    Calibration,
    ClassScore,
    Flips,
    Forgotten,
    calibration,
    calibration_notes,
    classified,
    flip_notes,
    flips,
    forgotten,
    scores_of_classes,
)
from penjing.measure.corruptions import CORRUPTIONS, Corruption
from penjing.measure.paired import paired
from penjing.progress import Advance, Progress, silent
from penjing.task import Batch, Batches, Metric, NoScore, Run, Score, as_tuple, scored

CLASS_TIMES, CLASS_SHARE = 3, 0.02  # a class may lose so many times what is allowed, or this share, whichever is more
CORRUPTED_TIMES = 2  # times what is allowed that images may lose by being corrupted, beyond what clean ones lose
CORRUPTED_ERROR = 0.05  # of saying that they lose more when they do not


@dataclass(frozen=True)
class CorruptionScore:
    """The metric of both networks on the same corrupted samples."""

    name: str
    severity: int
    before: float
    after: float


@dataclass(frozen=True)
class Generalization:
    """Two networks beyond their one number. Only ``corruptions`` is there for tasks that are not classification.

    Attributes:
        samples: How many were looked at.
        per_class: Classes that occur, in order.
        corruptions: Every corruption at every severity.
        warnings: Sentences; none where nothing stands out.
        forgotten: What the second network is most sure of among what it newly gets wrong, at most 12.
    """

    samples: int
    per_class: tuple[ClassScore, ...]
    flips: Flips | None
    calibration: Calibration | None
    corruptions: tuple[CorruptionScore, ...]
    warnings: tuple[str, ...]
    forgotten: tuple[Forgotten, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values; what is not there is ``None`` or empty."""
        return {
            "samples": self.samples,
            "per_class": [{("class" if k == "label" else k): v for k, v in vars(x).items()} for x in self.per_class],
            "flips": dict(vars(self.flips)) if self.flips else None,
            "calibration": dict(vars(self.calibration)) if self.calibration else None,
            "corruptions": [dict(vars(x)) for x in self.corruptions],
            "warnings": list(self.warnings),
            "forgotten": [dict(vars(x)) for x in self.forgotten],
        }


def generalization(
    before: Run,
    after: Run,
    batches: Batches,
    metric: Metric,
    *,
    allowed: float,
    severities: Sequence[int] = (1, 3, 5),
    samples: int = 2000,
    seed: int = 0,
    progress: Progress = silent,
) -> Generalization:
    """Compare two networks class by class, prediction by prediction, and on corrupted images.

    Both run once on the clean samples and once for each corruption and severity; of several inputs the first is corrupted.
    Classes, flips and calibration need one output ``(N, K)`` of logits or shares and integer targets ``(N,)``.

    Args:
        batches: Whole batches are taken while ``samples`` lasts, at least one (files may have a fixed batch); all, where the
            metric fails on these.
        allowed: How much of the metric may be lost; thresholds follow from it.
        severities: From 1 to 5.
        seed: Of the corruptions.

    Raises:
        DataError: There is no batch, the metric fails on the samples, or its scores of the two networks cannot be compared.
        RecipeError: A severity is not between 1 and 5.
    """
    with progress("generalization", 1 + len(CORRUPTIONS) * len(severities)) as advance:
        tapes, clean, kept = _on_clean((before, after), batches, samples, metric)
        advance("clean images")
        try:
            rows, scores = _on_corrupted((before, after), kept, metric, severities, seed, advance)
            notes = _corruption_notes(clean, scores, allowed, seed)
        except _NotImages as e:
            rows, notes = [], [f"Corrupted images were not tried, for the task's first inputs are no float images: {e}."]
    found = classified(tapes[0].outputs, tapes[1].outputs, [target for _, target in kept])
    if found is None:
        return Generalization(clean[0].samples, (), None, None, tuple(rows), tuple(notes), ())
    is_share = abs(found.right(found.before).mean() - clean[0].value) < 1e-6  # else ``allowed`` is in another unit
    per_class, class_notes = scores_of_classes(found, max(CLASS_TIMES * allowed, CLASS_SHARE) if is_share else CLASS_SHARE)
    flipped, calibrated = flips(found), calibration(found)
    return Generalization(
        clean[0].samples, per_class, flipped, calibrated, tuple(rows),
        (*class_notes, *flip_notes(flipped), *calibration_notes(calibrated), *notes), forgotten(found),
    )  # fmt: skip


class _NotImages(DataError):
    """The corruptions do not take the first inputs."""


class _Tape:
    """A network that keeps the first of its outputs as it is called."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.outputs: list[Tensor | None] = []

    def __call__(self, *inputs: Tensor) -> Any:
        output = self.run(*inputs)
        fits = isinstance(output, Tensor | np.ndarray) and output.ndim == 2
        self.outputs.append(torch.as_tensor(output).detach().to("cpu", torch.float64, copy=True) if fits else None)
        return output


def _kept(batches: Batches, samples: int | None) -> list[Batch]:
    kept: list[Batch] = []
    total = 0
    for inputs, target in batches:
        total += len(as_tuple(inputs)[0])
        if kept and samples is not None and total > samples:
            break
        kept.append((inputs, target))
    if not kept:
        raise DataError("there is no batch to compare the networks on; give at least one (inputs, target) pair")
    return kept


def _on_clean(
    runs: tuple[Run, Run], batches: Batches, samples: int, metric: Metric
) -> tuple[tuple["_Tape", "_Tape"], tuple[Score, Score], list[Batch]]:
    """Both networks on the batches that are kept: all of them where the metric does not take fewer."""
    for most in (samples, None):
        kept, tapes = _kept(batches, most), (_Tape(runs[0]), _Tape(runs[1]))
        try:
            found = scored(metric, tapes[0], kept), scored(metric, tapes[1], kept)
        except NoScore:  # one that needs every class, perhaps, of samples that are sorted by class
            if most is None:
                raise
        else:
            break
    return tapes, found, kept


def _corrupted(kept: Sequence[Batch], corrupt: Corruption, severity: int, generator: Generator) -> list[Batch]:
    """The batches with their first input corrupted."""
    found: list[Batch] = []
    for inputs, target in kept:
        first, *rest = as_tuple(inputs)
        try:
            spoiled = corrupt(first, severity, generator)
        except DataError as e:
            raise _NotImages(str(e)) from e
        found.append((spoiled if isinstance(inputs, Tensor) else (spoiled, *rest), target))
    return found


def _on_corrupted(
    runs: tuple[Run, Run], kept: Sequence[Batch], metric: Metric, severities: Sequence[int], seed: int, advance: Advance
) -> tuple[list[CorruptionScore], list[tuple[Score, Score]]]:
    rows, scores = [], []
    for k, (name, corrupt) in enumerate(CORRUPTIONS.items()):
        for severity in severities:
            # One stream for all severities of a kind: the same noise, stronger.
            spoiled = _corrupted(kept, corrupt, severity, Generator().manual_seed(seed * 1_000_003 + k))
            pair = scored(metric, runs[0], spoiled), scored(metric, runs[1], spoiled)
            rows.append(CorruptionScore(name, severity, pair[0].value, pair[1].value))
            scores.append(pair)
            advance(f"{name} {severity}")
    return rows, scores


def _corruption_notes(
    clean: tuple[Score, Score], scores: Sequence[tuple[Score, Score]], allowed: float, seed: int
) -> list[str]:
    """Whether corruption costs the second network more than the first, by more than chance."""
    if not scores:
        return []
    costs = [_cost(clean[i], [pair[i] for pair in scores]) for i in (0, 1)]
    extra = paired(costs[0], costs[1], confidence=1 - CORRUPTED_ERROR, seed=seed)
    if extra.drop <= CORRUPTED_TIMES * allowed or extra.low <= 0:
        return []
    drop = clean[0].value - clean[1].value
    return [
        f"Corrupted images lose {_number(drop + extra.drop)} of the metric on average, clean ones {_number(drop)}: "
        f"{_number(extra.drop)} more, where {_number(CORRUPTED_TIMES * allowed)} is the threshold."
    ]


def _cost(clean: Score, corrupted: Sequence[Score]) -> Score:
    """What a network gains (mostly less than nothing) from clean to corrupted samples, on average over the corruptions."""
    return Score(
        sum(s.value for s in corrupted) / len(corrupted) - clean.value,
        clean.samples,
        np.mean([s.per_sample for s in corrupted], axis=0) - clean.per_sample,
    )


def _number(value: float) -> str:
    return f"{value:.3g}"
