"""The limits that a compressed network must keep."""

import re
from dataclasses import dataclass
from typing import Any

from penjing.errors import RecipeError

_UNITS = {
    "latency": {"ms": 1.0, "us": 1e-3, "s": 1e3},
    "bytes": {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "kib": 1024.0, "mib": 1048576.0},
    "macs": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9},
}
_EXAMPLES = {"latency": "0.25x or 3ms", "bytes": "0.125x or 500kB", "macs": "0.5x or 20M"}


@dataclass(frozen=True)
class Limit:
    """The most that something may be: a number, or a share of the original's."""

    value: float
    share: bool

    def of(self, original: float) -> float:
        """The limit as a number, given what the original has."""
        return self.value * original if self.share else self.value


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits; what is not given is left free, and the fastest network within them is wanted.

    Attributes:
        max_drop: How much of the metric may be lost, as a share (0.005 is half a point of accuracy).
        latency: Of the original fp32 on the target: a share (``0.25`` or ``"0.25x"``), or a time (``"3ms"``).
        bytes: Of the file: a share of the original's (``"0.125x"``), or a size (``"500kB"``).
        macs: Multiply-accumulates a sample: a share (``"0.5x"``), or a count (``"20M"``).
    """

    max_drop: float = 0.01
    latency: float | str | None = None
    bytes: float | str | None = None
    macs: float | str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < 1:
            raise RecipeError(
                f"max_drop is {self.max_drop}; give a share of the metric from 0 up to 1, e.g. 0.005 for half a point"
            )
        self.limits()

    def limits(self) -> dict[str, Limit]:
        """The limits that were given, by name."""
        given = {name: getattr(self, name) for name in _UNITS}
        return {name: parse_limit(name, value) for name, value in given.items() if value is not None}


def parse_limit(name: str, value: Any) -> Limit:
    """Read ``"0.25x"``, ``"3ms"``, ``"500kB"``, or a number up to 1 as a share.

    Raises:
        RecipeError: The text is something else.
    """
    wrong = RecipeError(f"{name} limit {value!r} is not understood; give for example {_EXAMPLES[name]}")
    share = isinstance(value, int | float) and 0 < value <= 1
    text = f"{value}x" if share else str(value).strip().lower()
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)", text)
    if match is None:
        raise wrong
    number, unit = float(match[1]), match[2]
    if number <= 0:
        raise wrong
    if unit == "x":
        return Limit(number, share=True)
    if unit not in _UNITS[name]:
        raise wrong
    return Limit(number * _UNITS[name][unit], share=False)
