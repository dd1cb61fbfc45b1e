"""What a network is for: batches to train on, to search on and to confirm on; a metric; a loss.

A *batch* is ``(inputs, target)``; ``inputs`` is a tensor or a tuple of tensors, batched along dimension 0.
Loaders are walked many times, so each must give a fresh iterator every time (a list or a ``DataLoader`` does).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from penjing.errors import DataError, PenjingError, first_line

Inputs = Tensor | tuple[Tensor, ...]
Batch = tuple[Inputs, Any]
Batches = Iterable[Batch]
Run = Callable[..., Any]  # a network in torch or in a runtime: takes the inputs one by one
Loss = Callable[[Any, Any], Tensor]  # (output, target) -> scalar
IGNORED = 255  # the number that data sets of dense classes give to positions without one; torch's own is below 0
HOW = (  # what is wrong with most metrics that are
    "a metric is called as metric(run, batches), calls run(*inputs) for every (inputs, target), and returns "
    "penjing.Score(value, samples, per_sample), per_sample with one number a sample"
)


@dataclass(frozen=True)
class Score:
    """The value of a metric, higher is better, with what is needed to compare two of them sample by sample."""

    value: float
    samples: int
    per_sample: np.ndarray = field(repr=False, compare=False)  # (samples,), mean equals ``value`` where that makes sense

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))  # of numpy or torch: JSON knows neither
        object.__setattr__(self, "samples", int(self.samples))
        each = self.per_sample.detach().cpu() if isinstance(self.per_sample, Tensor) else self.per_sample
        object.__setattr__(self, "per_sample", np.asarray(each))


Metric = Callable[[Run, Batches], Score]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the network is for.

    Args:
        train: Batches to learn from.
        search: Batches that choices are made on: the same in the same order at every walk.
        confirm: Batches that are looked at once, at the end: the same in the same order at every walk.
        metric: ``(callable, batches) -> Score``; higher is better.
        loss: ``(output, target) -> scalar``, for training; cross-entropy where the targets are classes or probabilities of
            them, which is what it is if not given. For images or numbers give another, such as ``F.mse_loss``.
        classes: What the numbers of classes mean, for reports.
    """

    train: Batches
    search: Batches
    confirm: Batches
    metric: Metric
    loss: Loss = F.cross_entropy
    classes: Sequence[str] | None = None


def as_tuple(inputs: Inputs) -> tuple[Tensor, ...]:
    """The inputs of a batch, one by one.

    Raises:
        DataError: They are something else than tensors.
    """
    if isinstance(inputs, Tensor):
        return (inputs,)
    if not isinstance(inputs, tuple | list) or not all(isinstance(x, Tensor) for x in inputs):
        raise DataError(f"a batch has inputs of type {type(inputs).__name__}; give a tensor or a tuple of tensors")
    return tuple(inputs)


def samples_of(inputs: Sequence[Tensor | np.ndarray]) -> int:
    """How many samples inputs hold: the length of the first that is no single number, as a time step is."""
    return next((len(x) for x in inputs if x.ndim), 1)


def ignored(target: Tensor, classes: int) -> Tensor:
    """Where class numbers mean "ignore this": below 0, and 255 where that is no class."""
    return (target < 0) | ((target == IGNORED) & (classes <= IGNORED))


def inputs_and_target(batch: Any, count: int) -> tuple[tuple[Tensor, ...], Any]:
    """Take apart what a loader yields, for a model of ``count`` inputs: inputs alone, or ``(inputs, target)``.

    Returns:
        The inputs one by one, and the target, None where there is none.

    Raises:
        DataError: It is neither.
    """
    if isinstance(batch, tuple | list):
        # The number of inputs tells (x, y), which a model of two takes, from (inputs, target).
        for inputs, target in ((batch, None), (batch[0], batch[1])) if len(batch) == 2 else ((batch, None),):
            parts = (inputs,) if isinstance(inputs, Tensor) else inputs
            if isinstance(parts, tuple | list) and len(parts) == count and all(isinstance(x, Tensor) for x in parts):
                return tuple(parts), target
    elif isinstance(batch, Tensor) and count == 1:
        return (batch,), None
    raise DataError(
        f"data yields {type(batch).__name__}, which does not hold the model's {count} inputs; "
        "give its inputs (a tensor, or a tuple of tensors) or (inputs, target) pairs"
    )


