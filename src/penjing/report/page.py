"""A run's result as one HTML page: for the manager the verdict and four numbers, for the engineer all the rest.

This file turns numbers into words and rows, ``charts.py`` into figures; ``page.html.jinja`` only lays them out.
Plotly's script is written into the page, which therefore fetches nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from penjing.files import whole_file
from penjing.report.charts import NETS, figures
from penjing.report.numbers import NOTHING, SPACE, amount, duration, milliseconds, percent, points, times

Result = Mapping[str, Any]


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


class Timing(NamedTuple):
    """Latency on one runtime at one batch: a median and a spread for each of ``NETS``, and what was gained."""

    runtime: str
    batch: int
    cells: list[tuple[str, str]]
    gains: list[str]  # against the original in fp32, and in the runtime's default precision
    budgeted: bool  # whether the budget's latency is this one


class Kernels(NamedTuple):
    """What one runtime executes; its layers are the kernels with weights, where the result says which those are."""

    runtime: str
    int8: int  # layers
    total: int
    counts: list[tuple[str, str, int]]  # op, precision, how many
    others: dict[tuple[str, str, str], list[str]]  # op, precision, reason: the layers that are not int8


class Stage(NamedTuple):
    """What one stage cost."""

    name: str
    seconds: str
    share: float  # of the longest stage


def write_report(result: Result, path: Path) -> None:
    """Write the page, whole or not at all."""
    page = render(result)
    with whole_file(path) as part:
        part.write_text(page, encoding="utf-8")


def render(result: Result) -> str:
    """The page for the content of a run's ``result.json``; a section whose part is missing or empty is left out."""
    from jinja2 import Environment, StrictUndefined  # here and not above: ``import penjing`` stays light
    from plotly.offline import get_plotlyjs

    source = resources.files("penjing.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    page: str = environment.from_string(source).render(
        result=result,
        created=_date(result["created"]),
        budget=_budget(result.get("budget") or {}),
        tiles=_tiles(result),
        sizes=_sizes(result),
        timings=_timings(result),
        measured=_measured(result),
        candidates=_candidates(result),
        kernels=[_kernels(runtime, layers) for runtime, layers in (result.get("kernels") or {}).items() if layers],
        agreement=_agreement(result),
        stages=_stages(result),
        spent=duration(sum(stage["seconds"] for stage in result.get("stages") or ())),
        facts=_facts(result),
        figures=figures(result),
        plotly=get_plotlyjs(),
    )
    return page


def _tiles(result: Result) -> list[Tile]:
    """Faster, smaller, accuracy lost, share of the work left; what was not measured is left out."""
    accuracy, size, speed = result["accuracy"], result["size"], result.get("speedup")
    tiles = []
    if speed and speed["value"] is not None:
        default = f"; {times(speed['versus_default'])} against the default precision" if speed["versus_default"] else ""
        note = f"at batch {speed['batch']}, against {speed['against']}, each in its faster runtime{default}"
        tiles.append(Tile(times(speed["value"]), "faster" if speed["value"] >= 1 else "the speed", note))
    before, after = size["bytes"]
    tiles.append(Tile(times(before / after), "smaller", f"file of {amount(before, 'B')}, now {amount(after, 'B')}"))
    lost = accuracy["drop"] >= 0
    label = "points of accuracy lost" if lost else "points of accuracy gained"
    note = f"95{SPACE}% interval of the loss: {points(accuracy['low'])} to {points(accuracy['high'])}"
    tiles.append(Tile(points(abs(accuracy["drop"])), label, note))
    before, after = size["macs"]
    tiles.append(
        Tile(
            f"{100 * after / before:.0f}{SPACE}%",
            "of the MACs left",
            f"{amount(before)} multiply-adds an input, now {amount(after)}",
        )
    )
    return tiles


def _sizes(result: Result) -> list[Row]:
    accuracy = result["accuracy"]
    change, interval = f"{points(-accuracy['drop'])} points", f"{points(-accuracy['high'])} to {points(-accuracy['low'])}"
    measured = f"{accuracy['metric']}, {accuracy['samples']} samples"
    rows = [Row("Accuracy", percent(accuracy["before"]), percent(accuracy["after"]), change, measured, interval)]
    for what, key, unit in (("Parameters", "parameters", ""), ("MACs an input", "macs", ""), ("File", "bytes", "B")):
        before, after = result["size"][key]
        rows.append(Row(what, amount(before, unit), amount(after, unit), f"{times(before / after)} less"))
    return rows


