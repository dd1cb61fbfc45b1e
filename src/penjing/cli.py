"""The command line: parse, call, print."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from penjing.data import fashion_batches, fashion_sample
from penjing.errors import PenjingError, RecipeError
from penjing.export import RUNTIMES, Artifact, export, left_in_float
from penjing.files import digest
from penjing.measure import compare, cores, inspect, top1
from penjing.progress import Advance
from penjing.quant import quantize
from penjing.recipe import load_model, load_task
from penjing.result import DEFAULT, FP32, REPORT, SMALL, Result, points
from penjing.run import Settings, compress
from penjing.search import Budget
from penjing.task import Task, as_tuple, check_task, first_batch
from penjing.train import Training
from penjing.zoo import fashion_resnet20

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
console, errors = Console(), Console(stderr=True)

Model = Annotated[str, typer.Option(help="The network's factory, as package.module:function.")]
Weights = Annotated[Path | None, typer.Option(help="Its weights, as safetensors.")]
Data = Annotated[str, typer.Option(help="A function that returns a penjing.Task, as package.module:function.")]
Target = Annotated[str, typer.Option(help="The runtime it is for: onnxruntime or openvino.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.callback()
def penjing() -> None:
    """Prune, distil and quantize a trained CNN under one budget; get back a proven file that runs fast."""


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("runs/demo"), as_json: Json = False
) -> None:
    """Compress the embedded ResNet-20 on the embedded sample of Fashion-MNIST.

    Example: `penjing demo --out runs/demo`
    """
    model, task, settings = fashion_resnet20(), demo_task(), demo_settings()
    budget = Budget(max_drop=0.01, latency=0.25)
    _tell(compress(model, task, budget=budget, target="openvino", out=out, settings=settings, progress=_bars), as_json)


def demo_task() -> Task:
    """The embedded sample as a task."""
    data = fashion_sample()
    return Task(
        train=fashion_batches(data.train, 64, augment=True),
        search=fashion_batches(data.search, 250),
        confirm=fashion_batches(data.confirm, 250),
        metric=top1,
    )


def demo_settings() -> Settings:
    """What the demo does within four minutes on two cores."""
    return Settings(ratios=(0.0, 0.5, 0.6), epochs=8, batch=32)


@app.command("compress")
def compress_command(  # noqa: PLR0913 - one parameter an option
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="A new or empty folder for the results, or that of the run to go on with.")],
    weights: Weights = None,
    max_drop: Annotated[float, typer.Option(help="Points of the metric that may be lost; 0.5 is half a percent.")] = 1.0,
    latency: Annotated[str | None, typer.Option(help="At most this time or share of the original's: 3ms, 0.25x.")] = None,
    size: Annotated[str | None, typer.Option("--bytes", help="At most this file size: 500kB, 0.125x.")] = None,
    macs: Annotated[str | None, typer.Option(help="At most this many multiply-accumulates: 20M, 0.5x.")] = None,
    target: Target = "onnxruntime",
    ratios: Annotated[str, typer.Option(help="Shares of channels to try dropping, gentlest first.")] = "0,0.25,0.5,0.75",
    epochs: Annotated[int, typer.Option(help="Epochs of training after each cut.")] = 4,
    lr: Annotated[float, typer.Option(help="Learning rate at its peak.")] = 0.02,
    batch: Annotated[int, typer.Option(help="The batch size that latency is judged at.")] = 1,
    cut_sums: Annotated[bool, typer.Option(help="Also cut channels that are added to one another (residual streams).")] = False,
    exclude: Annotated[list[str] | None, typer.Option(help="Patterns of parameter names to leave whole: 'head.*'.")] = None,
    as_json: Json = False,
) -> None:
    """Compress your own network on your own data.

    Example: `penjing compress --model my_net:build --weights w.safetensors --data my_net:task --max-drop 0.5 --latency 0.25x
    --target openvino --out runs/mine`
    """
    settings = Settings(
        ratios=_ratios(ratios),
        cut_sums=cut_sums,
        epochs=epochs,
        training=Training(lr=lr, mixup=0.5),
        batch=batch,
        exclude=tuple(exclude or ()),
    )
    budget = Budget(max_drop=max_drop / 100, latency=latency, bytes=size, macs=macs)
    net, task = load_model(model, weights), load_task(data)
    _tell(compress(net, task, budget=budget, target=target, out=out, settings=settings, progress=_bars), as_json)


@app.command("inspect")
def inspect_command(model: Model, data: Data, weights: Weights = None, as_json: Json = False) -> None:
    """Show which channels can be cut, which cannot, and why.

    Example: `penjing inspect --model my_net:build --data my_net:task`
    """
    net, task = load_model(model, weights), load_task(data)
    found = inspect(net, check_task(task, net))
    groups = [{"name": g.name, "channels": g.channels, "places": len(g.axes)} for g in found.channels.groups]
    fixed = [{"name": n, "dim": d, "reason": why} for (n, d), why in sorted(found.channels.fixed.items())]
    if as_json:
        _print_json({"parameters": found.parameters, "macs": found.macs, "groups": groups, "fixed": fixed})
        return
    console.print(f"{found.parameters:,} parameters, {found.macs:,} multiply-accumulates a sample, {len(found.layers)} layers")
    console.print(_table("Channels that can be cut", groups))
    console.print(_table("Channels that must stay", fixed))


@app.command("measure")
def measure_command(
    file: Annotated[Path, typer.Argument(help="An ONNX file with one input batch dimension.")],
    data: Data,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes to time; give it again for more.")] = None,
    as_json: Json = False,
) -> None:
    """Measure an ONNX file's accuracy and latency in both runtimes.

    Example: `penjing measure runs/mine/net.onnx --data my_net:task --batch 1 --batch 32`
    """
    if not file.is_file():
        raise RecipeError(f"{file} is not there; give an ONNX file")
    task = load_task(data)
    example = as_tuple(first_batch(task.search, "search")[0])
    rows = []
    artifact = Artifact(file, "onnxruntime", tuple(tuple(x[:1].shape) for x in example), True, digest(file))
    runs = {name: artifact.on(name).load(cores()) for name in RUNTIMES}
    for name, run in runs.items():
        score = task.metric(run, task.confirm)
        rows.append({"runtime": name, "what": "score", "value": f"{score.value:.4f}", "samples": score.samples})
    for size in batch or [1, 32]:
        inputs = tuple(x[:1].repeat(size, *[1] * (x.ndim - 1)) for x in example)
        for name, m in compare(runs, *inputs, progress=_bars).items():
            rows.append({"runtime": name, "what": f"latency, batch {size}", "value": f"{m.value:.3f} ms", "samples": m.samples})
    for name in RUNTIMES:
        floats = left_in_float(artifact.on(name).kernels())
        rows.append({"runtime": name, "what": "weighted layers not in int8", "value": str(len(floats)), "samples": 1})
    _print_json(rows) if as_json else console.print(_table(str(file), rows))


@app.command("export")
def export_command(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    weights: Weights = None,
    int8: Annotated[bool, typer.Option(help="Quantize first, with ranges read from the training images.")] = False,
    target: Target = "onnxruntime",
) -> None:
    """Write a network as ONNX, as it is or in int8, without pruning or training.

    Example: `penjing export --model my_net:build --weights w.safetensors --data my_net:task --int8 --out net.onnx`
    """
    net, task = load_model(model, weights), load_task(data)
    example = tuple(x[:1] for x in check_task(task, net))
    if int8:
        batches = [x for _, (x, _) in zip(range(8), task.train, strict=False)]
        net = quantize(net, example, batches, target=target)
    artifact = export(net, example, out, target=target)
    console.print(f"{artifact.path}: {artifact.path.stat().st_size:,} bytes, for {target}")


def main() -> None:
    """Run the command line; a user's mistake is one clear line and exit code 2."""
    torch.set_num_threads(cores())
    try:
        app()
    except PenjingError as e:
        errors.print(f"penjing: {e}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("penjing: stopped; the same command goes on from here", markup=False)
        sys.exit(130)


@contextmanager
def _bars(label: str, total: int) -> Iterator[Advance]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(
        *columns, TextColumn("{task.fields[note]}"), console=errors, transient=True, disable=not errors.is_terminal
    ) as bars:
        task = bars.add_task(label, total=total, note="")
        yield lambda note: bars.update(task, advance=1, note=note)


def _ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(r) for r in text.split(","))
    except ValueError as e:
        raise RecipeError(f"--ratios {text!r} is not understood; give rising shares, e.g. 0,0.25,0.5") from e


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(column, justify="right" if isinstance(rows[0][column], int | float) else "left")
    for row in rows:
        table.add_row(*(str(v) for v in row.values()))
    return table


