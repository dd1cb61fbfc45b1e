"""Channels: `penjing inspect` and `penjing prune`."""

import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from torch import Tensor, nn

from penjing.cli.app import (
    Exclude,
    Json,
    MaybeData,
    Model,
    Shape,
    Weights,
    app,
    bars,
    console,
    errors,
    example_of,
    images_of,
    network,
    print_json,
    say,
)
from penjing.errors import DataError, RecipeError
from penjing.files import check_writable
from penjing.graph import capture
from penjing.measure import inspect, macs, parameters
from penjing.prune import plan_channels, prune_channels, verify_pruned
from penjing.prune.channels import RewrittenWarning
from penjing.prune.refit import refit
from penjing.prune.store import plan_of, save
from penjing.recipe import load_task
from penjing.score import CRITERIA

COARSE = 0.9  # of the multiply-accumulates that were asked for; less is told


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
    net = network(model, weights)
    with errors.status("reading the network"):
        found = inspect(net, example_of(net, shape, load_task(data) if data else None))
    if as_json:
        print_json(found.to_json())
    else:
        say(found.listing() if every else str(found))


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
    if out is not None:
        check_writable(out)
    net, task = network(model, weights), load_task(data) if data else None
    if refitted and task is None:
        raise RecipeError("--refit fits layers to what they gave on images, and there are none; give --data my_net:task")
    example, images = example_of(net, shape, task), images_of(task)
    if refitted and not images:
        raise DataError("--refit fits layers to what they gave on images, and task.train is empty; give at least one batch")
    with bars("pruning", 3) as advance, warnings.catch_warnings():
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
    if refitted:
        assert images
        small = refit(small, net, plan, example, images, progress=bars)
    if out is not None:
        earlier = plan_of(weights) if weights else None
        save(out, small, earlier.then(plan) if earlier else plan, example)
    _tell_pruned(net, small, example, error, out, refitted=refitted, as_json=as_json)
    if macs is not None and not as_json:
        _tell_steps(net, small, example, macs, round_to)


def _tell_pruned(
    net: nn.Module,
    small: nn.Module,
    example: tuple[Tensor, ...],
    error: float,
    out: Path | None,
    *,
    refitted: bool,
    as_json: bool,
) -> None:
    """Print what a cut changed; what was proved is the cut, which a refit comes after."""
    size = {
        "parameters": (parameters(net), parameters(small)),
        "macs": tuple(macs(capture(m, example)) for m in (net, small)),
    }
    rewritten = bool(getattr(small, "rewritten", False))
    if as_json:
        print_json({**size, "error": error, "refitted": refitted, "rewritten": rewritten, "out": str(out) if out else None})
        return
    table = Table(title=type(net).__name__, title_justify="left")
    for column in ("", "original", "pruned", "share"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, (was, now) in size.items():
        table.add_row(name, f"{was:,}", f"{now:,}", f"{now / was:.3f}" if was else "")
    console.print(table)
    equal = "Before the refit: equal" if refitted else "Equal"
    console.print(f"{equal} to the original in which the removed channels take no part: error {error:.1e}.", highlight=False)
    if rewritten:
        console.print("Its forward has sizes written into it, and was replaced by the exported graph.", highlight=False)
    if out is not None:
        say(f"the network: {out}")


def _tell_steps(net: nn.Module, small: nn.Module, example: tuple[Tensor, ...], asked: float, round_to: int) -> None:
    """Say why much less is left than may be, where it is."""
    small_macs, whole_macs = (macs(capture(m, example)) for m in (small, net))
    if round_to > 1 and small_macs < COARSE * asked * whole_macs:
        console.print(
            f"{small_macs / whole_macs:.2f} of the multiply-accumulates are left where {asked:g} was asked: widths are "
            f"multiples of {round_to}, and one more would have been too much; --round-to 1 comes nearer.",
            highlight=False,
        )
