"""Three steps from a large network to a small one: train the large one, pre-train the small one from it, fine-tune.

Each step leaves a file, goes on where it was interrupted, and is not done again when its file is there.
"""

import copy
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penjing import ranks
from penjing.distill import Lesson, as_teacher_loss, imitate
from penjing.errors import RecipeError, TrainingError
from penjing.files import alone, digest_of, finite, read_tensors, remove_parts, write_json, write_tensors
from penjing.progress import Progress, silent
from penjing.task import Batches, Score, Task, as_a_file, check_task, first_batch, try_metric
from penjing.train.fit import Epoch, fit
from penjing.train.settings import Training
from penjing.train.tensors import state_of

Say = Callable[[str], None]  # what is being done, in words


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """Settings of the three steps; a step of 0 epochs is left out."""

    teacher_epochs: int = 0  # 0: it is trained already
    pretrain_epochs: int = 10
    finetune_epochs: int = 2
    teacher: Training = field(default_factory=lambda: Training(lr=0.1, keep="best"))
    pretrain: Training = field(default_factory=lambda: Training(lr=0.1))
    finetune: Training = field(default_factory=lambda: Training(lr=0.01, keep="best"))
    loss: Callable[[Lesson], Tensor] = field(default_factory=imitate)  # of pre-training
    finetune_loss: Callable[[Lesson], Tensor] | None = None  # that knows the teacher; without it, the task's own

    def __post_init__(self) -> None:
        for name in ("teacher_epochs", "pretrain_epochs", "finetune_epochs"):
            if getattr(self, name) < 0:
                raise RecipeError(f"lessons.{name} is {getattr(self, name)}; give 0, to leave the step out, or more")
        if not self.pretrain_epochs + self.finetune_epochs:
            raise RecipeError("lessons has no epochs for the student; give pretrain_epochs or finetune_epochs")


@dataclass(frozen=True)
class Step:
    """What one step gave."""

    name: str
    file: Path | None  # None where nothing was trained
    score: Score  # on ``confirm`` of the data that the step is for
    epochs: tuple[Epoch, ...]
    was_there: bool  # its file was, so nothing was trained


