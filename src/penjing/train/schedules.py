"""How the learning rate runs over a training: shares of the peak, by the number of the step alone."""

from collections.abc import Callable

from penjing.distill.combine import half_cosine

Schedule = Callable[[int, int, float], float]  # (step from 0, all steps, share of warm-up) -> share of the peak


def cosine(step: int, total: int, warmup: float) -> float:
    """Up in a line, down as half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    rise = _rise(total, warmup)
    return (step + 1) / rise if step < rise else half_cosine((step - rise) / max(1, total - rise))


def one_cycle(step: int, total: int, warmup: float) -> float:
    """From 1/25 up as half a cosine, and down as one to almost nothing (Smith & Topin 2018, arXiv:1708.07120)."""
    low = 1 / 25
    rise = _rise(total, warmup)
    if step < rise:
        return low + (1 - low) * (1 - half_cosine((step + 1) / rise))
    return max(half_cosine((step - rise) / max(1, total - rise)), low * 1e-4)


def linear(step: int, total: int, warmup: float) -> float:
    """Up in a line, down in a line."""
    rise = _rise(total, warmup)
    return (step + 1) / rise if step < rise else 1 - (step - rise) / max(1, total - rise)


def constant(step: int, total: int, warmup: float) -> float:
    """Up in a line, then the same."""
    return min(1.0, (step + 1) / _rise(total, warmup))


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "one_cycle": one_cycle, "linear": linear, "constant": constant}


def _rise(total: int, warmup: float) -> int:
    return max(1, round(warmup * total))
