"""What can go wrong, as one tree. Everything a user can mend is a ``PenjingError``; the rest is our own bug.

PenjingError
 ├─ ModelError        the network cannot be read, or its weights do not fit or are not finite
 ├─ DataError         a loader is empty, or yields what the network does not take
 ├─ PlanError         a plan does not fit the network it is applied to
 │   └─ NotEquivalent the smaller network does not compute what the plan says (nothing is handed back)
 ├─ TrainingError     the loss is no longer finite
 ├─ ExportError       a file cannot be written or read back by its runtime
 │   └─ RuntimeMissing the package that speaks to the runtime is not installed
 ├─ BudgetError       no candidate meets the limits
 └─ RecipeError       a setting is unknown or out of range, or a name leads nowhere
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


class PenjingError(Exception):
    """Something the user can mend; the message says what was wrong, with the value, and what to do next."""


class ModelError(PenjingError):
    """The network cannot be read, or its weights do not fit or are not finite."""


class DataError(PenjingError):
    """A loader is empty, or yields what the network does not take."""


class PlanError(PenjingError):
    """A plan does not fit the network it is applied to."""


class NotEquivalent(PlanError):
    """The smaller network does not compute what the plan says; nothing is handed back."""


class TrainingError(PenjingError):
    """The loss is no longer finite."""


class ExportError(PenjingError):
    """A file cannot be written, or read back by its runtime."""


class RuntimeMissing(ExportError):
    """The package that speaks to a runtime is not installed."""


class BudgetError(PenjingError):
    """No candidate meets the limits; the message names the nearest that can be met."""


class RecipeError(PenjingError):
    """A setting is unknown or out of range, or a name leads nowhere."""


def first_line(error: Exception) -> str:
    """What someone else's error says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that one which is not known was most likely meant to be; None where none is like it."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def entry(table: Mapping[str, Entry], name: str, what: str) -> Entry:
    """What a table holds under a name that the user gave.

    Args:
        what: What names of this table stand for, as the error says it: ``"grid"``.

    Raises:
        RecipeError: The table holds no such name, or ``name`` is not one; says which there are, and which comes nearest.
    """
    if not isinstance(name, str):
        raise RecipeError(f"{what} is {name!r}; choose one of {sorted(table)}")
    if name in table:
        return table[name]
    near = nearest(name, table)
    hint = f"did you mean {near!r}? " if near else ""
    raise RecipeError(f"{what} {name!r} is not known; {hint}choose one of {sorted(table)}")