def first_batch(batches: Batches, name: str) -> Batch:
    """The first batch of a split.

    Raises:
        DataError: The split is empty, can be walked only once, or does not yield ``(inputs, target)``.
    """
    if not isinstance(batches, Iterable):
        raise DataError(f"task.{name} is {type(batches).__name__}; give something that yields (inputs, target) pairs")
    if isinstance(batches, Iterator):
        raise DataError(
            f"task.{name} is a {type(batches).__name__}, which can be walked only once; give a list or a DataLoader"
        )
    batch = next(iter(batches), None)
    if batch is None:
        raise DataError(f"task.{name} is empty: it yields no batch; give at least one (inputs, target) pair")
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        got = f"a {type(batch).__name__} of {len(batch)}" if isinstance(batch, tuple | list | dict) else type(batch).__name__
        raise DataError(
            f"task.{name} yields {got}, not an (inputs, target) pair; give the loader a collate_fn, or wrap it in a "
            "class whose __iter__ yields such pairs"
        )
    inputs, target = batch
    try:
        as_tuple(inputs)
    except DataError as e:
        raise DataError(f"task.{name}: {e}") from e
    return inputs if isinstance(inputs, Tensor) else tuple(inputs), target


def first_batches(batches: Batches, samples: int, seed: int = 0) -> list[Batch]:
    """The first batches of a walk, of so many samples together at least; the same at every call with the same seed."""
    found: list[Batch] = []
    seen = 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if set_epoch := getattr(batches, "set_epoch", None):
            set_epoch(0)
        for batch in batches:
            found.append(batch)
            seen += len(as_tuple(batch[0])[0])
            if seen >= samples:
                break
    return found


def check_task(task: Task, model: nn.Module, *, labels: bool = True) -> tuple[Tensor, ...]:
    """Walk one batch of every split through the network, so that a mistake shows before any work is done.

    Args:
        labels: Whether ``train`` is to have labels that the task's loss takes.

    Returns:
        Example inputs: the first batch of ``search``.

    Raises:
        DataError: A split is empty, or the network does not take what it yields.
    """
    for name in ("train", "search", "confirm"):
        _check_split(task, name, model, labels=labels and name == "train")
    return as_tuple(first_batch(task.search, "search")[0])


def half_cure(model: nn.Module) -> str:
    """What to do about a network in half precision, which takes no ordinary inputs; nothing of others."""
    narrow = {p.dtype for p in model.parameters()} & {torch.float16, torch.bfloat16}
    return "; the model is in half precision: call model.float()" if narrow else ""


def _check_split(task: Task, name: str, model: nn.Module, *, labels: bool) -> None:
    """Walk the first batch of a split through the network, and of ``labels`` through the task's loss.

    Raises:
        DataError: It is empty, or the network or the loss does not take what it yields.
    """
    inputs, target = first_batch(getattr(task, name), name)
    with in_eval(model), torch.random.fork_rng():
        try:
            with torch.no_grad():
                output = model(*as_tuple(inputs))
        except Exception as e:  # whatever the user's forward raises, the cause is the shape it was given
            shapes = [tuple(x.shape) for x in as_tuple(inputs)]
            raise DataError(
                f"the model does not take what task.{name} yields, inputs of shape {shapes}: {first_line(e)}{half_cure(model)}"
            ) from e
        if labels:
            _check_loss(task.loss, output, target)


