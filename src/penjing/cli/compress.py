"""A whole run: `penjing demo` and `penjing compress`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from penjing import ranks
from penjing.cli.app import Exclude, Json, Threads, Weights, app, bars, check_unit, in_points, network
from penjing.cli.launch import Devices, Nodes, together
from penjing.cli.report import tell
from penjing.data import CLASSES, fashion_batches, fashion_sample
from penjing.measure import top1
from penjing.processor import processor
from penjing.recipe import Recipe, drop_in_words, load_task, look_in, option, read_recipe
from penjing.run import compress
from penjing.search import Budget
from penjing.settings import Settings
from penjing.task import Task, check_metric, check_task
from penjing.train import Training
from penjing.zoo import fashion_resnet20

LATENCIES = (("amx_int8", "0.1x"), ("avx512_vnni", "0.18x"), ("avx_vnni", "0.18x"))  # what the demo asks for, of the original's


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("runs/demo"), as_json: Json = False
) -> None:
    """Compress the embedded ResNet-20 on the embedded sample of Fashion-MNIST.

    Example: `penjing demo --out runs/demo`
    """
    model, task, settings = fashion_resnet20(), demo_task(), demo_settings()
    tell(compress(model, task, budget=demo_budget(), target="openvino", out=out, settings=settings, progress=bars), as_json)


def demo_budget() -> Budget:
    """A twelfth of the size, and the share of the time that integers of this processor make possible."""
    _, features = processor()
    latency = next((share for flag, share in LATENCIES if flag in features), "0.25x")
    return Budget(max_drop=0.015, latency=latency, bytes="0.082x", goal="accuracy")


def demo_task() -> Task:
    """The embedded sample as a task."""
    data = fashion_sample()
    return Task(
        train=fashion_batches(data.train, 64, augment=True),
        search=fashion_batches(data.search, 250),
        confirm=fashion_batches(data.confirm, 250),
        metric=top1,
        classes=CLASSES,
    )


def demo_settings() -> Settings:
    """What the demo does within four minutes on two cores; of training a minute and a half at the most."""
    return Settings(
        epochs=4, minutes=1.5, attempts=1, probes=0, qat=0, batch=32, seconds=0.3, samples=4, generalization=200,
        drop_blocks=False, training=Training(lr=0.01, mixup=0.5),
    )  # fmt: skip


@app.command("compress")
def compress_command(  # noqa: PLR0913 - one parameter an option
    recipe: Annotated[
        Path | None, typer.Argument(help="A YAML file that says all this; what options say wins over it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The network's factory, as package.module:function, or an ONNX file.")
    ] = None,
    weights: Weights = None,
    data: Annotated[str | None, typer.Option(help="A function that returns a penjing.Task: package.module:function.")] = None,
    target: Annotated[str | None, typer.Option(help="The runtime it is for: onnxruntime (if not given) or openvino.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new or empty folder for the results, or that of the run to go on with.")
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            help="What may be lost of the metric: 0.5 is half a point, of one that is a share; 0.3dB or '0.3 units', of one "
            "that is not; none: any drop, for the most accurate network within the other limits. 1 if not given."
        ),
    ] = None,
    latency: Annotated[str | None, typer.Option(help="At most this time or share of the original's: 3ms, 0.25x.")] = None,
    size: Annotated[str | None, typer.Option("--bytes", help="At most this file size: 500kB, 0.125x.")] = None,
    macs: Annotated[str | None, typer.Option(help="At most this many multiply-accumulates: 20M, 0.5x.")] = None,
    memory: Annotated[str | None, typer.Option(help="At most this much memory during one call at --batch: 2MB, 0.5x.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Of training, at most, in all.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Of training, at most, in all; 0: only what needs no training.")] = None,
    labels: Annotated[
        float | None,
        typer.Option(help="Weight of the labels in training, 0 to 1; the rest follows the original. 0 needs none."),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate at its peak.")] = None,
    batch: Annotated[int | None, typer.Option(help="The batch size that latency is judged at.")] = None,
    cut_sums: Annotated[
        bool | None,
        typer.Option("--cut-sums/--keep-sums", help="Also cut channels that are added to one another (residual streams)."),
    ] = None,
    exclude: Exclude = None,
    threads: Threads = None,
    fresh: Annotated[
        bool | None, typer.Option("--fresh", help="Measure again instead of taking what was measured on this machine before.")
    ] = None,
    further: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other key of a recipe: settings.attempts=2; `penjing recipe` prints them all."),
    ] = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
    as_json: Json = False,
) -> None:
    """Compress your own network on your own data, as options or a recipe say.

    Relative paths in a recipe start from its folder, where its modules are looked for as well; those of options start from the
    working directory. The folder of the results holds the whole recipe afterwards.

    Example: `penjing compress --model my_net:build --weights w.safetensors --data my_net:task --max-drop 0.5 --latency 0.25x
    --target openvino --out runs/mine`, or `penjing compress recipe.yaml --minutes 30`
    """
    together(devices, nodes)
    limits = {"max_drop": in_points(max_drop), "latency": latency, "bytes": size, "macs": macs, "memory": memory}
    settings: dict[str, Any] = {
        "minutes": minutes,
        "epochs": epochs,
        "labels": labels,
        "training": {"lr": lr},
        "batch": batch,
        "threads": threads,
    }
    settings |= {"cut_sums": cut_sums, "exclude": exclude or None, "fresh": fresh}
    options = {"model": model, "data": data, "target": target, "out": out, "weights": weights}
    given = [_given(options | {"budget": limits, "settings": settings}), *(option(text) for text in further or ())]
    _run(read_recipe(recipe, *given), drop_in_words(recipe, *given), as_json)


def _run(asked: Recipe, drop: str | None, as_json: bool) -> None:
    here = Path.cwd()
    modules = asked.modules or here  # for the recipe that is kept: it is read elsewhere
    for folder in (here, modules):  # the last is looked in first
        look_in(folder)
    net, task = network(asked.model, asked.weights), load_task(asked.data)
    if drop is not None:
        check_task(task, net, labels=asked.settings.needs_labels)
        check_unit(drop, task, check_metric(task, net))
    result = compress(
        net,
        task,
        budget=asked.budget,
        target=asked.target,
        out=asked.out,
        settings=asked.settings,
        recipe=replace(asked, modules=modules),
        progress=bars,
    )
    if ranks.is_writer():
        tell(result, as_json)
    ranks.leave()


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, in their sections; paths as words."""
    sections = {k: _given(v) if isinstance(v, Mapping) else v for k, v in options.items()}
    return {k: str(v) if isinstance(v, Path) else v for k, v in sections.items() if v is not None}
