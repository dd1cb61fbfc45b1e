"""Checks of what a loss is set to."""

import math
from numbers import Real

from penjing.errors import RecipeError


def positive(loss: str, name: str, value: float, usual: float) -> float:
    """``value`` if it is above 0 and finite.

    Raises:
        RecipeError: It is not; names ``usual``.
    """
    if not _is_number(value) or not 0 < value < math.inf:
        raise RecipeError(f"{loss}.{name} is {value!r}; give a positive number, e.g. {usual}")
    return float(value)


def not_negative(loss: str, name: str, value: float) -> float:
    """A weight: ``value`` if it is 0 or above and finite.

    Raises:
        RecipeError: It is not.
    """
    if not _is_number(value) or not 0 <= value < math.inf:
        raise RecipeError(f"{loss}.{name} is {value!r}; give a weight of 0, to leave the part out, or more")
    return float(value)


def count(loss: str, name: str, value: float, usual: int) -> int:
    """``value`` if it is a whole number above 0.

    Raises:
        RecipeError: It is not; names ``usual``.
    """
    if not _is_number(value) or not 0 < value < math.inf or value != int(value):
        raise RecipeError(f"{loss}.{name} is {value!r}; give a whole number above 0, e.g. {usual}")
    return int(value)


def _is_number(value: object) -> bool:
    """Whether it is one: words come from the command line as they are."""
    return isinstance(value, Real) and not isinstance(value, bool)
