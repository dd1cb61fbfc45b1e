"""Training by steps and by minutes: how many batches make an epoch, and how long one takes here."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penjing.distill import TeacherLoss
from penjing.progress import Advance
from penjing.task import Batches, Task
from penjing.train.fit import fit, length
from penjing.train.settings import Training
from penjing.train.share import with_new_workers

REHEARSED = 6  # batches to time a step by; the first two are warming up


class Portion:
    """The first ``batches`` of every walk over a loader; all else is the loader's own.

    Unless the order is a new one at every walk, each goes on where the one before it stopped, so that all is seen in turn.
    """

    fixed = False  # the batches of a walk are not those of another

    def __init__(self, train: Batches, batches: int) -> None:
        self.train, self.batches, self.epoch = with_new_workers(train), batches, 0
        self.whole = length(train) if _is_fixed(train) else None

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        first = self.epoch * self.batches % self.whole if self.whole else 0
        return islice(chain.from_iterable(repeat(self.train)), first, first + self.batches)

    def set_epoch(self, epoch: int) -> None:
        """Say which walk comes next, from 0."""
        self.epoch = epoch
        if inner := getattr(self.train, "set_epoch", None):
            inner(epoch)

    def __getattr__(self, name: str) -> Any:
        if "train" not in self.__dict__:  # not made yet, as while it is copied
            raise AttributeError(name)
        return getattr(self.__dict__["train"], name)


def _is_fixed(train: Batches) -> bool:
    """Whether every walk over a loader comes in the same order, as far as it says or its first batch shows."""
    told = getattr(train, "fixed", None)
    if told is not None or isinstance(train, list | tuple):
        return told is None or bool(told)
    if hasattr(train, "set_epoch"):
        return False
    walks: list[list[Tensor]] = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(len(walks))  # whatever is drawn comes out otherwise
            batch = next(iter(train), ())
            rest = batch[1:] if isinstance(batch, tuple | list) else ()  # targets, which augmentation leaves as they are
            targets = [y for y in tree_leaves(rest) if isinstance(y, Tensor)]
            walks.append(targets or [x for x in tree_leaves(batch) if isinstance(x, Tensor)])
    return len(walks[0]) == len(walks[1]) and all(map(torch.equal, *walks))


def portioned(train: Batches, steps: int) -> tuple[Batches, int]:
    """A loader and a number of epochs that together make about ``steps`` steps, at least one.

    Whole epochs where it comes out so; else each is cut short alike, so that the data is walked as evenly as can be.
    """
    whole = length(train)
    epochs = max(1, -(-steps // whole))
    batches = max(1, round(steps / epochs))
    return (train if batches >= whole else Portion(train, batches)), epochs


def seconds_a_step(
    model: nn.Module, task: Task, *, teacher: nn.Module | None, loss: TeacherLoss | None, settings: Training
) -> float:
    """How long one step of ``fit`` takes on this machine: the median of a few."""
    stamps: list[float] = []

    @contextmanager
    def stamped(label: str, total: int) -> Iterator[Advance]:  # noqa: ARG001 - the signature is the protocol's
        yield lambda _note: stamps.append(time.perf_counter())

    train = Portion(task.train, min(REHEARSED, length(task.train)))
    plain = replace(settings, watch=False, patience=0, keep="last")
    began = time.perf_counter()
    fit(model, replace(task, train=train), epochs=1, teacher=teacher, loss=loss, settings=plain, progress=stamped)
    steps = [b - a for a, b in zip([began, *stamps], stamps, strict=False)]
    return statistics.median(steps[2:] or steps)
