"""A whole run: `penjing demo` and `penjing compress`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from penjing.cli.app import Data, Exclude, Json, Model, Target, Weights, app, bars, console, network, print_json
from penjing.data import fashion_batches, fashion_sample
from penjing.errors import RecipeError
from penjing.measure import top1
from penjing.recipe import load_task
from penjing.result import DEFAULT, FP32, REPORT, SMALL, Result, points
from penjing.run import Settings, compress
from penjing.search import Budget
from penjing.task import Task
from penjing.train import Training
from penjing.zoo import fashion_resnet20


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("runs/demo"), as_json: Json = False
) -> None:
    """Compress the embedded ResNet-20 on the embedded sample of Fashion-MNIST.

    Example: `penjing demo --out runs/demo`
    """
    model, task, settings = fashion_resnet20(), demo_task(), demo_settings()
    budget = Budget(max_drop=0.01, latency=0.25)
    _tell(compress(model, task, budget=budget, target="openvino", out=out, settings=settings, progress=bars), as_json)


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
    net, task = network(model, weights), load_task(data)
    _tell(compress(net, task, budget=budget, target=target, out=out, settings=settings, progress=bars), as_json)


def _ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(r) for r in text.split(","))
    except ValueError as e:
        raise RecipeError(f"--ratios {text!r} is not understood; give rising shares, e.g. 0,0.25,0.5") from e


def _tell(result: Result, as_json: bool) -> None:
    """Print what a run found."""
    if as_json:
        print_json(result.data)
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
