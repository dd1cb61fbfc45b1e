"""A measured number: with its unit, its spread, how many samples it rests on and where it was taken."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """One measured number.

    Attributes:
        value: The median of several samples, or the one exact count.
        low: The 10th percentile; ``value`` itself for exact counts. ``high``: the 90th.
        where: The runtime and machine it was taken on; empty for what does not depend on them.
    """

    value: float
    unit: str
    low: float
    high: float
    samples: int = 1
    where: str = ""

    @classmethod
    def exact(cls, value: float, unit: str) -> "Measurement":
        """A count, which has no spread."""
        return cls(value, unit, value, value)

    def __str__(self) -> str:
        spread = "" if self.low == self.high else f" ({self.low:.3g} to {self.high:.3g}, {self.samples} samples)"
        return f"{self.value:,.4g} {self.unit}{spread}" + (f" on {self.where}" if self.where else "")

    def to_json(self) -> dict[str, Any]:
        """The measurement as JSON values."""
        return asdict(self)
