"""The command line: parse, call, print."""

import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from torch import Tensor, nn

from penjing.data import fashion_batches, fashion_sample
from penjing.errors import PenjingError, RecipeError
from penjing.export import RUNTIMES, Artifact, export, left_in_float
from penjing.files import digest
from penjing.graph import capture
from penjing.measure import compare, cores, inspect, macs, parameters, top1
from penjing.progress import Advance
from penjing.prune import plan_channels, prune_channels, verify_pruned
from penjing.prune.channels import RewrittenWarning
from penjing.prune.refit import refit
from penjing.prune.store import load, plan_of, save
from penjing.quant import quantize
from penjing.recipe import load_model, load_task
from penjing.result import DEFAULT, FP32, REPORT, SMALL, Result, points
from penjing.run import Settings, compress
from penjing.score import CRITERIA
from penjing.search import Budget
from penjing.task import Task, as_tuple, check_task, first_batch
from penjing.train import Training
from penjing.zoo import fashion_resnet20

SAMPLES = 512  # of the training data, for criteria and refits that look at data

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
console, errors = Console(), Console(stderr=True)

Model = Annotated[str, typer.Option(help="The network's factory, as package.module:function.")]
Weights = Annotated[Path | None, typer.Option(help="Its weights, as safetensors; or what `penjing prune` wrote.")]
Data = Annotated[str, typer.Option(help="A function that returns a penjing.Task, as package.module:function.")]
Target = Annotated[str, typer.Option(help="The runtime it is for: onnxruntime or openvino.")]
MaybeData = Annotated[
    str | None, typer.Option("--data", help="A function that returns a penjing.Task: package.module:function.")
]
Shape = Annotated[
    list[str] | None, typer.Option(help="The shape of one input without the batch: 3,224,224. Again for each further input.")
]
Exclude = Annotated[list[str] | None, typer.Option(help="Patterns of parameter names to leave whole: 'head.*'.")]
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
    exclude: Exclude = None,
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
    net, task = _network(model, weights), load_task(data)
    _tell(compress(net, task, budget=budget, target=target, out=out, settings=settings, progress=_bars), as_json)


@app.command("inspect")
def inspect_command(
    model: Model,
    weights: Weights = None,
    shape: Shape = None,
    data: MaybeData = None,
    every: Annotated[bool, typer.Option("--all", help="Print every group and every place that it is cut from.")] = False,
    as_json: Json = False,
) -> None:
    """Show which channels can be cut, which cannot, and why.

    Example: `penjing inspect --model my_net:build --shape 3,224,224`
    """
    net = _network(model, weights)
    with errors.status("reading the network"):
        found = inspect(net, _example(net, shape, load_task(data) if data else None))
    if as_json:
        _print_json(found.to_json())
    else:
        console.print(found.listing() if every else str(found), markup=False, highlight=False, soft_wrap=True)


@app.command("prune")
def prune_command(  # noqa: PLR0913 - one parameter an option
    model: Model,
    weights: Weights = None,
    shape: Shape = None,
    data: MaybeData = None,
    ratio: Annotated[float | None, typer.Option(help="Share of the channels to drop: 0.5.")] = None,
    macs: Annotated[float | None, typer.Option(help="Instead: share of the multiply-accumulates that may stay: 0.33.")] = None,
    criterion: Annotated[str, typer.Option(help=f"What channels are judged by: {', '.join(CRITERIA)}.")] = "l2_norm",
    ranking: Annotated[str, typer.Option(help="What competes: channels of one layer, of all (global), isomorphic.")] = "layer",
    exclude: Exclude = None,
    round_to: Annotated[int, typer.Option(help="Keep a multiple of this many channels.")] = 8,
    refitted: Annotated[bool, typer.Option("--refit", help="Fit what is left to what was there, on images of --data.")] = False,
    out: Annotated[Path | None, typer.Option(help="The safetensors file to write; penjing.load reads it.")] = None,
    as_json: Json = False,
) -> None:
    """Cut channels and prove that nothing else changed; no training.

    Example: `penjing prune --model my_net:build --weights w.safetensors --shape 3,224,224 --ratio 0.5 --out small.safetensors`
    """
    net, task = _network(model, weights), load_task(data) if data else None
    if refitted and task is None:
        raise RecipeError("--refit fits layers to what they gave on images, and there are none; give --data my_net:task")
    example, images = _example(net, shape, task), _images(task)
    with _bars("pruning", 3) as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore", RewrittenWarning)  # the table says so
        plan = plan_channels(
            net, example, ratio, macs=macs, criterion=criterion, data=images, ranking=ranking, exclude=exclude or (),
            round_to=round_to, loss=task.loss if task else nn.functional.cross_entropy,
        )  # fmt: skip
        advance("planned")
        small = prune_channels(net, plan, example)
        advance("cut and proved")
        error = verify_pruned(net, small, plan, example)
        advance("told")
    if refitted and images:
        small = refit(small, net, plan, example, images, progress=_bars)
    if out is not None:
        earlier = plan_of(weights) if weights else None
        save(out, small, earlier.then(plan) if earlier else plan, example)
    _tell_pruned(net, small, example, error, out, as_json)


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
    net, task = _network(model, weights), load_task(data)
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


def _network(model: str, weights: Path | None) -> nn.Module:
    """The factory's network with its weights; cut as it was, where the file is of a pruned one."""
    if weights is None or plan_of(weights) is None:
        return load_model(model, weights)
    return load(weights, lambda: load_model(model))


def _example(net: nn.Module, shapes: Sequence[str] | None, task: Task | None) -> tuple[Tensor, ...]:
    """One sample as the network takes it: of the shapes given, or the task's first."""
    if shapes:
        return tuple(torch.randn(1, *_sizes(text)) for text in shapes)
    if task is None:
        raise RecipeError("what the network takes is not known; give --shape, e.g. --shape 3,224,224, or --data my_net:task")
    return tuple(x[:1] for x in check_task(task, net))


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


def _images(task: Task | None) -> list[Any] | None:
    """Training batches of some hundred samples."""
    if task is None:
        return None
    found, samples = [], 0
    for batch in task.train:
        found.append(batch)
        samples += len(as_tuple(batch[0])[0])
        if samples >= SAMPLES:
            break
    return found


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


def _tell_pruned(
    net: nn.Module, small: nn.Module, example: tuple[Tensor, ...], error: float, out: Path | None, as_json: bool
) -> None:
    """Print what a cut changed."""
    size = {
        "parameters": (parameters(net), parameters(small)),
        "macs": tuple(macs(capture(m, example)) for m in (net, small)),
    }
    rewritten = bool(getattr(small, "rewritten", False))
    if as_json:
        _print_json({**size, "error": error, "rewritten": rewritten, "out": str(out) if out else None})
        return
    table = Table(title=type(net).__name__, title_justify="left")
    for column in ("", "original", "pruned", "share"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, (was, now) in size.items():
        table.add_row(name, f"{was:,}", f"{now:,}", f"{now / was:.3f}" if was else "")
    console.print(table)
    console.print(f"Equal to the original in which the removed channels take no part: error {error:.1e}.", highlight=False)
    if rewritten:
        console.print("Its forward has sizes written into it, and was replaced by the exported graph.", highlight=False)
    if out is not None:
        console.print(f"the network: {out}", highlight=False, soft_wrap=True)


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
