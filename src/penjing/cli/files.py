"""Files that runtimes load: `penjing export` and `penjing measure`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from penjing.cli.app import (
    Data,
    Json,
    Model,
    Target,
    Threads,
    Weights,
    app,
    bars,
    console,
    errors,
    images_of,
    network,
    print_json,
    say,
    say_weights,
    table_of,
)
from penjing.errors import DataError, ExportError, RecipeError
from penjing.export import RUNTIMES, Artifact, Runner, export, fixed_batch, left_in_float, may_overflow
from penjing.files import check_writable, digest
from penjing.graph import repeated
from penjing.measure import compare, cores
from penjing.processor import overflows
from penjing.quant import quantize, target_named
from penjing.recipe import load_task
from penjing.task import Task, as_tuple, check_metric, check_task, first_batch, scored


@app.command("measure")
def measure_command(
    file: Annotated[Path, typer.Argument(help="An ONNX file with one input batch dimension.")],
    data: Data,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes to time; give it again for more.", min=1)] = None,
    threads: Threads = None,
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
    fixed = fixed_batch(file)
    shapes = tuple(tuple(x[: fixed or 1].shape) for x in example)
    artifact = Artifact(file, "onnxruntime", shapes, fixed is None, digest(file))
    runs = {name: artifact.on(name).load(threads or cores()) for name in RUNTIMES}
    _check_fits(file, runs["onnxruntime"], task)
    for name, run in runs.items():
        score = scored(task.metric, run, task.confirm)
        rows.append(_row(name, "score", score.value, str(getattr(task.metric, "unit", "")), score.samples))
    for size in batch or ([1, 32] if fixed is None else [fixed]):
        for name, m in compare(runs, *repeated(example, size), progress=bars).items():
            rows.append(_row(name, f"latency, batch {size}", m.value, m.unit, m.samples))
    for name in RUNTIMES:
        floats = left_in_float(artifact.on(name).kernels())
        rows.append(_row(name, "weighted layers not in int8", len(floats), "", 1))
    print_json(rows) if as_json else console.print(table_of(str(file), [_shown(row) for row in rows]))
    if overflows() and may_overflow(file):
        errors.print(
            "the file's weights have 8 bits, and this processor has no VNNI: sums in integers overflow without a word, so the "
            "scores may be too low; make the file here, or for a target that ends in -avx2", highlight=False,
        )  # fmt: skip


def _row(runtime: str, what: str, value: float, unit: str, samples: int) -> dict[str, Any]:
    return {"runtime": runtime, "what": what, "value": value, "unit": unit, "samples": samples}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row for people: the value with its unit, as text."""
    value = row["value"] if isinstance(row["value"], int) else f"{row['value']:.4f}"
    return {k: v for k, v in row.items() if k != "unit"} | {"value": f"{value} {row['unit']}".strip()}


def _check_fits(file: Path, run: Runner, task: Task) -> None:
    """Refuse a task that the file was not made for, and a metric that is none."""
    inputs = as_tuple(first_batch(task.confirm, "confirm")[0])
    try:
        run(*inputs)
    except ExportError as e:
        shapes = [tuple(x.shape) for x in inputs]
        raise DataError(f"{file} does not take what task.confirm yields, inputs of shape {shapes}: {e}") from e
    check_metric(task, run)


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
    check_writable(out)
    net, task = network(model, weights), load_task(data)
    example = tuple(x[:1] for x in check_task(task, net, labels=False))
    if int8:
        net = quantize(net, example, [x for x, _ in images_of(task) or ()], target=target)
    artifact = export(net, example, out, target=target)
    say(f"{artifact.path}: {artifact.path.stat().st_size:,} bytes, for {target}")
    if int8:
        say_weights(target_named(target).name, [k.precision for k in artifact.kernels() if k.weighted])
