"""The chart of candidates: score on the search split against latency, with the region that the budget allows."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from penjing.report.figure import Data, Figure, figure, scatter, told
from penjing.report.numbers import Metric, amount, milliseconds
from penjing.search.budget import parse_limit

STATUSES = {  # color, symbol, size in px; in the order of the legend
    "chosen": ("--accent", "star", 19),
    "holds": ("--accent", "circle", 11),
    "too inaccurate": ("--bad", "x", 11),
    "over the limit": ("--warn", "diamond", 12),
    "does not hold": ("--bad", "triangle-up", 12),  # on the confirm split, though it did on the search split
    "not tried": ("--muted", "circle", 9),
    "original": ("--original", "square", 13),
}
TICKS = 8  # of the axis of latency, at most, about
HOLLOW = ("float", "untrained")  # kinds that no training touched


class Frame(NamedTuple):
    """What the chart shows: latency in ms, and the score as it is drawn."""

    left: float
    right: float
    bottom: float
    top: float


def tradeoff(result: Data, metric: Metric) -> Figure | None:
    """Every candidate that has a score and a latency, be it a predicted one."""
    candidates = [_placed(c) for c in result.get("candidates") or () if is_drawn(c)]
    if not candidates:
        return None
    original = _original(result)
    shown = candidates
    if original and not any(c.get("kind") == "original" for c in candidates):
        shown = [*candidates, original]
    slowest, lowest = _limits(result.get("budget") or {}, original, metric)
    frame = _frame(shown, slowest, lowest, metric)
    data = _budget(slowest, lowest, frame, metric) + _marks(shown, frame, metric)
    ticks = _log_ticks(frame.left, frame.right)
    x: Figure = {
        "title": {"text": "latency in ms (log scale)"},
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{t:g}" for t in ticks],
    }
    x |= {"range": [math.log10(frame.left), math.log10(frame.right)], "zeroline": False}
    y = {"title": {"text": f"{metric.axis}, search split"}, "range": [frame.bottom, frame.top], "zeroline": False}
    return figure(data, 440, x=x, y=y)


def is_drawn(candidate: Data) -> bool:
    """Whether the chart has a place for it."""
    return candidate["score"] is not None and (candidate["latency"] or candidate.get("predicted")) is not None


def _placed(candidate: Data) -> Data:
    """The candidate with the latency at which it is drawn, and the status that gives its mark."""
    measured = candidate["latency"] is not None
    first = candidate.get("kind") == "original" and candidate["status"] != "chosen"
    place = {"place": candidate["latency"] if measured else candidate["predicted"]}
    return {**candidate, **place, "mark": "original" if first else candidate["status"]}


def _original(result: Data) -> Data | None:
    """The original as one more candidate, so that it is drawn like the others; None when it was not measured."""
    measured = result.get("original_candidate")
    if not measured or measured["score"] is None or measured["latency"] is None:
        return None
    size = {"bytes": result["size"]["bytes"][0], "macs": result["size"]["macs"][0]}
    return _placed(
        {"name": result["name"], "kind": "original", "status": "original", "drop": 0.0, "note": "", **size, **measured}
    )


def _frame(shown: Sequence[Data], slowest: float | None, lowest: float | None, metric: Metric) -> Frame:
    """Room for all, except for scores so low that the others would lie in one line."""
    xs = [c["place"] for c in shown] + ([slowest] if slowest is not None else [])
    ys = sorted((metric.scaled(c["score"]) for c in shown), reverse=True)
    bottom, top = ys[-1], ys[0]
    if lowest is not None:
        third = ys[len(ys) // 3]  # a third of the candidates stays in sight however strict the limit
        bottom, top = min(lowest, max(bottom, top - max(4 * (top - lowest), 2 * (top - third)))), max(top, lowest)
    margin = 0.15 * (top - bottom) or (1.0 if metric.percent else 0.05 * abs(top) or 1.0)
    return Frame(min(xs) / 1.2, max(xs) * 1.2, bottom - margin, top + margin)


def _marks(shown: Sequence[Data], frame: Frame, metric: Metric) -> list[Figure]:
    """The candidates by status, hollow where nothing was trained; those below the frame lie on its lower edge."""
    marks, edge = [], frame.bottom + 0.04 * (frame.top - frame.bottom)
    below = [c for c in shown if metric.scaled(c["score"]) < frame.bottom]
    for status, (color, symbol, size) in STATUSES.items():
        own = [c for c in shown if c["mark"] == status and c not in below]
        hollow = [c for c in own if c.get("kind") in HOLLOW]
        solid = [c for c in own if c not in hollow]
        for group, name, sign in ((solid, status, symbol), (hollow, f"{status}, not trained", f"{symbol}-open")):
            if group:
                marker = {"color": color, "symbol": sign, "size": size}
                if group is hollow:
                    marker["line"] = {"color": color, "width": 2}
                ys = [metric.scaled(c["score"]) for c in group]
                marks.append(_points(name, group, ys, marker, metric))
    if below:
        marker = {"color": "--bad", "symbol": "triangle-down", "size": 13}
        marks.append(_points("lower than the chart reaches", below, [edge] * len(below), marker, metric))
    return marks


def _points(name: str, candidates: Sequence[Data], ys: Sequence[float], marker: Figure, metric: Metric) -> Figure:
    looks = {"marker": marker, "customdata": [_about(c, metric) for c in candidates]}
    return scatter(name, [c["place"] for c in candidates], ys, looks)


def _about(candidate: Data, metric: Metric) -> str:
    title = f"{candidate['name']}: {candidate['status']}"
    drop = f", {metric.changed(candidate['drop'])} lost" if candidate["drop"] is not None else ""
    predicted = milliseconds(candidate.get("predicted"))
    latency = f"{milliseconds(candidate['latency'])}" if candidate["latency"] is not None else "not measured"
    if candidate.get("predicted") is not None:
        latency += f" (predicted {predicted})"
    size = f"{amount(candidate['bytes'], 'B')}, {amount(candidate['macs'])} MACs"
    trained = f"{candidate['minutes']:.1f} min of training" if candidate.get("minutes") else ""
    return told(
        title, latency, metric.score(candidate["score"]) + drop, size, candidate.get("kind") or "", trained, candidate["note"]
    )


def _limits(budget: Data, original: Data | None, metric: Metric) -> tuple[float | None, float | None]:
    """The longest latency in ms and the lowest score that the budget allows; None where it names none."""
    slowest = lowest = None
    limit = parse_limit("latency", budget["latency"]) if budget.get("latency") is not None else None
    if limit and (original or not limit.share):
        slowest = limit.of(original["latency"] if original else 0.0)
    if original and budget.get("max_drop") is not None:
        lowest = metric.scaled(original["score"] - budget["max_drop"])
    return slowest, lowest


def _budget(slowest: float | None, lowest: float | None, frame: Frame, metric: Metric) -> list[Figure]:
    """The region within the budget, shaded, and the two limits as dashed lines."""
    if slowest is None and lowest is None:
        return []
    right, bottom = frame.right if slowest is None else slowest, frame.bottom if lowest is None else lowest
    corners = [frame.left, right, right, frame.left], [bottom, bottom, frame.top, frame.top]
    sign = {"symbol": "square-open", "color": "--accent"}  # for the legend alone
    shaded = {"mode": "none", "fill": "toself", "fillcolor": "--region", "hoverinfo": "skip", "marker": sign}
    drawn = [scatter("within the budget", *corners, shaded)]
    lines: list[tuple[str, list[float], list[float], str]] = []
    if slowest is not None:
        lines.append((f"limit {milliseconds(slowest)}", [slowest, slowest], [frame.bottom, frame.top], "dash"))
    if lowest is not None:
        name = f"limit {metric.score(lowest / 100 if metric.percent else lowest)}"
        lines.append((name, [frame.left, frame.right], [lowest, lowest], "dot"))
    for name, x, y, dash in lines:
        line = {"color": "--limit", "dash": dash, "width": 1.5}
        drawn.append(scatter(name, x, y, {"mode": "lines", "line": line, "hoverinfo": "skip"}))
    return drawn


def _log_ticks(left: float, right: float) -> list[float]:
    """Round numbers between two latencies: 1, 2, 5, 10 ... or finer when the ends lie close."""
    exponents = range(math.floor(math.log10(left)), math.ceil(math.log10(right)) + 1)
    finer = [[n / 10**d for n in range(10**d, 10 ** (d + 1))] for d in (1, 2, 3)]
    found: list[float] = []
    for steps in ([1, 2, 5] if right / left > 12 else [1, 1.5, 2, 3, 4, 5, 7], *finer):
        found = [round(s * 10.0**e, 12) for e in exponents for s in steps if left <= s * 10.0**e <= right]
        if len(found) > 1:
            break
    return found[:: max(1, math.ceil(len(found) / TICKS))]
