"""The training that a run may spend, and spending it: every candidate learns from the original."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from penjing import ranks
from penjing.distill import TeacherLoss, imitate, kl, logit_mse, weighted, with_labels
from penjing.distill.logits import is_classes
from penjing.errors import TrainingError
from penjing.measure import machine
from penjing.prune.store import load
from penjing.quant import Quantizer
from penjing.run.crew import Crew
from penjing.run.job import Job
from penjing.search import Candidate
from penjing.task import as_tuple, first_batch
from penjing.train import Epoch, Training, fit, portioned, seconds_a_step
from penjing.train.fit import length

EPOCHS = 12.0  # of training in all, where neither epochs nor minutes are given


@dataclass(frozen=True)
class Start:
    """A network that training starts from: at hand in the process that made it, made again from the folder in the others.

    Attributes:
        key: What it is kept as in the folder; None for the original.
        floats: The layers that stay in float, where it is in integers.
    """

    module: nn.Module | None
    key: str | None = None
    floats: tuple[str, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"module": None, "key": self.key, "floats": self.floats}

    def here(self, job: Job) -> nn.Module:
        """The network in this process."""
        if self.module is not None:
            return self.module
        net = job.model if self.key is None else load(job.stages / f"{self.key}.safetensors", lambda: job.model).eval()
        if self.floats is None:
            return net
        with ranks.apart():
            return Quantizer(net, job.example, job.calibration, target=job.profile).module(self.floats)


@dataclass(frozen=True)
class Course:
    """One training: what its checkpoint is kept as, what it is told as, how long, and whether the original teaches."""

    key: str
    name: str
    steps: int
    taught: bool = True


def key_in_integers(key: str) -> str:
    """What a candidate's training in integers is kept as."""
    return f"{key}-integers"


def control_key(steps: int) -> str:
    """What the original's own training is kept as."""
    return f"control-{steps}"


class Trainer:
    """Trains candidates, and keeps count of what is left.

    Attributes:
        left: Share of the whole training that is left.
    """

    def __init__(self, crew: Crew) -> None:
        self.crew, self.job = crew, crew.job
        self.left = 1.0
        job, settings = crew.job, crew.job.settings
        epochs = settings.epochs if settings.epochs is not None or settings.minutes is not None else EPOCHS
        self.most = None if epochs is None else round(epochs * length(job.task.train))  # steps

    @property
    def trains(self) -> bool:
        """Whether there is any training to spend."""
        return self.most != 0 and self.job.settings.minutes != 0

    def steps(self, net: Start, key: str, trials: int) -> int:
        """How many steps a candidate gets: an equal part of what is left, less what is reserved for training in integers.

        Decided once, and kept.
        """
        held = self.job.kept(f"{key}-steps")
        if held is None:
            minutes = self.job.settings.minutes
            share = self.left / trials
            possible = [] if self.most is None else [self.most * share]
            if minutes is not None:
                possible.append(60 * minutes * share / self._pace(net, key))
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

    def train(self, net: Start, key: str, name: str, steps: int) -> nn.Module:
        """Train with about so many steps, taught by the original; what was begun goes on."""
        return self.crew.all(_trained, net, Course(key, name, steps))

    def control(self, candidate: Candidate) -> nn.Module:
        """The original, trained on with labels for as many steps as the candidate: what training alone gives.

        Raises:
            TrainingError: It fails; all processes go on.
        """
        course = Course(control_key(candidate.steps), "control", candidate.steps, taught=False)
        found = self.crew.all(_trained_or_why_not, Start(self.job.model), course)
        if isinstance(found, TrainingError):
            raise found
        return found

    def _pace(self, net: Start, key: str) -> float:
        """Seconds a step; measured once on this machine for the same candidate of the same run."""
        here = machine()
        with ranks.together():
            processes = ranks.launched()
        shelf = {
            "what": "seconds a training step",
            "cpu": here["cpu"],
            "torch": here["torch"],
            "threads": torch.get_num_threads(),
            "processes": processes,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }
        name = f"{self.job.identity} {key}"
        known = self.job.ledger.read(shelf)
        if name not in known or self.job.settings.fresh:
            seconds = self.crew.all(_seconds, net)
            known = self.job.ledger.write(shelf, {name: seconds}, fresh=self.job.settings.fresh)
        return float(known[name])


def _loss(job: Job) -> TeacherLoss:
    s = job.settings
    terms = ((1 - s.labels, _following(job)), (s.labels, with_labels(job.task.loss)))
    return weighted(*(term for term in terms if term[0]))  # what has no weight needs no labels


def _following(job: Job) -> TeacherLoss:
    """``imitate``; where training has no targets that tell what outputs are, those of the search split do."""
    temperature = job.settings.temperature
    with torch.random.fork_rng(), torch.no_grad():
        if first_batch(job.task.train, "train")[1] is not None:
            return imitate(temperature)
        inputs, target = first_batch(job.task.search, "search")
        output = copy.deepcopy(job.model).cpu().eval()(*as_tuple(inputs))
        return kl(temperature) if is_classes(output, target) else logit_mse()


def _settings(job: Job, *, in_integers: bool) -> Training:
    """How the loop trains: weights swing between integers only where there are some."""
    given = job.settings.training
    return replace(given, seed=given.seed + job.settings.seed, freezing=given.freezing if in_integers else None)


def _trained(crew: Crew, net: Start, course: Course) -> nn.Module:
    job = crew.job
    train, epochs = portioned(job.task.train, course.steps)

    def note(epoch: Epoch) -> None:
        row = asdict(epoch)
        job.log.add(
            "training", {"run": course.name, "key": course.key, **{k: row[k] for k in ("epoch", "loss", "lr", "seconds")}}
        )

    return fit(
        net.here(job),
        replace(job.task, train=train),
        epochs=epochs,
        teacher=job.model if course.taught else None,
        loss=_loss(job) if course.taught else None,
        settings=_settings(job, in_integers=net.floats is not None),
        checkpoint=job.stages / f"{course.key}-training.safetensors",
        on_epoch=note,
        progress=job.progress,
    )


def _trained_or_why_not(crew: Crew, net: Start, course: Course) -> nn.Module | TrainingError:
    """A training that may fail: it does so in all processes at once, and those that follow are needed afterwards."""
    try:
        return _trained(crew, net, course)
    except TrainingError as e:
        return e


def _seconds(crew: Crew, net: Start) -> float:
    job = crew.job
    return seconds_a_step(
        net.here(job), job.task, teacher=job.model, loss=_loss(job), settings=_settings(job, in_integers=False)
    )
