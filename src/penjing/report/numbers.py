"""Numbers as the report writes them: few digits, the unit on the same line, a dash for what was not measured."""

from collections.abc import Mapping
from typing import Any, NamedTuple

SPACE = "\u00a0"  # keeps a number and its unit on one line
NOTHING = "\u2013"
MINUS = "\u2212"


def amount(value: float | None, unit: str = "") -> str:
    """Three digits and a decimal prefix: ``1.08 M``, ``390 kB``; a dash for None."""
    if value is None:
        return NOTHING
    value, prefixes = float(f"{value:.3g}"), ["", "k", "M", "G", "T"]
    while abs(value) >= 1000 and len(prefixes) > 1:
        value, prefixes = value / 1000, prefixes[1:]
    digits = f"{value:#.3g}".rstrip(".") if prefixes[0] else f"{value:.3g}"  # only what was rounded shows its three digits
    return f"{digits}{SPACE}{prefixes[0]}{unit}".rstrip()


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.2f}{SPACE}%"


def points(share: float | None) -> str:
    """A difference of shares in percentage points, with a real minus sign: ``0.35``."""
    if share is None:
        return NOTHING
    rounded = round(100 * share, 2) + 0.0  # the sum turns -0.0 into 0.0
    return f"{rounded:.2f}".replace("-", MINUS)


def milliseconds(value: float | None, unit: str = "ms") -> str:
    """Three digits: ``0.620 ms``, ``8.40 ms``, ``1340 ms``; a dash for None."""
    if value is None:
        return NOTHING
    digits = f"{value:#.3g}" if value < 99.95 else f"{value:.0f}"
    return f"{digits}{SPACE}{unit}".rstrip()


def times(ratio: float) -> str:
    """How many times: one digit after the point, two below 1."""
    return f"{ratio:.1f}\u00d7" if ratio >= 1 else f"{ratio:.2f}\u00d7"


def duration(seconds: float) -> str:
    """``4.2 s``, ``3 min 5 s``, ``2 h 7 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Metric(NamedTuple):
    """How scores of the task are written: shares in percent and points, others as they are, with their unit."""

    name: str
    percent: bool = True
    unit: str = ""  # of a score that is not a share

    def scaled(self, value: float) -> float:
        """As the charts draw it."""
        return 100 * value if self.percent else value

    def score(self, value: float | None) -> str:
        """``94.45 %``; ``31.27 dB``."""
        if value is None or self.percent:
            return percent(value)
        digits = f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"
        return f"{digits.replace('-', MINUS)}{SPACE}{self.unit}".rstrip()

    def change(self, value: float | None) -> str:
        """A difference without its unit: ``0.35``, with a real minus sign."""
        if value is None or self.percent:
            return points(value)
        digits = f"{value + 0.0:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"  # the sum turns -0.0 into 0.0
        return digits.replace("-", MINUS)

    def changed(self, value: float) -> str:
        """A difference with its unit: ``0.35 points``, ``0.31 dB``."""
        return f"{self.change(value)}{SPACE}{'points' if self.percent else self.unit}".rstrip()

    @property
    def noun(self) -> str:
        """What is lost when the score falls."""
        return "accuracy" if self.name in ("top1", "accuracy") else self.name

    @property
    def amount(self) -> str:
        """The difference's unit and its noun: ``points of accuracy``, ``dB of PSNR``, ``PSNR``."""
        unit = "points" if self.percent else self.unit
        return f"{unit} of {self.noun}" if unit else self.noun

    @property
    def axis(self) -> str:
        """Title of a chart's axis: ``accuracy in %``, ``PSNR in dB``."""
        unit = "%" if self.percent else self.unit
        return f"{self.noun} in {unit}" if unit else self.noun


def metric_of(result: Mapping[str, Any]) -> Metric:
    accuracy = result["accuracy"]
    return Metric(accuracy["metric"], accuracy.get("percent", True), accuracy.get("unit") or "")
