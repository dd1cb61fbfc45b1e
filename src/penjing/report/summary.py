"""What a manager reads: the verdict, the four numbers, and the table of before and after."""

from typing import NamedTuple

from penjing.report.figure import Data
from penjing.report.numbers import MINUS, NOTHING, SPACE, Metric, amount, times

VERDICTS = {  # class, sign, and what the browser's tab says
    "holds": ("good", "\u2713", "budget held"),
    "does not hold": ("bad", "\u2715", "budget not held"),
    "cannot be told": ("open", "?", "cannot be told"),
}
LIMITS = {"latency": "latency", "bytes": "file size", "macs": "MACs", "memory": "peak memory"}


class Verdict(NamedTuple):
    """The answer, and how it looks."""

    look: str
    sign: str
    title: str
    sentence: str
    advice: str


class Tile(NamedTuple):
    """One of the big numbers on top."""

    value: str
    label: str
    note: str


class Row(NamedTuple):
    """One measure of the net before and after; the small print is how it was measured, and the interval of the change."""

    what: str
    before: str
    after: str
    change: str
    measured: str = ""
    interval: str = ""


def verdict(result: Data) -> Verdict:
    """A result without a status says only whether the budget held."""
    said = result["verdict"]
    status = said.get("status") or ("holds" if said["holds"] else "does not hold")
    return Verdict(*VERDICTS[status], said["sentence"], said.get("advice") or "")


def tiles(result: Data, metric: Metric) -> list[Tile]:
    """Faster, smaller, accuracy lost, share of the work left; what was not measured is left out."""
    size, speed = result["size"], result.get("speedup")
    found = []
    if speed and speed["value"] is not None:
        default = f"; {times(speed['versus_default'])} against the default precision" if speed["versus_default"] else ""
        note = f"at batch {speed['batch']}, against {speed['against']}, each in its faster runtime{default}"
        found.append(Tile(times(speed["value"]), "faster" if speed["value"] >= 1 else "the speed", note))
    before, after = size["bytes"]
    note = f"file of {amount(before, 'B')}, now {amount(after, 'B')}"
    found.append(
        Tile(times(before / after), "smaller", note) if after <= before else Tile(times(after / before), "the size", note)
    )
    found.append(_accuracy_tile(result["accuracy"], metric))
    before, after = size["macs"]
    note = f"{amount(before)} multiply-adds an input, now {amount(after)}"
    if before:
        found.append(Tile(f"{100 * after / before:.0f}{SPACE}%", "of the MACs left", note))
    return found


def _accuracy_tile(accuracy: Data, metric: Metric) -> Tile:
    """What was lost; a gain is not written as a negative loss."""
    drop, low, high, sure = accuracy["drop"], accuracy["low"], accuracy["high"], _confidence(accuracy)
    if low is None or high is None:
        how, change = ("lost", drop) if drop >= 0 else ("gained", -drop)
        return Tile(metric.change(change), f"{metric.amount} {how}", "one value in all tells nothing of its chance")
    if drop >= 0:
        note = f"with {sure} confidence at most {metric.change(high)}, at least {metric.change(low)}"
        return Tile(metric.change(drop), f"{metric.amount} lost", note)
    note = f"with {sure} confidence at least {metric.change(-high)}, at most {metric.change(-low)}"
    return Tile(metric.change(-drop), f"{metric.amount} gained", note)


def _confidence(accuracy: Data) -> str:
    return f"{100 * accuracy.get('confidence', 0.95):g}{SPACE}%"


def rows(result: Data, metric: Metric) -> list[Row]:
    """The score, the original trained on for as long, and the sizes."""
    accuracy, control = result["accuracy"], result.get("control")
    change, ends = _signed(-accuracy["drop"], metric), (accuracy["high"], accuracy["low"])
    interval = "" if None in ends else " to ".join(metric.change(-end) for end in ends)
    measured = f"{accuracy['metric']}, {accuracy['samples']:,} samples"
    what, after = _capital(metric.noun), metric.score(accuracy["after"])
    found = [Row(what, metric.score(accuracy["before"]), after, change, measured, interval)]
    if control:
        versus = _signed(control["versus"], metric)
        found.append(
            Row(f"{what} after equal training", metric.score(control["score"]), after, versus, "left: the original after it")
        )
    for name, key, unit in (("Parameters", "parameters", ""), ("MACs an input", "macs", ""), ("File", "bytes", "B")):
        found.append(_size(name, result["size"][key], unit))
    if result["size"].get("memory"):
        batch = (result.get("speedup") or {}).get("batch")
        called = f"of one call at batch {batch}" if batch else "of one call"
        found.append(_size("Peak memory", result["size"]["memory"], "B", called))
    return found


def _size(what: str, pair: list[float], unit: str, measured: str = "") -> Row:
    before, after = pair
    change = NOTHING
    if before and after:
        change = f"{times(before / after)} less" if after <= before else f"{times(after / before)} as much"
    return Row(what, amount(before, unit), amount(after, unit), change, measured)


def _signed(change: float, metric: Metric) -> str:
    """A change with its sign: ``+0.20 points``."""
    text = metric.changed(change)
    return text if text.startswith(MINUS) or change <= 0 else f"+{text}"


def _capital(noun: str) -> str:
    return "Accuracy" if noun == "accuracy" else noun


def sentences(result: Data, metric: Metric) -> list[str]:
    """What the test says of the drop, and what the control says of the training."""
    return [said for said in (_test(result["accuracy"]), _control(result.get("control"), metric)) if said]


def _test(accuracy: Data) -> str:
    if accuracy.get("p") is None:
        return ""
    counts = ""
    if accuracy.get("worse") is not None:
        counts = f"Of {accuracy['samples']:,} samples {accuracy['worse']:,} became worse and {accuracy['better']:,} better. "
    p = f"{accuracy['p']:.2g}" if accuracy["p"] >= 1e-4 else f"{accuracy['p']:.0e}"
    chance = f"Were both nets equally good, chance alone would part them this far with probability {p}"
    return f"{counts}{chance} ({accuracy['test']} test)."


def _control(control: Data | None, metric: Metric) -> str:
    """Training alone changes a net: what of the difference is due to the compression."""
    if not control:
        return ""
    gained = f"{metric.changed(abs(control['drop']))} {'lost' if control['drop'] > 0 else 'gained'}"
    versus = f"{'loses' if control['versus'] < 0 else 'gains'} {metric.changed(abs(control['versus']))}"
    name = control["name"][:1].upper() + control["name"][1:]
    return f"{name}: {gained} by training alone. Against that one the compressed net {versus}."


def limits(budget: Data, metric: Metric) -> list[str]:
    """The budget as sentences' ends; a limit that was not set is left out."""
    found = []
    if budget.get("max_drop") is not None:
        found.append(f"at most {_allowed(budget['max_drop'], metric)} lost")
    for key, what in LIMITS.items():
        limit = budget.get(key)
        if limit is not None:
            relative = str(limit).endswith("x")
            found.append(f"{what} at most {str(limit)[:-1]} of the original's" if relative else f"{what} at most {limit}")
    return found


def _allowed(drop: float, metric: Metric) -> str:
    most = f"{metric.scaled(drop):g}"
    return f"{most} {metric.amount.replace('points', 'point') if metric.percent and most == '1' else metric.amount}"
