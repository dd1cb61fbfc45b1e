"""Whether the small net generalizes like the original: by class, under corruptions, and the images that it forgot."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from penjing.report.figure import Data, Figure, figure, rows_axis, rows_height, scatter, short_start, told, unique
from penjing.report.numbers import Metric, percent

CLASSES = 30  # more rows than this nobody reads; the worst are shown
NETS = {"original": ("--original", "square", 10), "compressed": ("--accent", "circle", 9)}
IMAGE = re.compile(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+=*")


class Forgotten(NamedTuple):
    """An image that the original got right and the small net gets wrong."""

    image: str  # a data URL; empty where there is none
    truth: str
    now: str
    sure: str
    index: Any


class Generalization(NamedTuple):
    """The words of the section; its charts are drawn from the result."""

    samples: str
    warnings: list[str]
    sentences: list[str]
    classes: str  # which are shown
    panels: list[tuple[str, str]]  # id of the chart and name of the corruption
    forgotten: list[Forgotten]


def generalization(result: Data, metric: Metric) -> Generalization | None:
    """The section's content; None without any."""
    part = result.get("generalization")
    if not part:
        return None
    classes, corruptions = _scored(part.get("per_class") or ()), _scored(part.get("corruptions") or ())
    shown = (
        f"the {CLASSES} of {len(classes)} classes that lost most" if len(classes) > CLASSES else "the one that lost most on top"
    )
    return Generalization(
        samples=f"{part['samples']:,}" if part.get("samples") else "",
        warnings=list(part.get("warnings") or ()),
        sentences=[said for said in (_flips(part), _calibration(part), _corrupted(corruptions, metric)) if said],
        classes=shown,
        panels=[(f"corruption-{i}", name) for i, name in enumerate(unique(corruptions, "name"))],
        forgotten=[_forgotten(row) for row in part.get("forgotten") or ()],
    )


def class_chart(classes: Sequence[Data], metric: Metric) -> Figure | None:
    """Score of each class before and after, joined by a line; the class that lost most on top."""
    rows = sorted(_scored(classes), key=lambda row: row["after"] - row["before"])[:CLASSES]
    if not rows:
        return None
    places = list(range(len(rows)))
    names = [str(row.get("label") or row["class"]) for row in rows]
    about = [_about_class(name, row, metric) for name, row in zip(names, rows, strict=True)]
    marks = []
    for net, key in zip(NETS, ("before", "after"), strict=True):
        color, symbol, size = NETS[net]
        looks = {"marker": {"color": color, "symbol": symbol, "size": size}, "customdata": about}
        marks.append(scatter(net, [metric.scaled(row[key]) for row in rows], places, looks))
    lost = [metric.scaled(row["before"] - row["after"]) for row in rows]
    join = {"type": "data", "symmetric": False, "width": 0, "thickness": 2, "color": "--original"}  # back to the score before
    marks[1]["error_x"] = join | {"array": [max(d, 0) for d in lost], "arrayminus": [max(-d, 0) for d in lost]}
    y = rows_axis([short_start(name) for name in names]) | {"showgrid": True}
    return figure(marks, rows_height(len(rows)), x={"title": {"text": metric.axis}, "zeroline": False}, y=y)


def corruption_charts(corruptions: Sequence[Data], metric: Metric) -> dict[str, Figure]:
    """A panel for each corruption, score against severity; all have the same scale."""
    rows = _scored(corruptions)
    if not rows:
        return {}
    ends = [metric.scaled(row[key]) for row in rows for key in ("before", "after")]
    margin = 0.08 * (max(ends) - min(ends)) or 1.0
    reach = [min(ends) - margin, max(ends) + margin]
    names = unique(rows, "name")
    return {f"corruption-{i}": _panel([r for r in rows if r["name"] == name], metric, reach) for i, name in enumerate(names)}


def _panel(rows: Sequence[Data], metric: Metric, reach: Sequence[float]) -> Figure:
    rows = sorted(rows, key=lambda row: row["severity"])
    severities = [row["severity"] for row in rows]
    lines = []
    for net, key in zip(NETS, ("before", "after"), strict=True):
        color, symbol, size = NETS[net]
        line = {"color": color, "dash": "dash" if key == "before" else "solid"}
        looks = {"mode": "lines+markers", "line": line, "marker": {"symbol": symbol, "size": size - 2}}
        about = [_about_corruption(row, net, row[key], metric) for row in rows]
        lines.append(scatter(net, severities, [metric.scaled(row[key]) for row in rows], looks | {"customdata": about}))
    pad = 0.12 * (severities[-1] - severities[0]) or 0.5
    x = {"title": {"text": "severity"}, "tickvals": severities, "range": [severities[0] - pad, severities[-1] + pad]}
    y = {"range": list(reach), "zeroline": False}
    return figure(lines, 200, x=x | {"zeroline": False}, y=y)


def _scored(rows: Sequence[Data]) -> list[Data]:
    return [row for row in rows if row["before"] is not None and row["after"] is not None]


def _about_class(name: str, row: Data, metric: Metric) -> str:
    scores = f"{metric.score(row['before'])}, now {metric.score(row['after'])}"
    return told(name, scores, f"{metric.changed(row['before'] - row['after'])} lost", f"{row['samples']} samples")


def _about_corruption(row: Data, net: str, score: float, metric: Metric) -> str:
    lost = f"{metric.changed(row['before'] - row['after'])} lost between the two"
    return told(f"{row['name']}, severity {row['severity']:g}", f"{net}: {metric.score(score)}", lost)


def _flips(part: Data) -> str:
    flips = part.get("flips")
    if not flips:
        return ""
    shares = f"{percent(flips['flipped'])} of the answers changed"
    return f"{shares}: {flips['worse']:,} from right to wrong, {flips['better']:,} from wrong to right."


def _calibration(part: Data) -> str:
    error = part.get("calibration")
    if not error:
        return ""
    return f"Calibration error: {percent(error['before'])} before, {percent(error['after'])} after."


def _corrupted(rows: Sequence[Data], metric: Metric) -> str:
    if not rows:
        return ""
    before, after = (sum(row[key] for row in rows) / len(rows) for key in ("before", "after"))
    change = f"{metric.changed(abs(before - after))} {'lost' if before >= after else 'gained'}"
    return f"Mean over all corruptions: {metric.score(before)} before, {metric.score(after)} after, {change}."


def _forgotten(row: Data) -> Forgotten:
    image = row.get("image") or ""
    sure = f"{100 * row['confidence']:.0f}\u00a0% sure" if row.get("confidence") is not None else ""
    return Forgotten(image if IMAGE.fullmatch(image) else "", row["label"], row["now"], sure, row["index"])
