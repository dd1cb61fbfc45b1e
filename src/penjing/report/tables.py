"""The page's tables and lists: numbers of the result as text."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from penjing.report.charts import NETS
from penjing.report.figure import Data
from penjing.report.numbers import NOTHING, Metric, amount, duration, milliseconds, percent, times
from penjing.report.tradeoff import is_drawn


class Timing(NamedTuple):
    """Latency on one runtime at one batch: a median and a spread for each of ``NETS``, and what was gained."""

    runtime: str
    batch: int
    cells: list[tuple[str, str]]
    gains: list[str]  # against the original in fp32, and in the runtime's default precision
    budgeted: bool  # whether the budget's latency is this one


class Candidates(NamedTuple):
    """Every candidate as text; columns that none of them fills are left out."""

    columns: list[str]
    rows: list[tuple[Data, list[str]]]  # with a cell for each column
    about: list[str]  # sentences


class Kernels(NamedTuple):
    """What one runtime executes; its layers are the kernels with weights, where the result says which those are."""

    runtime: str
    int8: int  # layers
    total: int
    counts: list[tuple[str, str, int]]  # op, precision, how many
    others: dict[tuple[str, str, str], list[str]]  # op, precision, reason: the layers that are not int8


class Slow(NamedTuple):
    """A layer that gained little or nothing."""

    layer: str
    why: str
    time: str
    gain: str
    lost: bool  # slower than before


class Stage(NamedTuple):
    """What one stage cost and gave."""

    name: str
    seconds: str
    share: float  # of the longest stage
    gave: str


def timings(result: Data) -> list[Timing]:
    """A row for each runtime and batch."""
    rows = {(row["runtime"], row["batch"], row["net"]): row for row in result.get("latency") or ()}
    main = result["target"], (result.get("speedup") or {}).get("batch")
    found = []
    for runtime, batch in dict.fromkeys((runtime, batch) for runtime, batch, _ in rows):
        nets = [rows.get((runtime, batch, net)) for net in NETS]
        *originals, small = [row["median"] if row else None for row in nets]
        gains = [times(m / small) if m and small else NOTHING for m in originals]
        found.append(Timing(runtime, batch, [_cell(row) for row in nets], gains, (runtime, batch) == main))
    return found


def _cell(row: Data | None) -> tuple[str, str]:
    if row is None or row["median"] is None:
        return NOTHING, ""
    return milliseconds(row["median"], row["unit"]), f"{milliseconds(row['low'], '')} to {milliseconds(row['high'], '')}"


def measured(result: Data) -> str:
    """How and where the latencies were taken."""
    rows = result.get("latency") or ()
    samples = sorted({row["samples"] for row in rows})
    runs = " to ".join(str(n) for n in dict.fromkeys((samples[0], samples[-1]))) if samples else "0"
    places = "; ".join(dict.fromkeys(row["where"] for row in rows))
    budgeted = " Shaded: where the budget is judged." if result.get("speedup") else ""
    return f"Median of {runs} runs, below it the 10th to 90th percentile. {places}.{budgeted}"


def candidates(result: Data, metric: Metric) -> Candidates:
    """The table under the chart: the numbers of each candidate as text."""
    rows = result.get("candidates") or ()
    cells: dict[str, Callable[[Data], str]] = {
        metric.noun: lambda c: metric.score(c["score"]),
        f"{'points' if metric.percent else metric.unit} lost".strip(): lambda c: metric.change(c["drop"]),
        "latency": lambda c: milliseconds(c["latency"]),
        "predicted": lambda c: milliseconds(c.get("predicted")),
        "file": lambda c: amount(c["bytes"], "B"),
        "MACs": lambda c: amount(c["macs"]),
        "training": lambda c: duration(60 * c["minutes"]) if c.get("minutes") else NOTHING,
    }
    columns = [name for name, cell in cells.items() if any(cell(c) != NOTHING for c in rows)]
    table: list[tuple[Data, list[str]]] = [({"kind": "", **c}, [cells[name](c) for name in columns]) for c in rows]
    return Candidates(columns, table, [said for said in (_prediction(result), _undrawn(rows)) if said])


def _prediction(result: Data) -> str:
    plan = result.get("plan")
    if not plan or not plan["predicted"] or plan["measured"] is None:
        return ""
    off = 100 * (plan["predicted"] / plan["measured"] - 1)
    side = f"{abs(off):.1f} % too {'slow' if off > 0 else 'fast'}" if abs(off) >= 0.05 else "exact"
    predicted, found = milliseconds(plan["predicted"]), milliseconds(plan["measured"])
    return (
        f"The plan predicted {predicted} for the chosen one before it was built; measured: {found} (the prediction was {side})."
    )


def _undrawn(rows: Sequence[Data]) -> str:
    count = sum(not is_drawn(c) for c in rows)
    if not count or count == len(rows):
        return ""
    stand = "was not measured and stands" if count == 1 else "were not measured and stand"
    return f"{count} of {len(rows)} {stand} only in the table."


def kernels(runtime: str, rows: Sequence[Data]) -> Kernels:
    """The kernels of one runtime, counted."""
    counts = Counter((kernel["op"], kernel["precision"]) for kernel in rows)
    layers = [kernel for kernel in rows if kernel.get("weighted", True)]
    others: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for layer in layers:
        if layer["precision"] != "int8":
            others[layer["op"], layer["precision"], layer["note"] or "no reason given"].append(layer["layer"])
    table = [(op, precision, n) for (op, precision), n in counts.most_common()]
    return Kernels(runtime, len(layers) - sum(map(len, others.values())), len(layers), table, others)


def agreement(result: Data) -> list[tuple[str, str, str, str]]:
    """The file against the trained net: runtime, same answer (of a classifier), cosine, largest difference."""
    rows = (result.get("agreement") or {}).items()
    return [(name, percent(a.get("argmax")), _digits(a["cosine"], ".6f"), _digits(a["largest"], ".3g")) for name, a in rows]


def _digits(value: float | None, form: str) -> str:
    return NOTHING if value is None else f"{value:{form}}"


def slower(result: Data) -> list[Slow]:
    """The layers that gained least, the longest first."""
    rows = sorted(result.get("slower") or (), key=lambda row: -row["ms"])
    return [Slow(r["layer"], r["why"], milliseconds(r["ms"]), times(r["gain"]), r["gain"] < 1) for r in rows]


def slower_sentence(result: Data) -> str:
    """What the runtime's default precision leaves of the gain, when that is nothing."""
    speed = result.get("speedup") or {}
    ratio = speed.get("versus_default")
    if not ratio or ratio >= 1 or result.get("unchanged"):
        return ""
    return (
        f"In the runtime's default precision the original is the faster of the two: the compressed net has {times(ratio)} its "
        f"speed at batch {speed['batch']}."
    )


def stages(result: Data) -> list[Stage]:
    """Every stage in its order."""
    rows = result.get("stages") or ()
    longest = max((row["seconds"] for row in rows), default=0) or 1
    return [Stage(s["name"], duration(s["seconds"]), s["seconds"] / longest, s.get("gave") or "") for s in rows]


def spent(result: Data) -> str:
    """The time of all stages."""
    return duration(sum(stage["seconds"] for stage in result.get("stages") or ()))


def facts(result: Data) -> dict[str, list[tuple[str, str]]]:
    """The short lists at the end: title, then names and values."""
    titles = {"machine": "Machine and versions", "settings": "Settings", "files": "Files beside this page"}
    found = {title: list(_flat(result.get(part) or {})) for part, title in titles.items()}
    return {title: rows for title, rows in found.items() if rows}


def _flat(parts: Data, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values as text, those of an inner mapping after its own name and a dot."""
    for name, value in parts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            listed = ", ".join(str(v) for v in value) if isinstance(value, list | tuple) else value
            yield f"{prefix}{name}", NOTHING if listed in ("", None) else str(listed)
