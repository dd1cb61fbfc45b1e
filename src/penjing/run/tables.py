"""Look before cutting: what layers cost in time, and what widths and integers cost in accuracy."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any

import torch

from penjing.distill.logits import is_classes
from penjing.errors import RecipeError
from penjing.export import export
from penjing.graph import Channels, Graph, capture
from penjing.graph.layers import weighted
from penjing.measure import macs
from penjing.prune import Block, allowed_widths
from penjing.quant import quantize, sensitivity
from penjing.quant.apart import Apart, divergence, noise_share
from penjing.run.job import Job
from penjing.score import Evidence
from penjing.search import Damage, Prices, PriceSettings, Tables, dropping, in_power, measure_prices, narrowing
from penjing.search.allocate import BESIDE, BYTES
from penjing.task import as_tuple

QUICKEST = 0.1  # seconds to time a file that prices are taken from, at least
WORST = 1e6  # error of a layer whose integers make the output infinite
LISTENED = 16  # samples that a layer's integers are judged by


@dataclass(frozen=True)
class Choices:
    """What there is to choose from: the channels, what their errors are told in, and the widths that every group may have."""

    evidence: Evidence
    apart: Apart
    widths: Mapping[str, list[int]]


def choices(job: Job) -> Choices:
    """Read the network; nothing is written.

    Raises:
        ModelError: It cannot be read.
        RecipeError: A pattern to exclude fits nothing.
    """
    evidence = Evidence.of(capture(job.model, job.example), job.calibration, job.task.loss)
    return Choices(evidence, _apart(job, evidence.graph), _widths(job, evidence.channels))


def look(job: Job, found: Choices) -> Tables:
    """All tables; what an earlier process has found is taken from the folder, and times from the machine's ledger."""
    evidence, graph = found.evidence, found.evidence.graph
    with job.stage("measure what layers cost") as told:
        prices = _prices(job)
        told["gave"] = f"times of {len(weighted(graph))} layers"
    with job.stage("measure what widths cost") as told:
        damage = _damage(job, found)
        told["gave"] = f"{sum(len(row.errors) for row in damage.values())} widths of {len(damage)} groups"
    with job.stage("measure what blocks are worth") as told:
        blocks = _blocks(job, found.apart)
        told["gave"] = f"{len(blocks)} residual blocks that may go"
    with job.stage("measure what integers cost"):
        noise, beside = _integers(job, found.apart)
    return Tables(graph, evidence.channels, damage, noise, prices, beside, blocks)


def _apart(job: Job, graph: Graph) -> Apart:
    """Classes are compared by what becomes of their probabilities, other outputs by their values."""
    with torch.no_grad():
        output = graph.module(*job.example)
    target = next(iter(job.task.search))[1]
    return divergence if is_classes(output, target[:1] if isinstance(target, torch.Tensor) else target) else noise_share


def _widths(job: Job, channels: Channels) -> dict[str, list[int]]:
    """The widths that every group may have; groups that are to stay whole are not there."""
    s = job.settings
    step = s.round_to or job.profile.lanes
    for pattern in s.exclude:
        if not any(fnmatch(name, pattern) for name in channels.shapes):
            near = next(iter(channels.shapes), "")
            raise RecipeError(f"exclude pattern {pattern!r} fits no parameter; names look like {near!r}")
    return {
        g.name: allowed_widths(g.channels, step, blocks=1 if g.blocks is None else len(g.blocks), floor=s.floor)
        for g in channels.groups
        if (s.cut_sums or not g.summed) and not any(fnmatch(a.name, p) for a in g.axes for p in s.exclude)
    }


def _prices(job: Job) -> Prices:
    held = job.kept("prices")
    if held is not None:
        return Prices.from_json(held)
    prices = measure_prices(
        job.model,
        job.example,
        target=job.profile.name,
        settings=PriceSettings(
            batch=job.settings.batch,
            threads=job.threads,
            samples=job.settings.samples,
            seconds=max(QUICKEST, min(PriceSettings.seconds, job.settings.seconds)),
        ),
        ledger=job.ledger,
        fresh=job.settings.fresh,
        progress=job.progress,
    )
    job.keep("prices", prices.to_json())
    return prices


def _damage(job: Job, found: Choices) -> dict[str, Damage]:
    """The error table; every group's row is kept as soon as it is there."""
    rows: dict[str, Any] = job.kept(f"damage-{found.apart.__name__}") or {}
    known = {name: Damage({int(w): e for w, e in r["errors"].items()}, tuple(r["scores"])) for name, r in rows.items()}

    def keep(name: str, row: Damage) -> None:
        rows[name] = asdict(row)
        job.keep(f"damage-{found.apart.__name__}", rows)

    return narrowing(
        found.evidence, found.widths, work=macs(found.evidence.graph), apart=found.apart, known=known, on_group=keep,
        progress=job.progress,
    )  # fmt: skip


def _blocks(job: Job, apart: Apart) -> dict[str, float]:
    """The error table of residual blocks; every error is kept as soon as it is there."""
    if not job.settings.drop_blocks:
        return {}
    known: dict[str, float] = job.kept(f"blocks-{apart.__name__}") or {}

    def keep(names: str, error: float) -> None:
        known[names] = error
        job.keep(f"blocks-{apart.__name__}", known)

    def stay(block: Block) -> bool:
        return any(fnmatch(weight, p) for weight in block.weights for p in job.settings.exclude)

    return dropping(
        job.model, job.example, job.calibration, apart=apart, stay=stay, known=known, on_blocks=keep, progress=job.progress
    )


def _integers(job: Job, apart: Apart) -> tuple[dict[str, float], float]:
    """What each layer's integers cost at the output, and the bytes of the file that are no layer's."""
    held = job.kept(f"integers-{apart.__name__}")
    if held is None:
        module = quantize(job.model, job.example, job.calibration, target=job.profile.name)
        noise = sensitivity(module, _few(job), apart=apart, progress=job.progress)
        whole = export(module, job.example, job.stages / "whole.onnx", target=job.profile.name)
        sizes = [(w.shape, w.shape[w.writes]) for w in weighted(capture(job.model, job.example))]
        layers = sum(torch.Size(shape).numel() * BYTES["int8"] + made * BESIDE["int8"] for shape, made in sizes)
        beside = max(0.0, float(whole.path.stat().st_size - layers))
        held = {"noise": {name: min(WORST, in_power(db)) for name, db in noise.items()}, "beside": beside}
        job.keep(f"integers-{apart.__name__}", held)
    return {str(k): float(v) for k, v in held["noise"].items()}, float(held["beside"])


def _few(job: Job) -> list[tuple[torch.Tensor, ...]]:
    first = as_tuple(job.calibration[0])
    return [tuple(x[:LISTENED] for x in first)]
