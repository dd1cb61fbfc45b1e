"""The range of a value that its grid should cover, from what is seen of it."""

from typing import Protocol

import torch
from torch import Tensor


class Observer(Protocol):
    """Sees values batch by batch, then says which range is best.

    Values come as rows ``(rows, n)``; each row gets a range of its own: one row for a whole value, one for each channel.
    """

    def update(self, rows: Tensor) -> None:
        """Take in more of every row, ``(rows, n)``."""

    def limits(self) -> tuple[Tensor, Tensor]:
        """The least and the greatest value worth keeping, ``(rows,)`` each."""


class MinMax:
    """All that was seen."""

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def update(self, rows: Tensor) -> None:
        """See ``Observer.update``."""
        low, high = rows.detach().aminmax(dim=1)
        self.low, self.high = (
            (low, high)
            if self.low is None or self.high is None
            else (torch.minimum(self.low, low), torch.maximum(self.high, high))
        )

    def limits(self) -> tuple[Tensor, Tensor]:
        """See ``Observer.limits``."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high


OBSERVERS = {"minmax": MinMax}
