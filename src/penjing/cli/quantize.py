"""Integers: `penjing quantize`."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from penjing.cli.app import (
    Data,
    Exclude,
    Json,
    Target,
    Threads,
    Weights,
    app,
    bars,
    check_unit,
    console,
    images_of,
    in_points,
    network,
    print_json,
    say,
    say_weights,
    table_of,
)
from penjing.distill.logits import is_classes
from penjing.errors import RecipeError
from penjing.export import RUNTIMES, left_in_float
from penjing.files import check_writable
from penjing.graph import load_onnx
from penjing.measure import cores
from penjing.quant import GRIDS, OBSERVERS, ROUNDINGS, Quantizer, Scheme, target_named
from penjing.recipe import load_task
from penjing.result import amount, is_share
from penjing.search import Mix, MixSettings, fastest_mix
from penjing.search.budget import parse_drop
from penjing.task import Score, Task, as_a_file, as_tuple, check_metric, check_task, first_batch, scored, searched


@app.command("quantize")
def quantize_command(  # noqa: PLR0913 - one parameter an option
    data: Data,
    out: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    file: Annotated[Path | None, typer.Argument(help="A network as ONNX, in float; or give --model.")] = None,
    model: Annotated[str | None, typer.Option(help="Instead: the network's factory, as package.module:function.")] = None,
    weights: Weights = None,
    target: Target = "onnxruntime",
    max_drop: Annotated[
        str,
        typer.Option(
            help="What may be lost of the metric: 0.5 is half a point of a share; of others '0.3 units' or 0.3dB; or none."
        ),
    ] = "0.5",
    weight_bits: Annotated[int, typer.Option(help="Of weights, 2 to 8; fewer make a smaller file, not a faster one.")] = 8,
    value_bits: Annotated[int, typer.Option(help="Of what layers read and give, 2 to 8.")] = 8,
    rounding: Annotated[str, typer.Option(help=f"Of weights: {', '.join(ROUNDINGS)}.")] = "nearest",
    observer: Annotated[str, typer.Option(help=f"Of ranges: {', '.join(OBSERVERS)}.")] = "cautious_mse",
    grid: Annotated[str | None, typer.Option(help=f"Of values, if not the target's own: {', '.join(GRIDS)}.")] = None,
    equalize: Annotated[bool, typer.Option("--equalize", help="Even out channel ranges between layers first.")] = False,
    exclude: Exclude = None,
    batch: Annotated[int, typer.Option(help="The batch size that latency is judged at.", min=1)] = 1,
    threads: Threads = None,
    placements: Annotated[bool, typer.Option(help="Also try the target's other placements, and take the fastest.")] = True,
    as_json: Json = False,
) -> None:
    """Give a network integers, placed for a runtime, without training; layers that suffer too much stay in float.

    The fastest file that loses no more than --max-drop on the search split is written, and scored on the confirm split.

    Example: `penjing quantize model.onnx --data my_net:task --target openvino --out int8.onnx`
    """
    threads = threads or cores()
    check_writable(out)
    net, task = _given(file, model, weights), load_task(data)
    example = tuple(x[:1] for x in check_task(task, net, labels=False))
    drop = parse_drop(in_points(max_drop) or "")
    check_unit(max_drop, task, check_metric(task, net))
    scheme = Scheme(
        weight_bits=weight_bits, value_bits=value_bits, rounding=rounding, observer=observer, values=grid, equalize=equalize,
        exclude=tuple(exclude or ()),
    )  # fmt: skip
    images = [x for x, _ in images_of(task) or ()]
    quantizer = Quantizer(net, example, images, target=target_named(target), scheme=scheme, progress=bars)
    settings = MixSettings(threads=threads, batch=batch, placements=placements)
    mix = fastest_mix(
        quantizer, net, example, out, evaluate=lambda run: searched(task, run),
        drop=math.inf if drop is None else drop, settings=settings, progress=bars,
    )  # fmt: skip
    told = _told(net.eval(), mix, task, threads) | {"profile": quantizer.target.name, "weight_bits": weight_bits}
    print_json(told) if as_json else _tell(told, mix)


def _given(file: Path | None, model: str | None, weights: Path | None) -> nn.Module:
    if (file is None) == (model is None):
        raise RecipeError("give either an ONNX file or --model package.module:function")
    if file is not None and weights is not None:
        raise RecipeError("--weights is for --model; an ONNX file has its own")
    if file is not None:
        return load_onnx(file)
    assert model is not None
    return network(model, weights)


def _told(net: nn.Module, mix: Mix, task: Task, threads: int) -> dict[str, Any]:
    """What came out, as JSON values."""
    chosen, artifact = mix.chosen, mix.chosen.artifact
    before = scored(task.metric, as_a_file(net), task.confirm)
    after = scored(task.metric, artifact.load(threads, chosen.precision), task.confirm)
    kernels = artifact.kernels(chosen.precision)
    inputs, target = first_batch(task.confirm, "confirm")
    batch = as_tuple(inputs)
    agreement = {name: artifact.on(name).agreement(mix.module, batch, chosen.precision) for name in RUNTIMES}
    return {
        "file": str(artifact.path),
        "bytes": artifact.path.stat().st_size,
        "chosen": chosen.name,
        "placement": mix.placement,
        "precision": chosen.precision or "the runtime's default",
        "score": {
            "before": before.value,
            "after": after.value,
            "samples": after.samples,
            "change": _change(task, before, after),
        },
        "tried": [
            {
                "candidate": t.name,
                "search score": round(t.score, 5),
                "latency, ms": round(t.latency.value, 4) if t.latency else None,
            }
            for t in mix.tried
        ],
        "layers": sum(k.weighted for k in kernels),
        "in_float": [{"layer": k.layer, "runs in": k.precision, "reason": k.reason} for k in left_in_float(kernels)],
        "sensitivity_db": {name: round(db, 2) for name, db in mix.sensitivity.items()},
        "argmax_agreement": {name: a.argmax for name, a in agreement.items()} if is_classes(net(*batch), target) else None,
    }


def _how_loaded(told: dict[str, Any]) -> str:
    """What to tell OpenVINO, which else takes its own precision for what is not in integers."""
    f32 = told["profile"].startswith("openvino") and told["precision"] == "f32"
    return '; load it with "INFERENCE_PRECISION_HINT": "f32"' if f32 else ""


def _change(task: Task, before: Score, after: Score) -> str:
    """With its unit."""
    unit = {"percent": is_share(task.metric, before, after), "unit": getattr(task.metric, "unit", "")}
    return amount(after.value - before.value, unit)


def _tell(told: dict[str, Any], mix: Mix) -> None:
    """Print it for people."""
    rows = [{k: "not timed: it scores too little" if v is None else v for k, v in row.items()} for row in told["tried"]]
    console.print(table_of("What was tried, on the search split", rows))
    floats = told["in_float"]
    if floats and len(floats) == told["layers"] and len({row["reason"] for row in floats}) == 1:
        say(f"All {told['layers']} convolutions and linear layers are in float: {floats[0]['reason']}.")
        say("The file is no smaller for it. `penjing export --int8` writes integers all the same.")
    elif floats:
        console.print(table_of(f"In float, of {told['layers']} convolutions and linear layers", floats))
    score = told["score"]
    say(
        f"{told['chosen']}: {score['before']:.4f} -> {score['after']:.4f} ({score['change']}), "
        f"on {score['samples']} confirm samples{_how_loaded(told)}"
    )
    say_weights(told["profile"], ["int8"] if len(told["in_float"]) < told["layers"] else [], told["weight_bits"])
    say(f"the network: {mix.chosen.artifact.path} ({told['bytes']:,} bytes)")
