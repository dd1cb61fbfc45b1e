"""What all commands share: the application, options, and ways to print."""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from torch import Tensor, nn

from penjing.errors import RecipeError, first_line
from penjing.files import finite
from penjing.progress import Advance
from penjing.prune.store import load, plan_of
from penjing.quant import TARGETS
from penjing.recipe import load_model
from penjing.result import is_share, package_version
from penjing.search.budget import parse_drop
from penjing.task import Score, Task, check_task, first_batches

OF_ANOTHER_TYPE = re.compile(r"\b(long|int|integer|LongTensor|dtype|scalar type)\b", re.IGNORECASE)  # in torch's complaints
BITS = 8  # of a weight in int8
SAMPLES = 512  # of the training data, for criteria and refits that look at data

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
console, errors = Console(), Console(stderr=True)

Model = Annotated[str, typer.Option(help="The network's factory, as package.module:function, or an ONNX file.")]
Weights = Annotated[Path | None, typer.Option(help="Its weights, as safetensors; or what `penjing prune` wrote.")]
Data = Annotated[str, typer.Option(help="A function that returns a penjing.Task, as package.module:function.")]
Target = Annotated[str, typer.Option(help="The runtime it is for: onnxruntime or openvino.")]
MaybeData = Annotated[
    str | None, typer.Option("--data", help="A function that returns a penjing.Task: package.module:function.")
]
Shape = Annotated[
    list[str] | None, typer.Option(help="The shape of one input without the batch: 3,224,224. Again for each further input.")
]
Threads = Annotated[int | None, typer.Option(help="Of the runtimes; all cores if not given.", min=1)]
Exclude = Annotated[list[str] | None, typer.Option(help="Patterns of parameter names to leave whole: 'head.*'.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def _version(asked: bool) -> None:
    if asked:
        console.print(package_version(), highlight=False)
        raise typer.Exit


@app.callback()
def penjing(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """Prune, distil and quantize a trained CNN under one budget; get back a proven file that runs fast."""


_said = ""


def _say_once(label: str) -> None:
    """What is being done, for files that are read while it is done; a label that comes again at once is said once."""
    global _said
    if label != _said:
        errors.print(label, markup=False, highlight=False)
    _said = label


@contextmanager
def bars(label: str, total: int) -> Iterator[Advance]:
    """Progress bars on a terminal, elsewhere a line once the first step is done."""
    if not errors.is_terminal:
        yield lambda _note: _say_once(label)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, TextColumn("{task.fields[note]}"), console=errors, transient=True) as bars:
        task = bars.add_task(label, total=total, note="")
        yield lambda note: bars.update(task, advance=1, note=note)


def network(model: str, weights: Path | None, *, what: str = "--model") -> nn.Module:
    """The factory's network with its weights; cut as it was, where the file is of a pruned one."""
    if weights is None or plan_of(weights) is None:
        return load_model(model, weights, what=what)
    return load(weights, lambda: load_model(model, what=what))


def example_of(net: nn.Module, shapes: Sequence[str] | None, task: Task | None) -> tuple[Tensor, ...]:
    """One sample as the network takes it: of the shapes given, or the task's first."""
    if shapes:
        example = tuple(torch.randn(1, *_sizes(text)) for text in shapes)
        _check_floats(net, example)
        return example
    if task is None:
        raise RecipeError("what the network takes is not known; give --shape, e.g. --shape 3,224,224, or --data my_net:task")
    return tuple(x[:1] for x in check_task(task, net))


def _check_floats(net: nn.Module, example: Sequence[Tensor]) -> None:
    """Refuse a network that takes no floats; whatever else it may not take is told where it is read."""
    try:
        with torch.no_grad():
            net(*example)
    except Exception as e:  # whatever the user's forward raises
        if OF_ANOTHER_TYPE.search(str(e)):
            raise RecipeError(
                f"the network does not take what --shape gives, which is floats: {first_line(e)}; use --data instead"
            ) from e


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(n) for n in text.split(","))
    except ValueError as e:
        raise RecipeError(
            f"--shape {text!r} is not understood; give one input's sizes without the batch, e.g. 3,224,224"
        ) from e
    if min(sizes) < 1:
        raise RecipeError(f"--shape {text!r} has a size below 1; give one input's sizes without the batch, e.g. 3,224,224")
    return sizes


def in_points(drop: str | None) -> str | None:
    """A drop, where it has no unit, in points."""
    try:
        return drop and f"{float(drop)!r} points"
    except ValueError:
        return drop


def check_unit(drop: str, task: Task, score: Score) -> None:
    """Refuse a unit that the metric has not: 0.3 dB of a share would be taken as 30 points, 1 point of a PSNR as 0.01 dB.

    Args:
        drop: As it was given; without a unit it means points.
    """
    unit = (in_points(drop) or "").strip().lower()
    share = is_share(task.metric, score)
    if share and unit.endswith("db"):
        raise RecipeError(
            f"a drop of {drop}: the metric is a share, which has no dB; give points, e.g. 0.5 for half a point, or set "
            "metric.unit = 'dB' where it is in dB"
        )
    if not share and unit.endswith(("point", "points", "%")) and parse_drop(unit):
        raise RecipeError(
            f"a drop of {drop}: points, as a number without a unit is, are hundredths of a share, and the metric is none: it "
            f"gave {score.value:.4g}; give '0.3 units' of it, or 0.3dB"
        )


def images_of(task: Task | None) -> list[Any] | None:
    """Training batches of some hundred samples."""
    return None if task is None else first_batches(task.train, SAMPLES)


def say_weights(profile: str, precisions: Iterable[str], asked: int = BITS) -> None:
    """Say so where the weights of a file's layers have fewer bits than were asked for.

    Args:
        precisions: That its layers run in.
    """
    if profile in TARGETS and "int8" in precisions and (bits := TARGETS[profile].weight_bits) < asked:
        said = f"weights have {bits} bits: on processors without VNNI, pairs of products of {BITS} bits would overflow"
        console.print(said, style="dim", highlight=False)


def say(text: str) -> None:
    """Print a line as it is: names may hold what looks like markup, and paths are to be copied whole."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def table_of(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=escape(title), title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(column, justify="right" if isinstance(rows[0][column], int | float) else "left")
    for row in rows:
        table.add_row(*(escape(str(v)) for v in row.values()))
    return table
