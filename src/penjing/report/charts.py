"""The report's charts as plain Plotly figures, each with the keys of its legend; nothing here imports Plotly.

A color is the name of a CSS variable (``--accent``): the page looks it up when it draws, so that charts follow the theme.
Plotly reads a little HTML in labels, so every word that comes from the result is escaped here once more.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from penjing.report.numbers import amount, duration, milliseconds, percent, points
from penjing.search.budget import parse_limit

Figure = dict[str, Any]
Result = Mapping[str, Any]

NETS = {"original fp32": "--original", "original default": "--default", "compressed": "--accent"}
STATUSES = {  # color, symbol, size in px; in the order of the legend
    "chosen": ("--accent", "star", 19),
    "holds": ("--accent", "circle", 11),
    "too inaccurate": ("--bad", "x", 11),
    "over the limit": ("--warn", "diamond", 12),
    "original": ("--original", "square", 13),
}
RUN_COLORS = ("--run-1", "--run-2", "--run-3", "--run-4", "--run-5", "--run-6")
DASHES = {"solid": "\u2501\u2501", "dash": "\u2013 \u2013", "dot": "\u00b7\u00b7\u00b7"}
SIGNS = DASHES | {  # the legend is text beside the chart: Plotly's own would take the chart's room on a phone
    "star": "\u2605", "circle": "\u25cf", "x": "\u2715", "diamond": "\u25c6", "square": "\u25a0", "square-open": "\u25a1",
}  # fmt: skip
NAME_LENGTH = 26  # longer layer names would leave a phone no room for bars


class Key(NamedTuple):
    """One entry of a legend."""

    sign: str
    color: str
    name: str


class Frame(NamedTuple):
    """What the chart of candidates shows: latency in ms, accuracy in percent."""

    left: float
    right: float
    bottom: float
    top: float


def figures(result: Result) -> dict[str, Figure]:
    """Every chart that the result has numbers for, by the id of its place in the page."""
    rows = [row for row in result.get("latency") or () if row["median"] is not None]
    drawn = {f"latency-{batch}": _latency([r for r in rows if r["batch"] == batch]) for batch in _unique(rows, "batch")}
    candidates = [c for c in result.get("candidates") or () if _is_measured(c)]
    if candidates:
        drawn["candidates"] = _candidates(candidates, _original(result), result.get("budget") or {})
    if result.get("layers"):
        drawn["layers"] = _layers(result["layers"])
    if result.get("training"):
        drawn["training"] = _training(result["training"])
    return drawn


def _is_measured(candidate: Result) -> bool:
    return candidate["score"] is not None and candidate["latency"] is not None


def _original(result: Result) -> Result | None:
    """The original as one more candidate, so that it is drawn like the others; None when it was not measured."""
    measured = result.get("original_candidate")
    if not measured or not _is_measured(measured):
        return None
    size = {"bytes": result["size"]["bytes"][0], "macs": result["size"]["macs"][0]}
    return {"name": result["name"], "status": "original", "drop": 0.0, "note": "", **size, **measured}


def _latency(rows: Sequence[Result]) -> Figure:
    """Median per runtime and net at one batch; the whiskers are the 10th and 90th percentile."""
    bars = []
    for net, color in NETS.items():
        own = [row for row in rows if row["net"] == net]
        up, down = [row["high"] - row["median"] for row in own], [row["median"] - row["low"] for row in own]
        told = [_told(f"{row['runtime']}, {net}", _timing(row), row["where"]) for row in own]
        looks = {"error_y": {"array": up, "arrayminus": down}, "marker": {"color": color}, "customdata": told}
        x, y = [_escape(row["runtime"]) for row in own], [row["median"] for row in own]
        bars.append({"type": "bar", "name": net, "x": x, "y": y} | looks)
    unit = _escape(rows[0]["unit"])
    highest = max(row["high"] for row in rows)  # the range is given, since Plotly's own cuts the whisker of the highest bar
    return _figure(
        bars, 320, x={"type": "category", "showgrid": False}, y={"title": {"text": unit}, "range": [0, 1.06 * highest]}
    )


def _candidates(candidates: Sequence[Result], original: Result | None, budget: Result) -> Figure:
    """Accuracy on the search split against latency, with the region that the budget allows."""
    shown = [*candidates, original] if original else candidates
    groups = {status: [c for c in shown if c["status"] == status] for status in STATUSES}
    marks = [_marks(status, group) for status, group in groups.items() if group]
    slowest, lowest = _limits(budget, original)
    xs = [c["latency"] for c in shown] + ([slowest] if slowest else [])
    ys = [100 * c["score"] for c in shown] + ([lowest] if lowest else [])
    margin = 0.15 * (max(ys) - min(ys)) or 1.0
    frame = Frame(min(xs) / 1.2, max(xs) * 1.2, min(ys) - margin, max(ys) + margin)
    ticks = _log_ticks(frame.left, frame.right)
    x = {
        "title": {"text": "latency in ms (log scale)"},
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{t:g}" for t in ticks],
    }
    x |= {"range": [math.log10(frame.left), math.log10(frame.right)]}
    y = {"title": {"text": "accuracy in %, search split"}, "range": [frame.bottom, frame.top]}
    return _figure(_budget(slowest, lowest, frame) + marks, 440, x=x, y=y)


def _marks(status: str, candidates: Sequence[Result]) -> Figure:
    color, symbol, size = STATUSES[status]
    looks = {"marker": {"color": color, "symbol": symbol, "size": size}, "customdata": [_about(c) for c in candidates]}
    return _scatter(status, [c["latency"] for c in candidates], [100 * c["score"] for c in candidates], looks)


def _about(candidate: Result) -> str:
    title = f"{candidate['name']}: {candidate['status']}"
    accuracy = f"{percent(candidate['score'])}, {points(candidate['drop'])} points lost"
    size = f"{amount(candidate['bytes'], 'B')}, {amount(candidate['macs'])} MACs"
    return _told(title, milliseconds(candidate["latency"]), accuracy, size, candidate["note"])


def _limits(budget: Result, original: Result | None) -> tuple[float | None, float | None]:
    """The longest latency in ms and the lowest accuracy in percent that the budget allows; None where it names none."""
    slowest = lowest = None
    limit = parse_limit("latency", budget["latency"]) if budget.get("latency") is not None else None
    if limit and (original or not limit.share):
        slowest = limit.of(original["latency"] if original else 0.0)
    if original and budget.get("max_drop") is not None:
        lowest = 100 * (original["score"] - budget["max_drop"])
    return slowest, lowest


def _budget(slowest: float | None, lowest: float | None, frame: Frame) -> list[Figure]:
    """The region within the budget, shaded, and the two limits as dashed lines."""
    if slowest is None and lowest is None:
        return []
    right, bottom = slowest or frame.right, lowest or frame.bottom
    corners = [frame.left, right, right, frame.left], [bottom, bottom, frame.top, frame.top]
    sign = {"symbol": "square-open", "color": "--accent"}  # for the legend alone
    shaded = {"mode": "none", "fill": "toself", "fillcolor": "--region", "hoverinfo": "skip", "marker": sign}
    drawn = [_scatter("within the budget", *corners, shaded)]
    lines: list[tuple[str, list[float], list[float], str]] = []
    if slowest is not None:
        lines.append((f"limit {milliseconds(slowest)}", [slowest, slowest], [frame.bottom, frame.top], "dash"))
    if lowest is not None:
        lines.append((f"limit {lowest:.2f} %", [frame.left, frame.right], [lowest, lowest], "dot"))
    for name, x, y, dash in lines:
        line = {"color": "--limit", "dash": dash, "width": 1.5}
        drawn.append(_scatter(name, x, y, {"mode": "lines", "line": line, "hoverinfo": "skip"}))
    return drawn


def _layers(layers: Sequence[Result]) -> Figure:
    """Output channels of every layer, the width left drawn inside the width before."""
    places = list(range(len(layers)))
    before, after = [layer["before"][1] for layer in layers], [layer["after"][1] for layer in layers]
    text = [f"{new} of {old}" if new != old else str(new) for new, old in zip(after, before, strict=True)]
    bar = {"type": "bar", "orientation": "h", "y": places, "customdata": [_about_layer(layer) for layer in layers]}
    wide = bar | {"name": "original", "x": before, "width": 0.8, "marker": {"color": "--original-soft"}}
    wide |= {"text": text, "textposition": "outside", "cliponaxis": False}
    narrow = bar | {"name": "compressed", "x": after, "width": 0.4, "marker": {"color": "--accent"}}
    y = {"tickvals": places, "ticktext": [_short(layer["name"]) for layer in layers], "tickfont": {"size": 11}}
    y |= {"range": [len(layers) - 0.4, -0.6], "showgrid": False}
    height = 110 + (22 if len(layers) <= 40 else 17) * len(layers)
    figure = _figure([wide, narrow], height, x={"title": {"text": "output channels"}, "rangemode": "tozero"}, y=y)
    margin = {"l": 8, "r": 76, "t": 8, "b": 8}  # at the right, room for the widest text beside the longest bar
    figure["layout"] |= {"barmode": "overlay", "margin": margin}
    return figure


def _about_layer(layer: Result) -> str:
    (old_in, old_out), (new_in, new_out) = layer["before"], layer["after"]
    widths = f"{old_in} in, {old_out} out: now {new_in}, {new_out}"
    macs = " to ".join(amount(n) for n in layer["macs"])
    return _told(layer["name"], f"{layer['kind']} {layer['kernel']}", widths, f"{macs} MACs")


def _training(epochs: Sequence[Result]) -> Figure:
    """Loss by epoch, one line for each run."""
    few = max(e["epoch"] for e in epochs) <= 12
    lines, dashes = [], list(DASHES)  # dashes for more runs than there are colors
    for i, run in enumerate(_unique(epochs, "run")):
        own = [e for e in epochs if e["run"] == run]
        told = [_about_epoch(e) for e in own]
        line = {"color": RUN_COLORS[i % len(RUN_COLORS)], "dash": dashes[i // len(RUN_COLORS) % len(dashes)]}
        looks = {"mode": "lines+markers" if few else "lines", "line": line, "customdata": told}
        lines.append(_scatter(run, [e["epoch"] for e in own], [e["loss"] for e in own], looks))
    x = {"title": {"text": "epoch"}, "tickformat": "d"} | ({"dtick": 1} if few else {})
    return _figure(lines, 360, x=x, y={"title": {"text": "training loss"}, "rangemode": "tozero"})


def _about_epoch(epoch: Result) -> str:
    title = f"{epoch['run']}, epoch {epoch['epoch']}"
    return _told(title, f"loss {epoch['loss']:.4g}", f"learning rate {epoch['lr']:.3g}", duration(epoch["seconds"]))


def _scatter(name: str, x: Sequence[float], y: Sequence[float], looks: Figure) -> Figure:
    return {"type": "scatter", "mode": "markers", "name": name, "x": list(x), "y": list(y)} | looks


def _figure(data: list[Figure], height: int, *, x: Figure, y: Figure) -> Figure:
    """A chart; what all charts have in common (fonts, lines, background) is in the page's template."""
    return {"data": data, "layout": {"height": height, "xaxis": x, "yaxis": y}, "keys": [_key(trace) for trace in data]}


