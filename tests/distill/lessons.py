"""Lessons at random, as a training step would hand them to a loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from penjing.distill import Lesson

STUDENT, TEACHER = "body.ours", "body.theirs"  # paths of the modules that are compared


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def on_outputs(output: Tensor, taught: Tensor, target: Tensor | None = None, done: float = 0.0) -> Lesson:
    return Lesson(output, taught, target, done=done)


def on_features(ours: Tensor, theirs: Tensor) -> Lesson:
    """Outputs play no part."""
    return Lesson(torch.zeros(len(ours), 2), torch.zeros(len(ours), 2), features={STUDENT: ours}, shown={TEACHER: theirs})


def whole(seed: int, batch: int = 4, ours: Sequence[int] = (3, 4, 4), theirs: Sequence[int] = (5, 4, 4)) -> Lesson:
    """Logits of 6 classes, labels and features."""
    return Lesson(
        3 * drawn(seed, batch, 6),
        3 * drawn(seed + 1, batch, 6),
        torch.arange(batch) % 6,
        {STUDENT: drawn(seed + 2, batch, *ours)},
        {TEACHER: drawn(seed + 3, batch, *theirs)},
    )
