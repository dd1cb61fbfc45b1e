"""How long work tells where it is: the library takes a ``Progress`` and draws nothing itself."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[str], None]  # one step is done; the text says how it stands


class Progress(Protocol):
    """``with progress("training", 100) as advance: ... advance("loss 0.31")`` a hundred times."""

    def __call__(self, label: str, total: int) -> AbstractContextManager[Advance]: ...


@contextmanager
def silent(label: str, total: int) -> Iterator[Advance]:  # noqa: ARG001 - the signature is the protocol's
    """Progress that nobody sees; the default everywhere."""
    yield lambda _note: None
