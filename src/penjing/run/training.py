"""The training that a run may spend, and spending it: every candidate learns from the original."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from penjing.distill import TeacherLoss, imitate, weighted, with_labels
from penjing.measure import machine
from penjing.run.job import Job
from penjing.search import Candidate
from penjing.train import Epoch, fit, portioned, seconds_a_step
from penjing.train.fit import length

EPOCHS = 12.0  # of training in all, where neither epochs nor minutes are given


class Trainer:
    """Trains candidates, and keeps count of what is left.

    Attributes:
        left: Share of the whole training that is left.
    """

    def __init__(self, job: Job) -> None:
        self.job, settings = job, job.settings
        self.loss: TeacherLoss = weighted(
            (1 - settings.labels, imitate(settings.temperature)), (settings.labels, with_labels(job.task.loss))
        )
        self.left = 1.0
        epochs = settings.epochs if settings.epochs is not None or settings.minutes is not None else EPOCHS
        self.most = None if epochs is None else round(epochs * length(job.task.train))  # steps

    @property
    def trains(self) -> bool:
        """Whether there is any training to spend."""
        return self.most != 0 and self.job.settings.minutes != 0

    def steps(self, model: nn.Module, key: str, trials: int) -> int:
        """How many steps a candidate gets: an equal part of what is left, less what is reserved for training in integers.

        Decided once, and kept.
        """
        held = self.job.kept(f"{key}-steps")
        if held is None:
            minutes = self.job.settings.minutes
            share = self.left / trials
            possible = [] if self.most is None else [self.most * share]
            if minutes is not None:
                possible.append(60 * minutes * share / self._pace(model, key))
            every = min(possible)
            reserved = int(self.job.settings.qat * every)
            held = {"steps": max(1, int(every) - reserved), "reserved": reserved, "share": share, "in integers": False}
            self.job.keep(f"{key}-steps", held)
        self._spend(held)
        return int(held["steps"])

    def take_reserve(self, key: str) -> int:
        """How many steps were kept back for a candidate's training in integers; now they are taken."""
        held = dict(self.job.kept(f"{key}-steps") or {})
        if held["reserved"] and not held["in integers"]:  # else it was counted when the run went on
            held["in integers"] = True
            self.job.keep(f"{key}-steps", held)
            self.left = max(0.0, self.left - self.job.settings.qat * held["share"])
        return int(held["reserved"])

    def recount(self, key: str) -> None:
        """Count what an earlier process of this run has spent on a candidate."""
        self._spend(self.job.kept(f"{key}-steps") or {})

    def _spend(self, held: Mapping[str, Any]) -> None:
        used = 1.0 if held["in integers"] else 1 - self.job.settings.qat
        self.left = max(0.0, self.left - used * held["share"])

    def train(self, model: nn.Module, key: str, name: str, steps: int, *, taught: bool = True) -> nn.Module:
        """Train with about so many steps; what was begun goes on.

        Args:
            taught: By the original; else from the labels alone.
        """
        train, epochs = portioned(self.job.task.train, steps)
        return fit(
            model,
            replace(self.job.task, train=train),
            epochs=epochs,
            teacher=self.job.model if taught else None,
            loss=self.loss if taught else None,
            settings=self.job.settings.training,
            checkpoint=self.job.stages / f"{key}-training.safetensors",
            on_epoch=self._noted(name),
            progress=self.job.progress,
        )

    def control(self, candidate: Candidate) -> nn.Module:
        """The original, trained on with labels for as many steps as the candidate: what training alone gives."""
        return self.train(self.job.model, f"control-{candidate.steps}", "control", candidate.steps, taught=False)

    def _noted(self, name: str) -> Callable[[Epoch], None]:
        def note(epoch: Epoch) -> None:
            row = asdict(epoch)
            self.job.log.add("training", {"run": name, **{k: row[k] for k in ("epoch", "loss", "lr", "seconds")}})

        return note

    def _pace(self, model: nn.Module, key: str) -> float:
        """Seconds a step; measured once on this machine for the same candidate of the same run."""
        here = machine()
        shelf = {
            "what": "seconds a training step",
            "cpu": here["cpu"],
            "torch": here["torch"],
            "threads": torch.get_num_threads(),
        }
        name = f"{self.job.identity} {key}"
        known = self.job.ledger.read(shelf)
        if name not in known or self.job.settings.fresh:
            seconds = seconds_a_step(
                model, self.job.task, teacher=self.job.model, loss=self.loss, settings=self.job.settings.training
            )
            known = self.job.ledger.write(shelf, {name: seconds}, fresh=self.job.settings.fresh)
        return float(known[name])
