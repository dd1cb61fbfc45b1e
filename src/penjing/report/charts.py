"""Every chart of the page by the id of its place; here those of latency by runtime and of training."""

from collections.abc import Sequence

from penjing.report.figure import DASHES, Data, Figure, escape, figure, scatter, told, unique
from penjing.report.generalization import class_chart, corruption_charts
from penjing.report.layers import layer_times, layer_widths
from penjing.report.numbers import Metric, duration, metric_of, milliseconds
from penjing.report.tradeoff import tradeoff

NETS = {"original fp32": "--original", "original default": "--default", "compressed": "--accent"}
RUN_COLORS = ("--run-1", "--run-2", "--run-3", "--run-4", "--run-5", "--run-6")
LOOKS = len(RUN_COLORS) * len(DASHES)  # the runs that can be told apart


def figures(result: Data) -> dict[str, Figure]:
    """Every chart that the result has numbers for."""
    rows = [row for row in result.get("latency") or () if row["median"] is not None]
    drawn = {f"latency-{batch}": _latency([r for r in rows if r["batch"] == batch]) for batch in unique(rows, "batch")}
    metric, general = metric_of(result), result.get("generalization") or {}
    layers = result.get("layers") or ()
    charts = {
        "candidates": tradeoff(result, metric),
        "times": layer_times(layers, result.get("other_time")),
        "layers": layer_widths(layers),
        "training": _training(result),
        "classes": class_chart(general.get("per_class") or (), Metric("accuracy")),  # whatever the task's metric is
    }
    drawn |= {id: chart for id, chart in charts.items() if chart}
    return drawn | corruption_charts(general.get("corruptions") or (), metric)


def _latency(rows: Sequence[Data]) -> Figure:
    """Median per runtime and net at one batch; the whiskers are the 10th and 90th percentile."""
    bars = []
    for net, color in NETS.items():
        own = [row for row in rows if row["net"] == net]
        up, down = [row["high"] - row["median"] for row in own], [row["median"] - row["low"] for row in own]
        about = [told(f"{row['runtime']}, {net}", _timing(row), row["where"]) for row in own]
        looks = {"error_y": {"array": up, "arrayminus": down}, "marker": {"color": color}, "customdata": about}
        x, y = [escape(row["runtime"]) for row in own], [row["median"] for row in own]
        bars.append({"type": "bar", "name": net, "x": x, "y": y} | looks)
    unit = escape(rows[0]["unit"])
    highest = max(row["high"] for row in rows)  # the range is given, since Plotly's own cuts the whisker of the highest bar
    return figure(
        bars, 320, x={"type": "category", "showgrid": False}, y={"title": {"text": unit}, "range": [0, 1.06 * highest]}
    )


def _timing(row: Data) -> str:
    unit = row["unit"]
    return f"{milliseconds(row['median'], unit)} ({milliseconds(row['low'], unit)} to {milliseconds(row['high'], unit)})"


def _training(result: Data) -> Figure | None:
    """Loss by epoch, one line for each run; of very many, those beyond the colors and dashes are gray."""
    epochs = result.get("training") or ()
    if not epochs:
        return None
    chosen = {c["name"] for c in result.get("candidates") or () if c["status"] == "chosen"}
    runs = unique(epochs, "run")
    if len(runs) > LOOKS:
        runs.sort(key=lambda run: run not in chosen)  # so that the chosen one keeps its color
    longest = max(e["epoch"] for e in epochs)
    few = longest <= 12 and len(runs) <= LOOKS
    lines = [_run([e for e in epochs if e["run"] == run], i, few) for i, run in enumerate(runs[:LOOKS])]
    others = [_run([e for e in epochs if e["run"] == run], None, few) for run in runs[LOOKS:]]
    x = {"title": {"text": "epoch"}, "tickformat": "d"} | ({"dtick": 1} if longest <= 12 else {})
    drawn = figure(others + lines, 360, x=x, y={"title": {"text": "training loss"}, "rangemode": "tozero"})
    if others:
        gray = drawn["keys"][0]._replace(name=f"{len(others)} more runs")
        drawn["keys"] = [*drawn["keys"][len(others) :], gray]
    return drawn


def _run(epochs: Sequence[Data], place: int | None, marked: bool) -> Figure:
    """The line of one run, in the color and dash of its place; gray without one."""
    dashes = list(DASHES)  # for more runs than there are colors
    line = {"color": "--original-soft", "dash": "solid"}
    if place is not None:
        line = {"color": RUN_COLORS[place % len(RUN_COLORS)], "dash": dashes[place // len(RUN_COLORS)]}
    mode = "lines+markers" if marked or len(epochs) == 1 else "lines"
    looks = {"mode": mode, "line": line, "customdata": [_about_epoch(e) for e in epochs]}
    return scatter(epochs[0]["run"], [e["epoch"] for e in epochs], [e["loss"] for e in epochs], looks)


def _about_epoch(epoch: Data) -> str:
    title = f"{epoch['run']}, epoch {epoch['epoch']}"
    return told(title, f"loss {epoch['loss']:.4g}", f"learning rate {epoch['lr']:.3g}", duration(epoch["seconds"]))