@dataclass(frozen=True)
class Taught:
    """The networks at the end, and what each step gave."""

    teacher: nn.Module
    student: nn.Module
    steps: tuple[Step, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """The steps as JSON values; None where a metric gave no number."""
        rows = [
            {
                "step": s.name,
                "file": s.file.name if s.file else None,
                "score": s.score.value,
                "samples": s.score.samples,
                "epochs": [asdict(e) for e in s.epochs],
            }
            for s in self.steps
        ]
        return [finite(row) for row in rows]


def teach(
    teacher: nn.Module,
    student: nn.Module | Callable[[nn.Module], nn.Module],
    task: Task,
    out: str | Path,
    *,
    target: Task | None = None,
    lessons: Lessons | None = None,
    say: Say = lambda _words: None,
    progress: Progress = silent,
) -> Taught:
    """Train ``teacher`` on ``task``, pre-train ``student`` from it, fine-tune the student on ``target``.

    Pre-training needs no labels with its default loss, which follows the teacher's outputs.

    Args:
        teacher: The large network; trained already where ``lessons.teacher_epochs`` is 0.
        student: The small one: any module with the same outputs; or a function that makes it of the teacher, which is called
            once with that as it is given, to see whether all goes together, and then with the trained one.
        out: A folder for ``teacher.safetensors``, ``pretrained.safetensors``, ``student.safetensors``, their checkpoints and
            logs, and ``distill.json``. What is there already is taken up.
        target: The data to fine-tune on; ``task`` without it.

    Returns:
        Both networks, in eval mode, and the score of each step on ``confirm``.

    Raises:
        TrainingError: A file in ``out`` is of another run; or as ``fit``.
        RecipeError: Another process is at work in ``out``; or as ``fit``.
        DataError, ModelError: As ``fit``.
    """
    ranks.join()
    lessons, target = lessons or Lessons(), target or task
    teacher = copy.deepcopy(teacher)
    small = copy.deepcopy(student) if isinstance(student, nn.Module) else student(teacher)
    check_task(task, teacher, labels=bool(lessons.teacher_epochs))
    check_task(task, small, labels=False)
    check_task(target, small, labels=bool(lessons.finetune_epochs) and lessons.finetune_loss is None)
    for each, net in ((task, teacher), (task, small), (target, small)):
        try_metric(each, net)
    out = Path(out)
    with alone(out) if ranks.is_writer() else nullcontext():
        make = (lambda _: small) if isinstance(student, nn.Module) or not lessons.teacher_epochs else student
        return _taught(teacher, make, task, target, _School(out, say, progress), lessons)


def _taught(
    teacher: nn.Module,
    make: Callable[[nn.Module], nn.Module],
    task: Task,
    target: Task,
    run: "_School",
    lessons: Lessons,
) -> Taught:
    big = run.step("teacher", teacher, task, epochs=lessons.teacher_epochs, settings=lessons.teacher)
    small = run.step(
        "pretrained", make(big), task, epochs=lessons.pretrain_epochs, settings=lessons.pretrain, teacher=big, loss=lessons.loss
    )
    last = lessons.finetune_loss
    small = run.step(
        "student", small, target, epochs=lessons.finetune_epochs, settings=lessons.finetune,
        teacher=big if last else None, loss=last,
    )  # fmt: skip
    taught = Taught(big, small, tuple(run.steps))
    if ranks.is_writer():
        write_json(run.out / "distill.json", taught.to_json())
    return taught


class _School:
    """One folder: what is there is taken up, what is not is made."""

    def __init__(self, out: Path, say: Say, progress: Progress) -> None:
        self.out, self.say, self.progress = out, say, progress
        self.steps: list[Step] = []
        self.before = ""  # what the steps so far depend on, as one digest
        if ranks.is_writer():
            remove_parts(out)
        ranks.wait()

    def step(self, name: str, model: nn.Module, task: Task, *, epochs: int, settings: Training, **learning: Any) -> nn.Module:
        """The network after this step, from its file where that is there."""
        loss = learning.get("loss")
        if loss is not None:
            learning["loss"] = loss = as_teacher_loss(loss)
        about = {"epochs": epochs, "settings": asdict(settings), "loss": repr(loss), "model": _shapes(model)}
        about["data"] = _known(task)
        # Where training starts from may be drawn anew by the caller at each start; what is not trained may not.
        told = self.before + json.dumps(about, sort_keys=True, default=str)
        self.before = digest_of({} if epochs else state_of(model), told)
        path, history = self.out / f"{name}.safetensors", list[Epoch]()
        there = path.is_file()
        if epochs and not there:
            self.say(f"{name}: {epochs} epochs")
            model = fit(
                model, task, epochs=epochs, settings=settings, checkpoint=self.out / f"{name}-checkpoint.safetensors",
                logs=self.out / "logs" / name, on_epoch=history.append, progress=self.progress, **learning,
            )  # fmt: skip
            self._write(path, model, history)
        elif there:
            self.say(f"{name}: {path} is there")
            model, history = self._read(path, model)
        score = task.metric(as_a_file(model.eval()), task.confirm)
        self.steps.append(Step(name, path if epochs or there else None, score, tuple(history), there))
        return model

    def _write(self, path: Path, model: nn.Module, history: list[Epoch]) -> None:
        if ranks.is_writer():
            about = {"run": self.before, "history": [asdict(e) for e in history]}
            write_tensors(path, model.state_dict(), about)
        ranks.wait()

    def _read(self, path: Path, model: nn.Module) -> tuple[nn.Module, list[Epoch]]:
        tensors, about = read_tensors(path)
        if about.get("run") != self.before:
            raise TrainingError(
                f"{path} belongs to another run (other settings, data, network or teacher); give another folder, or delete it "
                "to do this step again"
            )
        model.load_state_dict(tensors)
        return model, [Epoch(**e) for e in about["history"]]


def _known(task: Task) -> list[str]:
    """What a step's data is known by: the first batches, inputs and targets; nothing of those that change."""
    return [_digest(batches, name) for name, batches in (("train", task.train), ("search", task.search))]


def _digest(batches: Batches, name: str) -> str:
    found = set()
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            leaves = tree_leaves(first_batch(batches, name))
            found.add(digest_of({f"leaf {i}": x for i, x in enumerate(leaves) if isinstance(x, Tensor)}))
    return found.pop() if len(found) == 1 else ""


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state_of(model).items()}