def _key(trace: Figure) -> Key:
    looks = trace.get("line") or trace["marker"]
    return Key(SIGNS[looks.get("dash") or looks.get("symbol", "square")], looks["color"], trace["name"])


def _told(*lines: str) -> str:
    """Lines for the box that appears over a point, the first one bold."""
    first, *rest = (_escape(line) for line in lines if line)
    return "<br>".join([f"<b>{first}</b>", *rest])


def _timing(row: Result) -> str:
    unit = row["unit"]
    return f"{milliseconds(row['median'], unit)} ({milliseconds(row['low'], unit)} to {milliseconds(row['high'], unit)})"


def _escape(text: object) -> str:
    return html.escape(str(text), quote=False)


def _short(name: str) -> str:
    return _escape(name if len(name) <= NAME_LENGTH else "\u2026" + name[1 - NAME_LENGTH :])


def _unique(rows: Sequence[Result], key: str) -> list[Any]:
    """The values of a column, each once, in their order."""
    return list(dict.fromkeys(row[key] for row in rows))


def _log_ticks(left: float, right: float) -> list[float]:
    """Round numbers between two latencies: 1, 2, 5, 10 ... or finer when the ends lie close."""
    steps = (1, 2, 5) if right / left > 12 else (1, 1.5, 2, 3, 4, 5, 7)
    exponents = range(math.floor(math.log10(left)), math.ceil(math.log10(right)) + 1)
    return [round(s * 10.0**e, 12) for e in exponents for s in steps if left <= s * 10.0**e <= right]
