"""The page of a finished run: `penjing report`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from penjing.cli.app import Json, app, console, print_json, say, say_weights
from penjing.report import write_report
from penjing.result import DEFAULT, FP32, REPORT, SMALL, Result, amount, less_or_more, load_result

Row = tuple[str, ...]  # what, in fp32, in the runtime's default, compressed, against fp32
COLORS = {"holds": "green", "does not hold": "red", "cannot be told": "yellow"}


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run: its --out.")], as_json: Json = False
) -> None:
    """Write the page of a finished run again, from its `result.json`, and print its numbers.

    Example: `penjing report runs/mine`
    """
    result = load_result(folder)
    write_report(result.data, folder / REPORT)
    tell(result, as_json)


def tell(result: Result, as_json: bool) -> None:
    """Print what a run found."""
    if as_json:
        print_json(result.data)
        return
    d = result.data
    table = Table(title=f"{d['name']} for {d['target']}", title_justify="left")
    for column in ("", "fp32", "by default", "compressed", "against fp32"):
        table.add_column(column, justify="right" if column else "left", no_wrap=bool(column))
    for row in (*_scores(d), *_sizes(d), *_times(d)):
        table.add_row(*row)
    verdict = d["verdict"]
    console.print(table)
    console.print(verdict["sentence"], style=f"bold {COLORS[verdict['status']]}", highlight=False)
    if verdict["advice"]:
        console.print(verdict["advice"], markup=False, highlight=False)
    precisions = [k["precision"] for k in d["kernels"][d["target"]] if k["weighted"]]
    say_weights(d["machine"].get("profile", d["target"]), precisions)
    files = f"the network: {result.artifact.path}\nthe report:  {result.folder / REPORT}"
    say(files)


def _scores(d: Any) -> list[Row]:
    """The metric, and beside it that of the original trained on for as long."""
    a, control = d["accuracy"], d["control"]
    rows: list[Row] = [(a["metric"], f"{a['before']:.4f}", "", f"{a['after']:.4f}", amount(a["after"] - a["before"], a))]
    if control:
        change = amount(a["after"] - control["score"], a)
        rows.append((control["name"], f"{control['score']:.4f}", "", f"{a['after']:.4f}", change))
    return rows


def _sizes(d: Any) -> list[Row]:
    sizes = d["size"].items()
    return [(what, f"{was:,}", "", f"{now:,}", less_or_more(was, now, "x smaller", "x larger")) for what, (was, now) in sizes]


def _times(d: Any) -> list[Row]:
    times = {(r["runtime"], r["batch"], r["net"]): r["median"] for r in d["latency"]}
    rows: list[Row] = []
    for runtime, batch in sorted({(r, b) for r, b, _ in times}, key=lambda k: (k[1], k[0])):
        full, default, small = (times[runtime, batch, net] for net in (FP32, DEFAULT, SMALL))
        cells = (f"{full:.3f} ms", f"{default:.3f} ms", f"{small:.3f} ms", less_or_more(full, small, "x faster", "x slower"))
        rows.append((f"batch {batch}, {runtime}", *cells))
    return rows
