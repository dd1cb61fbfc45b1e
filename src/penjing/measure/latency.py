"""How long one call takes, compared fairly: the contenders take turns in one process, and medians are quoted."""

import copy
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penjing.measure.measurement import Measurement
from penjing.progress import Progress, silent
from penjing.task import Run, samples_of

AT_LEAST, AT_MOST = 15, 300  # turns
TURN, BEFORE = 20.0, 2  # ms that a turn lasts, two calls at least; and untimed calls before it; one of each where one is longer


def latency(run: Run, *inputs: Tensor | np.ndarray, seconds: float = 1.0) -> Measurement:
    """The time of one call, in milliseconds: the median over about ``seconds`` of calls, after warming up."""
    return compare({"": run}, *inputs, seconds=seconds)[""]


def compare(
    runs: Mapping[str, Run], *inputs: Tensor | np.ndarray, seconds: float = 1.0, progress: Progress = silent
) -> dict[str, Measurement]:
    """The time of one call of each, in milliseconds, taken in turns so that a busy moment falls on all of them.

    A turn is a few calls in a row, of which the first are not timed, so that none starts with what another left in the
    caches: one call by itself says too much about its predecessor. Its time is the median of the others.

    Args:
        seconds: About how long to measure each; there are 15 turns at least, 300 at most.
    """
    arrays = [x.detach().cpu().numpy() if isinstance(x, Tensor) else x for x in inputs]
    runs = {name: _of_arrays(run) if isinstance(run, nn.Module) else run for name, run in runs.items()}
    once = {name: min(_timed(run, arrays) for _ in range(3)) for name, run in runs.items()}
    before = {name: BEFORE if t < TURN else 1 for name, t in once.items()}
    calls = {name: int(min(20, max(before[name], TURN / max(t, 1e-3)))) for name, t in once.items()}
    longest = max((calls[name] + before[name]) * t for name, t in once.items()) / 1e3
    rounds = int(min(AT_MOST, max(AT_LEAST, seconds / longest)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    with progress("timing", rounds) as advance:
        for _ in range(rounds):
            for name, run in runs.items():
                for _ in range(before[name]):
                    run(*arrays)
                times[name].append(statistics.median(_timed(run, arrays) for _ in range(calls[name])))
            advance(f"batch {samples_of(arrays)}")
    return {name: _summary(times[name], getattr(run, "where", "torch")) for name, run in runs.items()}


def _of_arrays(net: nn.Module) -> Run:
    """A network in torch as something that is called as files are: a copy in eval mode, without gradients."""
    net = copy.deepcopy(net).eval()

    def run(*arrays: Any) -> Any:
        with torch.no_grad():
            return net(*(torch.as_tensor(a) for a in arrays))

    return run


def _timed(run: Run, arrays: list[Any]) -> float:
    began = time.perf_counter()
    run(*arrays)
    return (time.perf_counter() - began) * 1e3


def _summary(times: list[float], where: str) -> Measurement:
    low, middle, high = (float(v) for v in np.percentile(times, (10, 50, 90)))
    return Measurement(middle, "ms", low, high, len(times), where)
