"""The training loop: any module, any loss, with or without a teacher; what is interrupted goes on where it stopped."""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penjing.distill import TeacherLoss
from penjing.errors import DataError, RecipeError, TrainingError
from penjing.files import read_tensors, write_tensors
from penjing.progress import Progress, silent
from penjing.quant.learned import rounded_weights, trained_steps
from penjing.task import Task, as_tuple
from penjing.train.freeze import FreezeRun, Freezing
from penjing.train.mixing import mixed
from penjing.train.sparse import SparseRun, Sparsity, describe

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of the loop; stochastic gradient descent with Nesterov momentum, linear warm-up and cosine decay."""

    lr: float = 0.05  # at the peak
    momentum: float = 0.9
    weight_decay: float = 5e-4  # of weights; biases and norms have none
    warmup: float = 0.1  # share of all steps
    precision: str = "auto"  # "32-true", "bf16-mixed" (Lightning Fabric's names), or bf16 where the device computes in it
    clip: float = 5.0  # largest norm of the whole gradient
    mixup: float = 0.0  # the most of another sample that is mixed into each
    hold_zeros: bool = True  # weights that are exactly zero, where not all of their tensor are, stay zero: they are a mask
    scale_lr: float = 1.0  # share of ``lr`` for the steps, offsets and bounds that ``learn_steps`` made
    freezing: Freezing | None = None  # of weights that swing between two integers; for quantized networks
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("lr", 0, 100),
            ("momentum", 0, 1),
            ("weight_decay", 0, 1),
            ("warmup", 0, 1),
            ("clip", 0, 1e9),
            ("mixup", 0, 1),
            ("scale_lr", 0, 100),
        ):
            if not low <= getattr(self, name) < high:
                raise RecipeError(f"training.{name} is {getattr(self, name)}; give a number from {low} up to {high}")
        if self.precision not in PRECISIONS:
            raise RecipeError(f"training.precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class Epoch:
    """What one epoch was like."""

    epoch: int  # the first is 1
    loss: float  # mean over its batches
    lr: float  # at its last step
    seconds: float


def warmup_cosine(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at ``step`` of ``total``: up in a line, down as half a cosine (arXiv:1608.03983)."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def fit(
    model: nn.Module,
    task: Task,
    *,
    epochs: int,
    teacher: nn.Module | None = None,
    loss: TeacherLoss | None = None,
    settings: Training | None = None,
    sparsity: Sparsity | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Train a copy of ``model`` on ``task.train`` and return it in eval mode.

    Zeros in weights of two dimensions or more are kept (see ``Training.hold_zeros``): what ``sparsify`` cut stays cut. Not so
    those of a weight that was rounded, all of whose values lie on its grid.

    Args:
        teacher: The network to learn from; needed by ``loss``.
        loss: ``(output, teacher output, target) -> scalar``; without it, ``task.loss`` is used and no teacher.
        sparsity: How to become sparse on the way: ``GradualMagnitude``, ``GradualMovement``, ``RigL`` or ``ACDC``.
        checkpoint: Where the state is kept, written whole after every epoch. When it is there already, training goes on
            from it, and on one CPU ends with the same weights, bit for bit, as if it had not been interrupted.
        on_epoch: Called after every epoch, for those in the checkpoint too.

    Raises:
        TrainingError: The loss is not finite; the last checkpoint stays. Or the checkpoint belongs to another run.
        DataError: ``task.train`` is empty.
        RecipeError: A setting is out of range, or the pattern of ``sparsity`` does not divide a layer.
        ModelError: ``sparsity`` finds no weights to cut, or fewer that are not zero than are to stay.
    """
    if (teacher is None) != (loss is None):
        raise RecipeError("fit takes a teacher and a loss that knows it together, or neither")
    if epochs < 1:
        raise RecipeError(f"epochs is {epochs}; give at least 1")
    settings = settings or Training()
    steps = _length(task)
    run = _Run(model, teacher, settings, sparsity)
    history = run.resume(checkpoint, epochs) if checkpoint is not None and checkpoint.exists() else []
    for past in history:
        if on_epoch:
            on_epoch(past)
    with torch.random.fork_rng(), progress("training", epochs * steps) as advance:
        for _ in range(len(history) * steps):
            advance("already done")
        for epoch in range(len(history), epochs):
            history.append(_one_epoch(run, task, loss, epoch, epochs, steps, advance))
            if checkpoint is not None:
                run.save(checkpoint, epochs, history)
            if on_epoch:
                on_epoch(history[-1])
    return run.finished()


