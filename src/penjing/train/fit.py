"""The training loop: any module, any loss, with or without a teacher; what is interrupted goes on where it stopped."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from penjing import ranks
from penjing.distill import Lesson
from penjing.errors import DataError, ModelError, PenjingError, RecipeError, TrainingError, first_line
from penjing.progress import Progress, silent
from penjing.task import Batches, Loss, Run, Task, as_a_file, as_tuple, first_batch, half_cure, in_eval, try_metric
from penjing.train.logs import Logs
from penjing.train.mixing import Mix, cutmix, mixup, soft
from penjing.train.recall import Recall
from penjing.train.rehearse import Rehearsed, is_cross_entropy, rehearse, two_of
from penjing.train.schedules import SCHEDULES
from penjing.train.settings import Training
from penjing.train.share import Shared, shared_run
from penjing.train.sparse import Sparsity
from penjing.train.state import Learner

SEEDS = 2**63  # that torch takes
EXPLODED = 1e4  # times the first loss, or times 1 where that is less


@dataclass(frozen=True)
class Epoch:
    """What one epoch was like."""

    epoch: int  # the first is 1
    loss: float  # mean over its batches
    lr: float  # at its last step
    seconds: float
    metric: float | None = None  # on ``task.search``, where it is taken


def fit(  # noqa: PLR0913 - the whole of what can be asked for, by name
    model: nn.Module,
    task: Task,
    *,
    epochs: int,
    teacher: nn.Module | None = None,
    loss: Callable[[Lesson], Tensor] | None = None,
    settings: Training | None = None,
    sparsity: Sparsity | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    checkpoint: str | Path | None = None,
    logs: str | Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Train a copy of ``model`` on ``task.train`` and return it in eval mode.

    Zeros in weights of two dimensions or more are kept (see ``Training.hold_zeros``): what ``sparsify`` cut stays cut. Not so
    those of a weight that was rounded, all of whose values lie on its grid. Norms whose scale and shift are frozen
    (``requires_grad``) stay in eval mode, with the statistics that they have; all else is in train mode.

    Started by ``torchrun`` or ``srun``, all processes train one network: each takes its part of every batch, so the global
    batch is the loader's, however many they are.

    Args:
        teacher: The network to learn from; needed by ``loss``.
        loss: One of ``pj.distill``, or any function of a ``Lesson`` that gives a scalar; without it, ``task.loss`` is used
            and no teacher.
        sparsity: How to become sparse on the way: ``GradualMagnitude``, ``GradualMovement``, ``RigL`` or ``ACDC``.
        augment: What is done to the first input of every batch, ``(N, ...)`` to ``(N, ...)``, on the device; teacher and
            student see the same. Chance must come from torch's generator.
        checkpoint: Where the state is kept, written whole after every epoch. When it is there already, training goes on
            from it, and on one CPU ends with the same weights, bit for bit, as if it had not been interrupted: chance in a
            data set is torch's, or in workers of a ``DataLoader`` any (which are started anew at every epoch), since without
            workers nobody seeds ``random`` and numpy.
        logs: A folder for ``log.csv``, one line an epoch, and, with ``penjing[tensorboard]`` installed, TensorBoard's events.
        on_epoch: Called after every epoch, for those in the checkpoint too.

    Raises:
        TrainingError: The loss is not finite or has exploded; the last checkpoint stays. Or the checkpoint belongs to
            another run.
        DataError: ``task.train`` is empty, yields what network and loss do not take, or does not give the same number of
            batches every time, or one of them has a single sample, which a batch norm cannot normalize; or the metric, where
            it is watched, gives no score.
        RecipeError: A setting is out of range, or the pattern of ``sparsity`` does not divide a layer.
        ModelError: ``sparsity`` finds no weights to cut, or fewer that are not zero than are to stay; teacher and student do
            not go together; a module that ``loss`` compares is not there.
    """
    if (teacher is None) != (loss is None):
        raise RecipeError("fit takes a teacher and a loss that knows it together, or neither")
    if epochs < 1:
        raise RecipeError(f"epochs is {epochs}; give at least 1")
    settings = settings or Training()
    steps = length(task.train)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed % SEEDS)
        batch = first_batch(task.train, "train")
        if isinstance(model, torch.jit.ScriptModule):
            raise ModelError("the model is scripted or traced, and cannot be trained; give the module that it was made from")
        try:
            told = rehearse(model, teacher, loss, batch, settings, task.loss)
        except PenjingError:
            raise
        except Exception as e:  # whatever the networks or the loss raise
            raise DataError(f"the networks or the loss do not take the first batch of task.train: {first_line(e)}") from e
        learner = Learner(model, settings, two_of(batch[0]), teacher=teacher, loss=told.loss, sparsity=sparsity)
        loop = _Loop(learner, task, epochs, steps, told, augment, Path(checkpoint) if checkpoint else None)
        if settings.watched:
            with loop.answering() as run:
                try_metric(task, run)
        loop.begin()
        with Logs(Path(logs) if logs else None) as log, progress("training", epochs * steps) as advance:
            for epoch in loop.run(advance):
                log.write([asdict(e) for e in loop.history[: epoch.epoch]])
                if on_epoch:
                    on_epoch(epoch)
    return learner.finished()