def _timings(result: Result) -> list[Timing]:
    rows = {(row["runtime"], row["batch"], row["net"]): row for row in result.get("latency") or ()}
    main = result["target"], (result.get("speedup") or {}).get("batch")
    timings = []
    for runtime, batch in dict.fromkeys((runtime, batch) for runtime, batch, _ in rows):
        nets = [rows.get((runtime, batch, net)) for net in NETS]
        *originals, small = [row["median"] if row else None for row in nets]
        gains = [times(m / small) if m and small else NOTHING for m in originals]
        timings.append(Timing(runtime, batch, [_cell(row) for row in nets], gains, (runtime, batch) == main))
    return timings


def _cell(row: Result | None) -> tuple[str, str]:
    if row is None or row["median"] is None:
        return NOTHING, ""
    return milliseconds(row["median"], row["unit"]), f"{milliseconds(row['low'], '')} to {milliseconds(row['high'], '')}"


def _measured(result: Result) -> str:
    """How and where the latencies were taken."""
    rows = result.get("latency") or ()
    samples = sorted({row["samples"] for row in rows})
    runs = " to ".join(str(n) for n in dict.fromkeys((samples[0], samples[-1]))) if samples else "0"
    places = "; ".join(dict.fromkeys(row["where"] for row in rows))
    budgeted = " Shaded: where the budget is judged." if result.get("speedup") else ""
    return f"Median of {runs} runs, below it the 10th to 90th percentile. {places}.{budgeted}"


def _candidates(result: Result) -> list[Result]:
    """The table under the chart: the numbers of each candidate as text."""
    return [
        {
            "name": c["name"],
            "status": c["status"],
            "cells": [
                percent(c["score"]),
                points(c["drop"]),
                milliseconds(c["latency"]),
                amount(c["bytes"], "B"),
                amount(c["macs"]),
            ],
            "note": c["note"],
        }
        for c in result.get("candidates") or ()
    ]


def _kernels(runtime: str, kernels: Sequence[Result]) -> Kernels:
    counts = Counter((kernel["op"], kernel["precision"]) for kernel in kernels)
    layers = [kernel for kernel in kernels if kernel.get("weighted", True)]
    others: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for layer in layers:
        if layer["precision"] != "int8":
            others[layer["op"], layer["precision"], layer["note"] or "no reason given"].append(layer["layer"])
    table = [(op, precision, n) for (op, precision), n in counts.most_common()]
    return Kernels(runtime, len(layers) - sum(map(len, others.values())), len(layers), table, others)


def _agreement(result: Result) -> list[tuple[str, str, str, str]]:
    agreement = result.get("agreement") or {}
    return [(name, percent(a["argmax"]), f"{a['cosine']:.6f}", f"{a['largest']:.3g}") for name, a in agreement.items()]


def _stages(result: Result) -> list[Stage]:
    stages = result.get("stages") or ()
    longest = max((stage["seconds"] for stage in stages), default=0) or 1
    return [Stage(s["name"], duration(s["seconds"]), s["seconds"] / longest) for s in stages]


def _facts(result: Result) -> dict[str, list[tuple[str, str]]]:
    """The short lists at the end: title, then names and values."""
    titles = {"machine": "Machine and versions", "settings": "Settings", "files": "Files beside this page"}
    facts = {title: list(_flat(result.get(part) or {})) for part, title in titles.items()}
    return {title: rows for title, rows in facts.items() if rows}


def _flat(facts: Result, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values as text, those of an inner mapping after its own name and a dot."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            listed = ", ".join(str(v) for v in value) if isinstance(value, list | tuple) else value
            yield f"{prefix}{name}", NOTHING if listed in ("", None) else str(listed)


def _budget(budget: Result) -> list[str]:
    """The limits as sentences' ends; a limit that was not set is left out."""
    limits = []
    if budget.get("max_drop") is not None:
        most = 100 * budget["max_drop"]
        limits.append(f"at most {most:g} point{'' if most == 1 else 's'} of accuracy lost")
    for key, what in (("latency", "latency"), ("bytes", "file size"), ("macs", "MACs")):
        limit = budget.get(key)
        if limit is not None:
            relative = str(limit).endswith("x")
            limits.append(f"{what} at most {str(limit)[:-1]} of the original's" if relative else f"{what} at most {limit}")
    return limits


def _date(text: str) -> str:
    when = datetime.fromisoformat(text)
    return f"{when:%B} {when.day}, {when:%Y, %H:%M} {when.tzname() or ''}".strip()
