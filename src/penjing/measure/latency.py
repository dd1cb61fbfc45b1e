"""How long one call takes, compared fairly: the contenders take turns in one process, and medians are quoted."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from penjing.measure.measurement import Measurement
from penjing.progress import Progress, silent
from penjing.task import Run

AT_LEAST, AT_MOST = 15, 300  # rounds


def latency(run: Run, *inputs: Tensor | np.ndarray, seconds: float = 1.0) -> Measurement:
    """The time of one call, in milliseconds: the median over about ``seconds`` of calls, after warming up."""
    return compare({"": run}, *inputs, seconds=seconds)[""]


def compare(
    runs: Mapping[str, Run], *inputs: Tensor | np.ndarray, seconds: float = 1.0, progress: Progress = silent
) -> dict[str, Measurement]:
    """The time of one call of each, in milliseconds, taken in turns so that a busy moment falls on all of them.

    Every timed call follows an untimed one of its own, so that none starts with what another left in the caches.

    Args:
        seconds: About how long to measure each.
    """
    arrays = [x.numpy() if isinstance(x, Tensor) else x for x in inputs]
    once = {name: min(_timed(run, arrays) for _ in range(3)) for name, run in runs.items()}
    rounds = int(min(AT_MOST, max(AT_LEAST, seconds / (2 * max(once.values()) / 1e3))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    with progress("timing", rounds) as advance:
        for _ in range(rounds):
            for name, run in runs.items():
                run(*arrays)
                times[name].append(_timed(run, arrays))
            advance(f"batch {len(arrays[0])}")
    return {name: _summary(times[name], getattr(run, "where", "torch")) for name, run in runs.items()}


def _timed(run: Run, arrays: list[Any]) -> float:
    began = time.perf_counter()
    run(*arrays)
    return (time.perf_counter() - began) * 1e3


def _summary(times: list[float], where: str) -> Measurement:
    low, middle, high = (float(v) for v in np.percentile(times, (10, 50, 90)))
    return Measurement(middle, "ms", low, high, len(times), where)