def _tell(result: Result, as_json: bool) -> None:
    """Print what a run found."""
    if as_json:
        _print_json(result.data)
        return
    d = result.data
    size, accuracy = d["size"], d["accuracy"]
    rows = [
        (
            accuracy["metric"],
            f"{accuracy['before']:.4f}",
            "",
            f"{accuracy['after']:.4f}",
            f"{points(-accuracy['drop'])} points",
        ),
        *((k, f"{was:,}", "", f"{now:,}", f"{was / now:.1f}x smaller") for k, (was, now) in size.items()),
    ]
    times = {(r["runtime"], r["batch"], r["net"]): r["median"] for r in d["latency"]}
    for runtime, batch in sorted({(r, b) for r, b, _ in times}, key=lambda k: (k[1], k[0])):
        full, default, small = (times[runtime, batch, net] for net in (FP32, DEFAULT, SMALL))
        numbers = (f"{full:.3f} ms", f"{default:.3f} ms", f"{small:.3f} ms", f"{full / small:.1f}x faster")
        rows.append((f"batch {batch}, {runtime}", *numbers))
    table = Table(title=f"{d['name']}, int8 for {d['target']}", title_justify="left")
    for column in ("", "fp32", "by default", "compressed", "against fp32"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(d["verdict"]["sentence"], style="bold green" if result.holds else "bold red", highlight=False)
    console.print(
        f"the network: {result.artifact.path}\nthe report:  {result.folder / REPORT}", highlight=False, soft_wrap=True
    )
