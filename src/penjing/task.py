"""What a network is for: batches to train on, to search on and to confirm on; a metric; a loss.

A *batch* is ``(inputs, target)``; ``inputs`` is a tensor or a tuple of tensors, batched along dimension 0.
Loaders are walked many times, so each must give a fresh iterator every time (a list or a ``DataLoader`` does).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.errors import DataError, first_line

Inputs = Tensor | tuple[Tensor, ...]
Batch = tuple[Inputs, Any]
Batches = Iterable[Batch]
Run = Callable[..., Any]  # a network in torch or in a runtime: takes the inputs one by one
Loss = Callable[[Any, Any], Tensor]  # (output, target) -> scalar


@dataclass(frozen=True)
class Score:
    """The value of a metric, higher is better, with what is needed to compare two of them sample by sample."""

    value: float
    samples: int
    per_sample: np.ndarray = field(repr=False, compare=False)  # (samples,), mean equals ``value`` where that makes sense


Metric = Callable[[Run, Batches], Score]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the network is for.

    Args:
        train: Batches to learn from.
        search: Batches that choices are made on.
        confirm: Batches that are looked at once, at the end.
        metric: ``(callable, batches) -> Score``; higher is better.
        loss: ``(output, target) -> scalar``, for training.
        classes: What the numbers of classes mean, for reports.
    """

    train: Batches
    search: Batches
    confirm: Batches
    metric: Metric
    loss: Loss = F.cross_entropy
    classes: Sequence[str] | None = None


def as_tuple(inputs: Inputs) -> tuple[Tensor, ...]:
    """The inputs of a batch, one by one."""
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


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
        DataError: The split is empty or does not yield ``(inputs, target)``.
    """
    if not isinstance(batches, Iterable):
        raise DataError(f"task.{name} is {type(batches).__name__}; give something that yields (inputs, target) pairs")
    batch = next(iter(batches), None)
    if batch is None:
        raise DataError(f"task.{name} is empty: it yields no batch; give at least one (inputs, target) pair")
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(f"task.{name} yields {type(batch).__name__}, not an (inputs, target) pair")
    inputs, target = batch
    if not isinstance(inputs, Tensor | tuple | list) or not all(isinstance(x, Tensor) for x in as_tuple(inputs)):
        raise DataError(f"task.{name} yields inputs of type {type(inputs).__name__}; give a tensor or a tuple of tensors")
    return inputs if isinstance(inputs, Tensor) else tuple(inputs), target


def check_task(task: Task, model: nn.Module) -> tuple[Tensor, ...]:
    """Walk one batch of every split through the network, so that a mistake shows before any work is done.

    Returns:
        Example inputs: the first batch of ``search``.

    Raises:
        DataError: A split is empty, or the network does not take what it yields.
    """
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        for name in ("train", "search", "confirm"):
            inputs, target = first_batch(getattr(task, name), name)
            shapes = [tuple(x.shape) for x in as_tuple(inputs)]
            try:
                with torch.no_grad():
                    output = model(*as_tuple(inputs))
            except Exception as e:  # whatever the user's forward raises, the cause is the shape it was given
                raise DataError(
                    f"the model does not take what task.{name} yields, inputs of shape {shapes}: {first_line(e)}"
                ) from e
            if name == "train":
                _check_loss(task.loss, output, target)
    finally:
        for module, mode in modes:
            module.training = mode
    return as_tuple(first_batch(task.search, "search")[0])


def _check_loss(loss: Loss, output: Any, target: Any) -> None:
    try:
        value = loss(output, target)
    except Exception as e:
        raise DataError(f"task.loss does not take the model's output and task.train's target: {first_line(e)}") from e
    if not isinstance(value, Tensor) or value.ndim:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"task.loss gives {got}, not a scalar tensor; take the mean over the samples")
    if not torch.isfinite(value).all():
        raise DataError(f"task.loss is {value.item()} on the first batch of task.train; check for NaN in data and targets")