def _one_epoch(
    run: "_Run", task: Task, loss: TeacherLoss | None, epoch: int, epochs: int, steps: int, advance: Callable[[str], None]
) -> Epoch:
    # All chance in an epoch follows from its number, so that a resumed run sees what an uninterrupted one would have seen.
    torch.manual_seed(run.settings.seed * 1_000_003 + epoch)
    set_epoch = getattr(task.train, "set_epoch", None)
    if set_epoch:
        set_epoch(epoch)
    generator = getattr(task.train, "generator", None)
    if isinstance(generator, torch.Generator):  # a DataLoader's own
        generator.manual_seed(run.settings.seed * 1_000_003 + epoch)
    total, began, lr, i = 0.0, time.perf_counter(), 0.0, -1
    for i, (inputs, target) in enumerate(task.train):
        lr = run.settings.lr * warmup_cosine(epoch * steps + i, epochs * steps, run.settings.warmup)
        run.sparse.at(epoch * steps + i, epochs * steps)
        run.freeze.at(epoch * steps + i, epochs * steps)
        value = run.step(as_tuple(inputs), target, task, loss, lr)
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} in epoch {epoch + 1}, batch {i + 1}; try a lower lr than {run.settings.lr} or look "
                "for NaN in the data; the last checkpoint is untouched"
            )
        total += value
        advance(f"epoch {epoch + 1}/{epochs}  loss {total / (i + 1):.4f}")
    if i + 1 != steps:
        raise DataError(f"task.train yielded {i + 1} batches in epoch {epoch + 1}, not {steps} as it said; {_FRESH}")
    return Epoch(epoch + 1, total / steps, lr, time.perf_counter() - began)


_FRESH = "it must give a fresh iterator of one length every time, as a list or a DataLoader does"


def _length(task: Task) -> int:
    """Batches in an epoch; a loader without ``len`` is walked once to count."""
    try:
        n = len(task.train)  # type: ignore[arg-type]
    except TypeError:  # among them a DataLoader of a stream, which has ``__len__`` but no length
        n = sum(1 for _ in task.train)
    if n == 0:
        raise DataError("task.train is empty: it yields no batch; give at least one (inputs, target) pair")
    return n


def _fabric(precision: str) -> Any:
    from lightning_fabric import Fabric

    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)  # it announces the precision at every run
    try:
        return Fabric(accelerator="auto", devices=1, precision=precision)
    finally:
        logger.setLevel(level)


def _channels_last(model: nn.Module) -> nn.Module:
    """The memory format in which two-dimensional convolutions are fastest; torch has none for one dimension."""
    for p in model.parameters():
        if p.ndim == 4:
            p.data = p.data.to(memory_format=torch.channels_last)
    return model


