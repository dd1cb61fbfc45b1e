"""The limits that a compressed network must keep."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from penjing.errors import RecipeError

_BYTES = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_UNITS = {
    "latency": {"ms": 1.0, "us": 1e-3, "s": 1e3},
    "bytes": _BYTES,
    "macs": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9},
    "memory": _BYTES,
}
_EXAMPLES = {"latency": "0.25x or 3ms", "bytes": "0.125x or 500kB", "macs": "0.5x or 20M", "memory": "0.5x or 2MB"}
_DROPS = {"points": 100, "point": 100, "%": 100, "units": 1, "unit": 1, "db": 1}  # how many are 1 of the metric
NO_DROP = "none"  # the word for a drop that is not limited
_NUMBER = r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)"


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
    """The limits, and what is wanted within them; what is not given is left free.

    Raises:
        RecipeError: A limit is not understood, or there is none at all.
    """

    max_drop: float | None = 0.01  # most of the metric that may be lost, in its units: 0.005 of an accuracy is half a point
    latency: float | str | None = None  # of the original fp32 on the target: a share (0.25, "0.25x"), or a time ("3ms")
    bytes: float | str | None = None  # of the file: a share of the original's ("0.125x"), or a size ("500kB")
    macs: float | str | None = None  # multiply-accumulates a sample: a share ("0.5x"), or a count ("20M")
    memory: float | str | None = None  # peak of a call at settings.batch: a share of the original's ("0.5x"), or a size ("2MB")
    goal: str | None = None  # "speed" or "accuracy": what is wanted most within the limits; not given: speed, if max_drop is

    def __post_init__(self) -> None:
        limits = self.limits()
        if not isinstance(self.max_drop, int | float | None):
            raise RecipeError(
                f"max_drop is {self.max_drop!r}; give a number of the metric's units, 0.01 for one point of a share"
            )
        if self.goal not in (None, "speed", "accuracy"):
            raise RecipeError(f"goal is {self.goal!r}; give 'speed' or 'accuracy', or leave it out")
        if self.goal == "speed" and self.max_drop is None:
            raise RecipeError("goal is 'speed' and max_drop is None: nothing is the fastest of all networks; give max_drop")
        if self.goal == "accuracy" and not limits:
            raise RecipeError(f"goal is 'accuracy' and the original has the most; give a limit, {' or '.join(_UNITS)}")
        if self.max_drop is None:
            if not limits:
                raise RecipeError(
                    f"max_drop is None and nothing else is limited; give {' or '.join(_UNITS)}, e.g. latency=0.25"
                )
        elif not 0 <= self.max_drop < math.inf:
            raise RecipeError(
                f"max_drop is {self.max_drop}; give what may be lost of the metric, at least 0: "
                "0.005 for half a point of accuracy, 0.3 for 0.3 dB"
            )

    @property
    def wants_accuracy(self) -> bool:
        """Whether the most accurate network within the limits is wanted, and not the fastest."""
        return self.goal == "accuracy" or self.max_drop is None

    def limits(self) -> dict[str, Limit]:
        """The limits that were given, by name."""
        given = {name: getattr(self, name) for name in _UNITS}
        return {name: parse_limit(name, value) for name, value in given.items() if value is not None}

    def ceilings(self, original: Mapping[str, float]) -> dict[str, float]:
        """The limits that were given as numbers: ms, bytes, multiply-accumulates and bytes of memory.

        Args:
            original: What the original has, in the same units, at least for every limit that was given.
        """
        return {name: limit.of(original[name]) for name, limit in self.limits().items()}


def parse_limit(name: str, value: Any) -> Limit:
    """Read ``"0.25x"``, ``"3ms"``, ``"500kB"``, or a number up to 1 as a share.

    Raises:
        RecipeError: The text is something else.
    """
    wrong = RecipeError(f"{name} limit {value!r} is not understood; give for example {_EXAMPLES[name]}")
    match = re.fullmatch(_NUMBER + r"\s*([a-z]*)", str(value).strip().lower())
    if match is None:
        raise wrong
    number, unit = float(match[1]), match[2]
    if not 0 < number < math.inf:
        raise wrong
    if unit == "x" or (not unit and number <= 1):
        return Limit(number, share=True)
    if unit not in _UNITS[name]:
        raise wrong
    return Limit(number * _UNITS[name][unit], share=False)


def parse_drop(text: str) -> float | None:
    """Read ``"0.5 points"`` or ``"0.5%"`` (of a metric that is a share: 0.005), ``"0.3 dB"``, ``"0.3 units"``, or ``"none"``.

    A number without a unit is refused: half a point is 0.5 to some and 0.005 to others.

    Raises:
        RecipeError: The text is something else.
    """
    if text.strip().lower() == NO_DROP:
        return None
    match = re.fullmatch(_NUMBER + r"\s*([a-z%]*)", text.strip().lower())
    if match is None or (match[2] not in _DROPS and float(match[1])):
        raise RecipeError(
            f"max_drop {text!r} is not understood; give a number and its unit: '0.5 points' of an accuracy or another share, "
            f"'0.3 dB' or '0.3 units' of a metric with units of its own, or '{NO_DROP}'"
        )
    return float(Decimal(match[1]) / _DROPS.get(match[2], 1))  # decimal: 0.7 points are 0.007
