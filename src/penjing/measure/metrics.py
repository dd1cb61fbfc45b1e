"""How well a network does its task: functions ``(callable, batches) -> Score``, higher is better."""

import numpy as np
import torch
from torch import Tensor

from penjing.errors import DataError
from penjing.task import Batches, NoScore, Run, Score, as_tuple, ignored


def top1(run: Run, batches: Batches) -> Score:
    """Share of samples whose largest output, along dimension 1, is at the target's class.

    Positions without a class (numbers below 0, and 255 where that is no class), which training leaves out, do not count; nor
    do samples that have no others.

    Raises:
        NoScore: An output is not finite, or no position counts.
        DataError: There is no batch, targets are neither classes nor shares of them, or outputs are not of several classes.
    """
    right: list[np.ndarray] = []
    with torch.no_grad():
        for inputs, target in batches:
            output = torch.as_tensor(run(*as_tuple(inputs)))
            if not output.isfinite().all():
                raise NoScore("the network's output is NaN or infinite; look for NaN in the images and the weights")
            right.append(_hits(output, target).numpy())
    if not right:
        raise DataError("there is no batch to measure on; give at least one (inputs, target) pair")
    hits = np.concatenate(right)
    if not len(hits):
        raise NoScore("no target has a class: all are below 0, or 255; give some that have")
    return Score(float(hits.mean()), len(hits), hits)


def _hits(output: Tensor, target: Tensor) -> Tensor:
    """For each sample that has positions that count, the share of them that are right."""
    if output.ndim < 2 or output.shape[1] < 2:
        raise DataError(
            f"outputs have shape {tuple(output.shape)}, and top1 compares two classes or more, along dimension 1; of one logit "
            "or of numbers, give a metric of your own"
        )
    said, target = output.argmax(1), torch.as_tensor(target)
    if target.shape == output.shape:  # one-hot, or shares of classes
        target = target.argmax(1)
    if target.shape != said.shape:
        raise DataError(
            f"targets of shape {tuple(target.shape)} do not go with outputs of shape {tuple(output.shape)}: top1 takes "
            f"classes, of shape {tuple(said.shape)}, or shares of classes, of the shape of the outputs"
        )
    counts = ~ignored(target, output.shape[1]).reshape(len(target), -1)
    right = (said == target).reshape(len(target), -1) & counts
    some = counts.any(1)
    return right[some].sum(1).double() / counts[some].sum(1)
