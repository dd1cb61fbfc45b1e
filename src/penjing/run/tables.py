"""Look before cutting: what layers cost in time, and what widths and integers cost in accuracy."""

from dataclasses import asdict
from fnmatch import fnmatch
from typing import Any

import torch
from torch import fx

from penjing.export import export
from penjing.graph import capture
from penjing.graph.layers import weighted
from penjing.measure import macs
from penjing.prune import Block
from penjing.quant import quantize, sensitivity
from penjing.run.crew import Crew
from penjing.run.job import Job
from penjing.search import Damage, Prices, PriceSettings, Tables, dropping, few, in_power, measure_prices, narrowing
from penjing.search.allocate import BESIDE, BYTES
from penjing.task import as_tuple

QUICKEST = 0.1  # seconds to time a file that prices are taken from, at least
WORST = 1e6  # error of a layer whose integers make the output infinite
LISTENED = 16  # samples that a layer's integers are judged by


def look(crew: Crew) -> Tables:
    """All tables; what an earlier process has found is taken from the folder, and times from the machine's ledger.

    Times are the leader's alone; of errors every process of the crew finds its share.
    """
    job, evidence = crew.job, crew.choices.evidence
    with job.stage("measure what layers cost") as told:
        prices = _prices(job)
        told["gave"] = f"times of {len(weighted(evidence.graph))} layers"
    with job.stage("measure what widths cost") as told:
        damage = crew.all(_damage, job.kept(_named(crew, "damage")) or {})
        told["gave"] = f"{sum(len(row.errors) for row in damage.values())} widths of {len(damage)} groups"
    with job.stage("measure what blocks are worth") as told:
        blocks = crew.all(_blocks, job.kept(_named(crew, "blocks")) or {}) if job.settings.drop_blocks else {}
        told["gave"] = f"{len(blocks)} residual blocks that may go"
    with job.stage("measure what integers cost"):
        noise, beside = _integers(crew)
    return Tables(evidence.graph, evidence.channels, damage, noise, prices, beside, blocks)


def _named(crew: Crew, table: str) -> str:
    """What a table is kept as: its numbers mean nothing to one whose errors are told in something else."""
    return f"{table}-{crew.choices.apart.__name__}"


def _prices(job: Job) -> Prices:
    held = job.kept(name := f"prices-{job.clock}")
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
    job.keep(name, prices.to_json())
    return prices


def _damage(crew: Crew, rows: dict[str, Any]) -> dict[str, Damage]:
    """The error table; every group's row is kept as soon as it is there."""
    known = {name: Damage({int(w): e for w, e in r["errors"].items()}, tuple(r["scores"])) for name, r in rows.items()}

    def keep(name: str, row: Damage) -> None:
        rows[name] = asdict(row)
        crew.job.keep(_named(crew, "damage"), rows)

    found = crew.choices
    return narrowing(
        found.evidence, found.widths, work=macs(found.evidence.graph), apart=found.apart, known=known, on_group=keep,
        progress=crew.job.progress,
    )  # fmt: skip


def _blocks(crew: Crew, known: dict[str, float]) -> dict[str, float]:
    """The error table of residual blocks; every error is kept as soon as it is there."""
    job = crew.job

    def keep(names: str, error: float) -> None:
        known[names] = error
        job.keep(_named(crew, "blocks"), known)

    def stay(block: Block) -> bool:
        return any(fnmatch(weight, p) for weight in block.weights for p in job.settings.exclude)

    return dropping(
        job.model, job.example, job.calibration, apart=crew.choices.apart, stay=stay, known=known, on_blocks=keep,
        progress=job.progress,
    )  # fmt: skip


def _integers(crew: Crew) -> tuple[dict[str, float], float]:
    """What each layer's integers cost at the output, and the bytes of the file that are no layer's."""
    job = crew.job
    held = job.kept(_named(crew, "integers"))
    if held is None:
        module, noise = crew.all(_noise)
        whole = export(module, job.example, job.stages / "whole.onnx", target=job.profile.name)
        sizes = [(w.shape, w.shape[w.writes]) for w in weighted(capture(job.model, job.example))]
        layers = sum(torch.Size(shape).numel() * BYTES["int8"] + made * BESIDE["int8"] for shape, made in sizes)
        beside = max(0.0, float(whole.path.stat().st_size - layers))
        held = {"noise": {name: min(WORST, in_power(db)) for name, db in noise.items()}, "beside": beside}
        job.keep(_named(crew, "integers"), held)
    return {str(k): float(v) for k, v in held["noise"].items()}, float(held["beside"])


def _noise(crew: Crew) -> tuple[fx.GraphModule, dict[str, float]]:
    """The whole network in integers, and the error of each layer's."""
    job = crew.job
    module = quantize(job.model, job.example, job.calibration, target=job.profile.name)
    return module, sensitivity(module, _few(job), apart=crew.choices.apart, progress=job.progress)


def _few(job: Job) -> list[tuple[torch.Tensor, ...]]:
    return few([as_tuple(inputs) for inputs in job.calibration], LISTENED)