class _Loop:
    """Walks the epochs; what it must know to go on, besides the learner, is ``history``."""

    def __init__(
        self,
        learner: Learner,
        task: Task,
        epochs: int,
        steps: int,
        told: Rehearsed,
        augment: Callable[[Tensor], Tensor] | None,
        checkpoint: Path | None,
    ) -> None:
        self.learner, self.task, self.epochs, self.steps, self.told = learner, task, epochs, steps, told
        self.settings, self.augment, self.checkpoint = learner.settings, augment, checkpoint
        self.total = epochs * steps
        self.shared = Shared(task.train)
        self.loss = _on(learner.fabric.device, task.loss)
        self.recall = Recall(task.train, learner, fresh=augment is not None or told.mixes)
        self.history: list[Epoch] = []
        self.first: float | None = None  # loss of the first batch, which an exploded one is compared with

    def begin(self) -> None:
        """Take up the checkpoint, where there is one."""
        if self.checkpoint is None:
            return
        self.learner.check_kept()
        if self.checkpoint.exists():
            held = self.learner.load(self.checkpoint, self._length())
            self.history, self.first = [Epoch(**e) for e in held["history"]], held["first"]

    def _length(self) -> dict[str, int]:
        """What a checkpoint must agree in besides."""
        return {"epochs": self.epochs, "batches": self.steps}

    def run(self, advance: Callable[[str], None]) -> Iterator[Epoch]:
        """Epoch by epoch, those of the checkpoint first; each is in the checkpoint when it is given."""
        for past in list(self.history):
            for _ in range(self.steps):
                advance("already done")
            yield past
        for epoch in range(len(self.history), self.epochs):
            if self._stopped():
                return
            self.history.append(self._epoch(epoch, advance))
            if self.settings.keep == "best" and self._since_best() == 0:
                self.learner.remember()
            if self.checkpoint is not None:
                told = {**self._length(), "history": [asdict(e) for e in self.history], "first": self.first}
                self.learner.save(self.checkpoint, told)
            yield self.history[-1]

    def _epoch(self, epoch: int, advance: Callable[[str], None]) -> Epoch:
        began, total, lr, count = time.perf_counter(), 0.0, 0.0, 0
        for batch, weight, whole in self._batches(epoch):
            number, left = epoch * self.steps + count, self.steps - count
            count += 1
            if not left:
                break
            group = self.settings.accumulate
            last = count % group == 0 or left == 1
            together = min(group, self.steps - (count - 1) // group * group)  # batches in this step
            with ranks.apart() if whole else nullcontext():  # all do the same as one would
                value = self._learn(batch, number, weight / together)
            value = ranks.mean(weight * value)
            self._check(value, epoch, count)
            if last:
                lr = self.settings.lr * SCHEDULES[self.settings.schedule](number, self.total, self.settings.warmup)
                self.learner.step(lr, *self._updates(epoch, count))
            total += value
            advance(f"epoch {epoch + 1}/{self.epochs}  loss {total / count:.4f}{self._beside()}")
        if count != self.steps:
            yielded = f"{count} batches" if count < self.steps else f"more than {self.steps} batches"
            raise DataError(f"task.train yielded {yielded} in epoch {epoch + 1}, not {self.steps} as it said; {_FRESH}")
        return Epoch(epoch + 1, total / self.steps, lr, time.perf_counter() - began, self._metric())

    def _updates(self, epoch: int, count: int) -> tuple[int, int]:
        """Which step the last of ``count`` batches of an epoch makes, from 0, and of how many."""
        group = self.settings.accumulate
        each = -(-self.steps // group)
        return epoch * each + (count - 1) // group, self.epochs * each

    def _batches(self, epoch: int) -> Iterator[tuple[Any, float, bool]]:
        """The batches of an epoch.

        All chance follows from the number of the epoch, so that a resumed run sees what an uninterrupted one would have
        seen. The loader has a stream of chance of its own, since every process must see the same batches.
        """
        seed = (self.settings.seed * 1_000_003 + epoch) % SEEDS
        for source in _sources(self.task.train):
            if set_epoch := getattr(source, "set_epoch", None):
                set_epoch(epoch)
            if isinstance(generator := getattr(source, "generator", None), torch.Generator):
                generator.manual_seed(seed)
        torch.manual_seed(seed)
        walk = iter(self.shared)
        while (found := next(walk, None)) is not None:
            state = torch.get_rng_state()
            yield found
            torch.set_rng_state(state)

    def _learn(self, batch: Any, number: int, share: float) -> float:
        """Add one batch to the gradients; gives its loss."""
        torch.manual_seed(((self.settings.seed * 1_000_003 + number) * 1009 + ranks.rank() + 1) % SEEDS)
        try:
            value = self._value(batch, number)
        except PenjingError:
            raise
        except Exception as e:  # whatever the network, the loss or what augments raises
            if "more than 1 value per channel" in str(e):
                raise DataError(
                    f"batch {number % self.steps + 1} of task.train has a single sample, which a batch norm cannot normalize; "
                    "leave it out (DataLoader(..., drop_last=True)) or take another batch size"
                ) from e
            if self.first is not None:
                raise
            cure = half_cure(self.learner.model)
            raise DataError(f"network and loss do not take {self._told(batch)}: {first_line(e)}{cure}") from e
        if not isinstance(value, Tensor) or value.ndim:
            raise DataError(f"the loss gives {type(value).__name__}, not a scalar tensor; take the mean over the samples")
        self.learner.backward(value * share)
        return float(value.detach())

    def _value(self, batch: Any, number: int) -> Tensor:
        """The loss of a batch as it is trained on."""
        inputs, target = self.learner.fabric.to_device((as_tuple(batch[0]), batch[1]))
        if self.augment is not None:
            inputs = (self.augment(inputs[0]), *inputs[1:])
        inputs, target = self._mixed(inputs, target)
        said = self.recall(number % self.steps, inputs)
        return self.learner.value(inputs, target, self.loss, said, number / self.total)

    @staticmethod
    def _told(batch: Any) -> str:
        parts = [(x.dtype, tuple(x.shape)) for x in tree_leaves(batch) if isinstance(x, Tensor)]
        kinds = [f"{str(dtype).removeprefix('torch.')} {shape}" for dtype, shape in parts]
        return f"the first batch of task.train, inputs and target of {', '.join(kinds)}"

    def _mixed(self, inputs: tuple[Tensor, ...], target: Any) -> tuple[tuple[Tensor, ...], Any]:
        settings = self.settings
        if self.told.classes is not None:
            target = soft(target, self.told.classes, settings.smoothing, as_a_mean=is_cross_entropy(self.task.loss))
        if not self.told.mixes:
            return inputs, target
        batch, device = inputs[0].shape[0], inputs[0].device
        mix: Mix | None = None
        if settings.cutmix and float(torch.rand(())) < settings.cutmix:
            mix = cutmix(batch, tuple(inputs[0].shape[2:]), device)
        elif settings.mixup:
            mix = mixup(batch, settings.mixup, device)
        if mix is None:
            return inputs, target
        labels = self.told.classes is not None and target.ndim == 2  # though there may be as many classes as positions
        return tuple(mix(x) for x in inputs), tree_map(partial(mix, labels=labels), target)

    def _beside(self) -> str:
        metric = self.history[-1].metric if self.history else None
        return "" if metric is None else f"  metric {metric:.4f}"

    def _check(self, value: float, epoch: int, batch: int) -> None:
        where = f"in epoch {epoch + 1}, batch {batch}"
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} {where}; try a lower lr than {self.settings.lr} or look for NaN in the data; "
                "the last checkpoint is untouched"
            )
        if self.first is None:
            self.first = value
        if abs(value) > EXPLODED * max(abs(self.first), 1.0):
            raise TrainingError(
                f"the loss has exploded from {self.first:.4g} to {value:.4g} {where}; try a lower lr than "
                f"{self.settings.lr}, a longer warm-up, or a smaller clip than {self.settings.clip}; the last checkpoint is "
                "untouched"
            )

    def _metric(self) -> float | None:
        if not self.settings.watched:
            return None
        with self.answering() as run, torch.no_grad():
            return float(self.task.metric(shared_run(run), self.task.search).value)

    @contextmanager
    def answering(self) -> Iterator[Run]:
        """The network as it is by now, as a file of it would answer; in eval mode while the block runs."""
        net = self.learner.current()
        with in_eval(net):
            yield as_a_file(self.learner.answering(net))

    def _since_best(self) -> int:
        """Epochs since the best metric; -1 where none counts yet, since the network is still to become sparser."""
        way, done = self.learner.sparse.way, [self._updates(e.epoch - 1, self.steps) for e in self.history]
        counted = [e.metric for e, at in zip(self.history, done, strict=True) if way is None or way.reached(*at)]
        metrics = [m if m is not None and not math.isnan(m) else -math.inf for m in counted]
        best = max(metrics, default=-math.inf)
        return len(metrics) - 1 - metrics.index(best) if best > -math.inf else -1

    def _stopped(self) -> bool:
        return bool(self.settings.patience and self.history and self._since_best() >= self.settings.patience)


def _on(device: torch.device, loss: Loss) -> Loss:
    """The loss where the network is: one that has tensors of its own, such as weights of classes, brings them along."""
    return copy.deepcopy(loss).to(device) if isinstance(loss, nn.Module) else loss


_FRESH = "it must give a fresh iterator of one length every time, as a list or a DataLoader does"


def _sources(train: Batches) -> Iterator[Any]:
    """What may have chance of its own: the loader, and of a ``DataLoader`` its samplers."""
    yield train
    for path in ("sampler", "batch_sampler", "batch_sampler.sampler"):
        with suppress(AttributeError):
            yield attrgetter(path)(train)


def length(train: Batches) -> int:
    """Batches in an epoch; a loader without ``len`` is walked once to count.

    Raises:
        DataError: There is none.
    """
    if not isinstance(train, Iterable):
        raise DataError(f"task.train is {type(train).__name__}; give something that yields (inputs, target) pairs")
    try:
        n = len(train)  # type: ignore[arg-type]
    except TypeError:  # among them a DataLoader of a stream, which has ``__len__`` but no length
        n = sum(1 for _ in train)
    if n == 0:
        raise DataError("task.train is empty: it yields no batch; give at least one (inputs, target) pair")
    return n