def check_order(task: Task) -> None:
    """Refuse splits that are shuffled or changed at random: scores of two networks are compared sample by sample.

    Raises:
        DataError: ``search`` or ``confirm`` begins otherwise when it is walked again.
    """
    for name in ("search", "confirm"):
        with torch.random.fork_rng():
            walks = [as_tuple(first_batch(getattr(task, name), name)[0]) for _ in range(2)]
        if not all(_equal(a, b) for a, b in zip(*walks, strict=True)):
            raise DataError(
                f"task.{name} yields other samples when it is walked again, and networks are compared sample by sample; give "
                "the same in the same order: shuffle=False, and no augmentation by chance"
            )


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same; NaN is equal to NaN, which is told elsewhere."""
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def check_metric(task: Task, run: Run) -> Score:
    """Call the metric on the first batch of ``search``, so that a mistake in it shows before any work is done.

    Where it fails on that or gives no finite number, as one that needs every class may, it gets the whole split.

    Args:
        run: A file that is loaded, or a network; the metric sees what a file of it would give.

    Returns:
        What it gave.

    Raises:
        DataError: It fails, or gives something else than a finite ``Score`` with one number a sample.
    """
    if isinstance(run, nn.Module):
        with in_eval(run):
            return check_metric(task, as_a_file(run))
    try:
        return scored(task.metric, run, [first_batch(task.search, "search")])
    except NoScore:
        return scored(task.metric, run, task.search)


def try_metric(task: Task, run: Run) -> None:
    """As ``check_metric``, of a network that is to be trained yet: NaN and infinity may pass with that.

    Raises:
        DataError: It fails, or gives something else than a ``Score`` with one number a sample.
    """
    try:
        check_metric(task, run)
    except NoScore as e:
        if e.__cause__ is not None:
            raise


class NoScore(DataError):
    """A metric fails or gives no number, which more batches may change."""


def scored(metric: Metric, run: Run, batches: Batches) -> Score:
    """What a metric gives, checked.

    Raises:
        NoScore: It fails, or gives no finite number.
        DataError: It gives something else than a ``Score`` with one number a sample.
    """
    try:
        score = metric(run, batches)
    except PenjingError:
        raise
    except Exception as e:  # whatever the user's metric raises
        raise NoScore(f"task.metric fails with {type(e).__name__}: {first_line(e)}; {HOW}") from e
    if not isinstance(score, Score):
        raise DataError(f"task.metric returns {type(score).__name__}; {HOW}")
    each = np.asarray(score.per_sample)
    if each.ndim != 1 or each.dtype.kind not in "biuf" or len(each) != score.samples:
        raise DataError(f"task.metric gives per_sample of shape {each.shape}, {each.dtype}, for {score.samples} samples; {HOW}")
    if not (math.isfinite(score.value) and np.isfinite(each).all()):
        raise NoScore("task.metric gives NaN or infinity; look for it in the data and in what it divides by")
    return score


def searched(task: Task, run: Run) -> float:
    """The score on the search split; lower than all others where the metric gives no finite number."""
    try:
        return scored(task.metric, run, task.search).value
    except NoScore:
        return -math.inf


def as_a_file(model: nn.Module) -> Run:
    """The network as its file would answer: without gradients, one output bare, several as a tuple."""

    def run(*inputs: Tensor) -> Any:
        with torch.no_grad():
            outputs = [y for y in tree_leaves(model(*inputs)) if isinstance(y, Tensor)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return run


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and afterwards every part of it in the mode it was in."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _check_loss(loss: Loss, output: Any, target: Any) -> None:
    if loss is F.cross_entropy and isinstance(target, Tensor) and target.is_floating_point() and target.ndim > 1:
        total = target.sum(1)  # cross-entropy takes numbers of the output's shape for probabilities of classes
        if target.amin() < 0 or not torch.allclose(total, torch.ones_like(total), atol=1e-2):
            raise DataError(
                "task.loss is cross-entropy and task.train's targets are numbers: no classes, nor probabilities of them; give "
                "a loss that is meant for them, e.g. Task(..., loss=torch.nn.functional.mse_loss)"
            )
    try:
        value = loss(output, target)
    except Exception as e:
        cure = "" if isinstance(output, Tensor) else f"; the model gives a {type(output).__name__}: give a loss that takes it"
        raise DataError(f"task.loss does not take the model's output and task.train's target: {first_line(e)}{cure}") from e
    if not isinstance(value, Tensor) or value.ndim:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"task.loss gives {got}, not a scalar tensor; take the mean over the samples")
    if not torch.isfinite(value).all():
        raise DataError(f"task.loss is {value.item()} on the first batch of task.train; check for NaN in data and targets")