class _Run:
    """Model, teacher and optimizer, set up on the device; all that a checkpoint must hold."""

    def __init__(
        self, model: nn.Module, teacher: nn.Module | None, settings: Training, sparsity: Sparsity | None = None
    ) -> None:
        self.settings = settings
        self.fabric = _fabric(settings.precision if settings.precision != "auto" else native_precision())
        self.model = _channels_last(copy.deepcopy(model).train())
        scales = {id(p) for p in trained_steps(self.model)}
        trained = [p for p in self.model.parameters() if p.requires_grad]
        others = [p for p in trained if id(p) not in scales]
        self.optimizer = torch.optim.SGD(
            [
                {"params": [p for p in others if p.ndim > 1], "weight_decay": settings.weight_decay, "share": 1.0},
                {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0, "share": 1.0},
                {"params": [p for p in trained if id(p) in scales], "weight_decay": 0.0, "share": settings.scale_lr},
            ],
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
        )
        self.student, self.optimizer = self.fabric.setup(self.model, self.optimizer)
        self.sparse = SparseRun(self.model, self.optimizer, sparsity, hold=settings.hold_zeros)
        for name in rounded_weights(self.model):
            self.sparse.masks.pop(name, None)
        self.freeze = FreezeRun(self.model, self.optimizer, settings.freezing)
        self.teacher = None
        if teacher is not None:
            frozen = copy.deepcopy(teacher).eval().requires_grad_(False)
            self.teacher = self.fabric.setup_module(_channels_last(frozen))

    def step(self, inputs: tuple[Tensor, ...], target: Any, task: Task, loss: TeacherLoss | None, lr: float) -> float:
        inputs, target = self.fabric.to_device((inputs, target))
        if self.settings.mixup:
            inputs, target = mixed(inputs, target, self.settings.mixup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        output = self.student(*inputs)
        if self.teacher is None or loss is None:
            value = task.loss(output, target)
        else:
            with torch.no_grad():
                taught = self.teacher(*inputs)
            value = loss(output, taught, target)
        self.fabric.backward(value)
        self.sparse.before_step()
        self.freeze.before_step()
        if self.settings.clip:
            self.fabric.clip_gradients(self.student, self.optimizer, max_norm=self.settings.clip, error_if_nonfinite=False)
        if math.isfinite(item := float(value.detach())):
            self.optimizer.step()
            self.sparse.after_step()
            self.freeze.after_step()
        self.optimizer.zero_grad()
        return item

    def finished(self) -> nn.Module:
        model: nn.Module = self.model.to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        return model

    def save(self, path: Path, epochs: int, history: list[Epoch]) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for i, p in enumerate(self._ordered()):
            tensors[f"momentum.{i}"] = self.optimizer.state.get(p, {}).get("momentum_buffer", torch.zeros_like(p))
        for kind, kept in (("sparse", self.sparse), ("freeze", self.freeze)):
            tensors |= {f"{kind}.{name}": t for name, t in kept.state().items()}
        about = self._about(epochs) | {"history": [asdict(e) for e in history]}
        write_tensors(path, tensors, about)

    def resume(self, path: Path, epochs: int) -> list[Epoch]:
        tensors, about = read_tensors(path)
        mine = self._about(epochs)
        theirs = {k: about.get(k) for k in mine}
        if mine != theirs:
            differ = [k for k in mine if mine[k] != theirs[k]]
            raise TrainingError(
                f"{path} belongs to another run, with other {' and '.join(differ)}; delete it or choose another place"
            )
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        for i, p in enumerate(self._ordered()):
            self.optimizer.state[p]["momentum_buffer"] = tensors[f"momentum.{i}"].to(p.device)
        for kind, kept in (("sparse", self.sparse), ("freeze", self.freeze)):
            kept.load({k.removeprefix(f"{kind}."): v for k, v in tensors.items() if k.startswith(f"{kind}.")})
        return [Epoch(**e) for e in about["history"]]

    def _about(self, epochs: int) -> dict[str, Any]:
        """What a checkpoint must agree in to be this run's."""
        settings, sparsity = asdict(self.settings), describe(self.sparse.way)
        return {"settings": settings, "epochs": epochs, "model": self._shapes(), "sparsity": sparsity}

    def _shapes(self) -> dict[str, Any]:
        held = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        return {"shapes": held, "trained": [name for name, p in self.model.named_parameters() if p.requires_grad]}

    def _ordered(self) -> Iterator[nn.Parameter]:
        return (p for group in self.optimizer.param_groups for p in group["params"])


def native_precision() -> str:
    """bfloat16 where the device computes in it; elsewhere it would only be slower than float32."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"
