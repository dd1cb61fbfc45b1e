"""Which speeds to try: leap while it holds, then halve the gap. Every trial is dear, so few are made."""

import math
from collections.abc import Callable

LEAP = 2.0  # times faster than what held, while nothing has failed
NEAR = 1.12  # a gap between what holds and what fails that is not worth another trial


def gallop(attempt: Callable[[float], bool], *, holds: float, least: float, trials: int) -> float:
    """Look for the least share of the latency that holds.

    Args:
        attempt: Tries a share and says whether it holds.
        holds: A share that holds already.
        least: A share below which there is nothing.
        trials: How many may be made.

    Returns:
        The least share that held.
    """
    fails: float | None = None
    for _ in range(trials):
        share = max(least, holds / LEAP) if fails is None else math.sqrt(holds * fails)
        if holds / share < NEAR:
            break
        if attempt(share):
            holds = share
        else:
            fails = share
    return holds
