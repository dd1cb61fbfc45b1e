"""Charts with a row for each layer: its width and precision, and its time before and after."""

from collections.abc import Sequence

from penjing.report.figure import Data, Figure, figure, rows_axis, rows_height, scatter, short_end, told, unique
from penjing.report.numbers import amount, milliseconds, times

PRECISIONS = {  # color and pattern; the pattern tells them apart without color
    "int8": ("--accent", ""),
    "bf16": ("--default", "/"),
    "f16": ("--default", "/"),
    "f32": ("--warn", "-"),
    "": ("--accent", ""),
}
REST = "all else"


def layer_widths(layers: Sequence[Data]) -> Figure | None:
    """Output channels of every layer, the width left drawn inside the width before, in the color of its precision."""
    if not layers:
        return None
    before, after = [layer["before"][1] for layer in layers], [layer["after"][1] for layer in layers]
    text = [f"{new} of {old}" if new != old else str(new) for new, old in zip(after, before, strict=True)]
    about = [_about_width(layer) for layer in layers]
    wide = _wide(list(range(len(layers))), before, about) | {"text": text, "textposition": "outside", "cliponaxis": False}
    bars = [wide]
    for precision in unique([{"precision": layer.get("precision") or ""} for layer in layers], "precision"):
        places = [i for i, layer in enumerate(layers) if (layer.get("precision") or "") == precision]
        color, shape = PRECISIONS.get(precision, ("--run-4", ""))
        bars.append(_narrow(precision or "compressed", places, [after[i] for i in places], [about[i] for i in places], color))
        if shape:
            bars[-1]["marker"]["pattern"] = {
                "shape": shape,
                "fgcolor": "--surface",
                "bgcolor": color,
                "size": 5,
                "solidity": 0.35,
            }
    title = {"text": "output channels"}
    return _rows([layer["name"] for layer in layers], bars, title, max(map(len, text)))


def layer_times(layers: Sequence[Data], rest: Sequence[float] | None) -> Figure | None:
    """Time of every measured layer in the original and now, one inside the other; the number is how many times faster."""
    timed = [layer for layer in layers if layer.get("times")]
    if not timed:
        return None
    rows = [(layer["name"], *layer["times"]) for layer in timed] + ([(REST, *rest)] if rest else [])
    about = [_about_time(*row) for row in rows]
    before, after = [row[1] for row in rows], [row[2] for row in rows]
    bars = [_wide(list(range(len(rows))), before, about)]
    slow = {i for i, row in enumerate(rows) if row[2] > row[1]}
    for name, color, is_slow in (("compressed", "--accent", False), ("compressed, slower than before", "--bad", True)):
        places = [i for i in range(len(rows)) if (i in slow) == is_slow]
        if places:
            bars.append(_narrow(name, places, [after[i] for i in places], [about[i] for i in places], color))
    text = [f" {times(old / new)}" if new else "" for old, new in zip(before, after, strict=True)]
    ends = [max(pair) for pair in zip(before, after, strict=True)]
    labels = {"mode": "text", "text": text, "textposition": "middle right", "cliponaxis": False, "hoverinfo": "skip"}
    drawn = _rows([row[0] for row in rows], bars, {"text": "ms"}, max(map(len, text)))
    drawn["data"].append(scatter("", ends, list(range(len(rows))), labels))
    return drawn


def time_sentence(layers: Sequence[Data], rest: Sequence[float] | None) -> str:
    """What the layers take together, and what is not in any layer."""
    timed = [layer["times"] for layer in layers if layer.get("times")]
    old, new = (sum(pair[i] for pair in timed) for i in (0, 1))
    said = f"{len(timed)} layers took {milliseconds(old)} in the original in fp32, now {milliseconds(new)}"
    if rest:
        said += f"; all else took {milliseconds(rest[0])}, now {milliseconds(rest[1])}"
    return f"{said}. The number beside a bar says how many times faster the layer became."


def _wide(places: Sequence[int], x: Sequence[float], about: Sequence[str]) -> Figure:
    return _bar("original", places, x, about, "--original-soft") | {"width": 0.8}


def _narrow(name: str, places: Sequence[int], x: Sequence[float], about: Sequence[str], color: str) -> Figure:
    return _bar(name, places, x, about, color) | {"width": 0.42}


def _bar(name: str, places: Sequence[int], x: Sequence[float], about: Sequence[str], color: str) -> Figure:
    bar = {"type": "bar", "orientation": "h", "name": name, "x": list(x), "y": list(places)}
    return bar | {"marker": {"color": color}, "customdata": list(about)}


def _rows(names: Sequence[str], bars: list[Figure], title: Figure, text: int) -> Figure:
    """Bars over each other, with room at the right for a text of that many characters beside the longest one."""
    x = {"title": title, "rangemode": "tozero"}
    drawn = figure(bars, rows_height(len(names)), x=x, y=rows_axis([short_end(name) for name in names]))
    drawn["layout"] |= {"barmode": "overlay", "margin": {"l": 8, "r": 16 + 7 * text, "t": 8, "b": 8}}
    return drawn


def _about_width(layer: Data) -> str:
    (old_in, old_out), (new_in, new_out) = layer["before"], layer["after"]
    widths = f"{old_in} in, {old_out} out: now {new_in}, {new_out}"
    macs = " to ".join(amount(n) for n in layer["macs"])
    return told(layer["name"], f"{layer['kind']} {layer['kernel']}", layer.get("precision") or "", widths, f"{macs} MACs")


def _about_time(name: str, old: float, new: float) -> str:
    gain = f"{times(old / new)} as fast" if new else ""
    return told(name, f"{milliseconds(old)}, now {milliseconds(new)}", gain)
