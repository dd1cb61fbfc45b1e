"""What all charts share: plain Plotly figures with the keys of their legends; nothing here imports Plotly.

A color is the name of a CSS variable (``--accent``): the page looks it up when it draws, so that charts follow the theme.
Plotly reads a little HTML in labels, so every word that comes from the result is escaped here once more.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Figure = dict[str, Any]
Data = Mapping[str, Any]  # a result as its file holds it, or a part of one

DASHES = {"solid": "\u2501\u2501", "dash": "\u2013 \u2013", "dot": "\u00b7\u00b7\u00b7"}
PATTERNS = {"/": "\u25a8", "-": "\u25a4"}
SIGNS = DASHES | PATTERNS | {  # the legend is text beside the chart: Plotly's own would take the chart's room on a phone
    "star": "\u2605", "circle": "\u25cf", "x": "\u2715", "diamond": "\u25c6", "square": "\u25a0", "triangle-down": "\u25bc",
    "star-open": "\u2606", "circle-open": "\u25cb", "x-open": "\u2573", "diamond-open": "\u25c7", "square-open": "\u25a1",
    "triangle-up": "\u25b2", "triangle-up-open": "\u25b3",
}  # fmt: skip
NAME_LENGTH = 24  # longer names would leave a phone no room for bars


class Key(NamedTuple):
    """One entry of a legend."""

    sign: str
    color: str
    name: str


def figure(data: list[Figure], height: int, *, x: Figure, y: Figure) -> Figure:
    """A chart; what all charts have in common (fonts, lines, background) is in the page's template."""
    return {"data": data, "layout": {"height": height, "xaxis": x, "yaxis": y}, "keys": [_key(trace) for trace in data]}


def _key(trace: Figure) -> Key:
    looks = trace.get("line") or trace["marker"]
    shape = looks.get("dash") or looks.get("pattern", {}).get("shape") or looks.get("symbol", "square")
    return Key(SIGNS[shape], looks["color"], trace["name"])


def scatter(name: str, x: Sequence[float], y: Sequence[float], looks: Figure) -> Figure:
    """Points, unless ``looks`` says lines."""
    return {"type": "scatter", "mode": "markers", "name": name, "x": list(x), "y": list(y)} | looks


def rows_axis(names: Sequence[str]) -> Figure:
    """The vertical axis of a chart with one row for each escaped name, the first on top; equal names do not merge."""
    axis = {"tickvals": list(range(len(names))), "ticktext": list(names), "tickfont": {"size": 11}}
    return axis | {"range": [len(names) - 0.4, -0.6], "showgrid": False, "zeroline": False}


def rows_height(rows: int) -> int:
    """In pixels, of a chart with that many named rows."""
    return 90 + (22 if rows <= 40 else 17) * rows


def told(*lines: str) -> str:
    """Lines for the box that appears over a point, the first one bold."""
    first, *rest = (escape(line) for line in lines if line)
    return "<br>".join([f"<b>{first}</b>", *rest])


def escape(text: object) -> str:
    """Text that Plotly takes for text."""
    return html.escape(str(text), quote=False)


def short_end(name: str) -> str:
    """The end of a long name, which tells layers apart."""
    return escape(name if len(name) <= NAME_LENGTH else "\u2026" + name[1 - NAME_LENGTH :])


def short_start(name: str) -> str:
    """The start of a long name, which tells classes apart."""
    return escape(name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1].rstrip() + "\u2026")


def unique(rows: Sequence[Data], key: str) -> list[Any]:
    """The values of a column, each once, in their order."""
    return list(dict.fromkeys(row[key] for row in rows))
