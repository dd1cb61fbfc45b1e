"""Everything that is said of what came out, measured on its file; then the results, whole, ``result.json`` last."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import fx, nn

from penjing.errors import PenjingError
from penjing.export import RUNTIMES, Artifact, agreements, left_in_float
from penjing.files import finite, whole_file, write_json
from penjing.graph import capture, repeated
from penjing.measure import Judgement, Paired, compare, generalization, layers, machine, macs, parameters, peak_memory
from penjing.prune.store import save
from penjing.recipe import RECIPE, dump_recipe
from penjing.report import write_report
from penjing.result import ARTIFACT, DEFAULT, FP32, PLAN, REPORT, RESULT, SMALL, WEIGHTS, package_version
from penjing.run.baseline import Baseline
from penjing.run.candidates import Maker
from penjing.run.choose import Net
from penjing.run.job import Job
from penjing.run.pictures import forgotten
from penjing.run.rows import (
    accuracy,
    budget_entry,
    candidate_rows,
    file_entry,
    how_to_load,
    kernel_rows,
    latency_rows,
    layer_rows,
    now,
    slower_rows,
    speedup,
    verdict,
)
from penjing.run.training import control_key, key_in_integers
from penjing.search import Candidate, Mix, marked, over, within
from penjing.search.mix import FLOAT
from penjing.task import Score, as_a_file, as_tuple

WORSE = 1.02  # times the original's time that is not called slower: clocks are no better
WITHOUT_INTEGERS = ("fp32", FLOAT)  # what the forms of a network are called that have none


@dataclass(frozen=True)
class Shipped:
    """What may be handed over.

    Attributes:
        module: What the file was written from.
        precision: What the file is loaded in.
        found: The paired comparison on the confirm split; ``judgement`` what it says of the budget.
        latency: ms.
    """

    candidate: Candidate
    net: Net
    module: nn.Module
    artifact: Artifact
    precision: str | None
    found: Paired
    judgement: Judgement
    before: Score
    after: Score
    latency: float
    mix: Mix | None

    @property
    def is_original(self) -> bool:
        """Whether it is the original as it came: not cut, not trained, without integers."""
        cut = bool(self.net.plan.keep or self.net.plan.blocks or self.candidate.steps)
        floats = self.mix is not None and self.mix.chosen.name in WITHOUT_INTEGERS
        return self.candidate.key == "original" or (floats and not cut)

    def is_worth(self, baseline: Baseline, ceilings: Mapping[str, float], allowed: float | None) -> bool:
        """Whether it lost no more than is allowed, as far as was seen, and is no slower than the original, where that would be
        within the limits.
        """
        slower = self.latency > WORSE * baseline.default.cost.latency
        return within(self.found.drop, allowed) and not (slower and not over(baseline.default.cost, ceilings))


def tell(job: Job, maker: Maker, baseline: Baseline, tried: Sequence[Candidate], shipped: Shipped) -> None:
    """Measure, and write the results."""
    classes = maker.trainer.crew.choices.classes
    data = _measured(job, baseline, shipped, classes=classes) | {
        "control": _control(job, maker, shipped),
        "generalization": _generalization(job, baseline, shipped),
        "candidates": _candidates(job, maker, baseline, tried, shipped),
        "original_candidate": {"score": baseline.score, "latency": baseline.cost.latency},
        "plan": {"predicted": shipped.candidate.predicted, "measured": shipped.candidate.cost.latency}
        if shipped.candidate.predicted
        else None,
        "chosen": shipped.candidate.key,
        "unchanged": shipped.is_original,
        "untrained": maker.trainer.trains and not any(c.steps for c in tried),
        "classes": classes,
        "training": _training(job, tried, shipped),
        "stages": [{k: v for k, v in row.items() if k != "of"} for row in job.log.rows("stages") if row.get("of") == job.asked],
        "penjing": package_version(),
        "created": now(),
        "name": type(job.model).__name__,
        "target": job.profile.runtime,
        "budget": budget_entry(job.budget),
        "machine": machine() | {"threads": job.threads, "profile": job.profile.name},
        "settings": asdict(job.settings),
        "judges": job.judges,
    }
    data = finite(data | {"verdict": verdict(data, shipped.judgement)})
    (job.out / RESULT).unlink(missing_ok=True)  # of an earlier run under another budget: the files beside it change now
    if job.recipe is not None:
        dump_recipe(job.recipe, job.out / RECIPE)
    with whole_file(job.out / ARTIFACT) as part:
        shutil.copyfile(shipped.artifact.path, part)
    shipped.net.plan.save(job.out / PLAN)
    save(job.out / WEIGHTS, shipped.net.module, shipped.net.plan, job.example)
    write_report(data, job.out / REPORT)
    write_json(job.out / RESULT, data)


def _measured(job: Job, baseline: Baseline, shipped: Shipped, *, classes: bool) -> dict[str, Any]:
    artifact, original = shipped.artifact, baseline.artifact
    with job.stage("time"):
        rows = latency_rows(_timings(job, original, shipped))
    with job.stage("compare with torch"):
        runs = {name: artifact.on(name).load(job.threads, shipped.precision) for name in RUNTIMES}
        found = agreements(runs, shipped.module, (as_tuple(x) for x, _ in job.task.confirm))
        agree = {n: asdict(a) | ({} if classes else {"argmax": None}) for n, a in found.items()}
        kernels = {name: artifact.on(name).kernels(shipped.precision) for name in RUNTIMES}
    old, new = capture(job.model, job.example), capture(shipped.net.module, job.example)
    profiles = [
        a.profile(*job.timer.inputs, threads=job.threads, precision=p, seconds=2 * job.settings.seconds)
        for a, p in ((original, "f32"), (artifact, shipped.precision))
    ]
    precisions = {k.layer: k.precision for k in kernels[job.profile.runtime] if k.weighted}
    times = [{} if shipped.is_original else p.layers for p in profiles]  # of one network twice they would tell of noise
    rows_of_layers = layer_rows(layers(old), layers(new), precisions, times)
    size = job.settings.batch
    small = shipped.module if isinstance(shipped.module, fx.GraphModule) else new
    return {
        "accuracy": accuracy(job.task.metric, shipped.before, shipped.after, shipped.found),
        "size": {
            "parameters": [parameters(job.model), parameters(shipped.net.module)],
            "macs": [macs(old), macs(new)],
            "bytes": [original.path.stat().st_size, artifact.path.stat().st_size],
            "memory": [peak_memory(old, size), peak_memory(small, size)],
        },
        "latency": rows,
        "speedup": speedup(rows, size),
        "layers": rows_of_layers,
        "other_time": [sum(p.rest.values()) for p in profiles],
        "slower": slower_rows(rows_of_layers, job.profile.lanes),
        "agreement": agree,
        "kernels": {name: kernel_rows(k) for name, k in kernels.items()},
        "left_in_float": {name: [k.layer for k in left_in_float(ks)] for name, ks in kernels.items()},
        "load": how_to_load(artifact, shipped.precision, job.example, classes=classes),
        "files": file_entry(artifact, shipped.precision),
    }


def _timings(job: Job, original: Artifact, shipped: Shipped) -> dict[tuple[str, int], dict[str, Any]]:
    table: dict[tuple[str, int], dict[str, Any]] = {}
    files = ((FP32, original, "f32"), (DEFAULT, original, None), (SMALL, shipped.artifact, shipped.precision))
    others = job.settings.report_batches if original.dynamic and shipped.artifact.dynamic else ()
    for batch in sorted({job.settings.batch, *others}):
        keys = {f"{runtime} {net}": (runtime, net) for runtime in RUNTIMES for net, _, _ in files}
        runs = {f"{r} {net}": a.on(r).load(job.threads, p) for r in RUNTIMES for net, a, p in files}
        inputs = repeated(job.example, batch)
        for key, m in compare(runs, *inputs, seconds=job.settings.seconds, progress=job.progress).items():
            runtime, net = keys[key]
            table.setdefault((runtime, batch), {})[net] = m
    return table


def _control(job: Job, maker: Maker, shipped: Shipped) -> dict[str, Any] | None:
    """The original after as much training, with labels: on real networks that alone can gain more than compression loses."""
    steps = shipped.candidate.steps
    if not (steps and job.settings.control and job.settings.labels):
        return None
    with job.stage("train the original on, for comparison") as said:
        try:
            net = maker.trainer.control(shipped.candidate)
            score = job.score(as_a_file(net), job.task.confirm).value
        except PenjingError as e:  # no reason to lose the run
            said["gave"] = f"not known: {e}"
            return None
        said["gave"] = f"{score:.4g} on the confirm split"
    drop = shipped.before.value - score
    name = f"the original, trained on for the same {steps:,} steps"
    return {"name": name, "score": score, "drop": drop, "versus": shipped.after.value - score}


def _generalization(job: Job, baseline: Baseline, shipped: Shipped) -> dict[str, Any] | None:
    if not job.settings.generalization:
        return None
    allowed = max(0.0, shipped.found.drop) if job.budget.max_drop is None else job.budget.max_drop
    with job.stage("see whether it generalizes") as said:
        try:
            found = generalization(
                baseline.artifact.load(job.threads, "f32"),
                shipped.artifact.load(job.threads, shipped.precision),
                job.task.confirm,
                job.task.metric,
                allowed=allowed,
                samples=job.settings.generalization,
                seed=job.settings.seed,
                progress=job.progress,
            ).to_json()
        except PenjingError as e:  # no reason to lose the run
            said["gave"] = f"not known: {e}"
            return None
        said["gave"] = f"{len(found['warnings'])} warnings"
    return forgotten(found, job.task)


def _training(job: Job, tried: Sequence[Candidate], shipped: Shipped) -> list[dict[str, Any]]:
    """The epochs of this run: of another budget in this folder there may be more, of candidates that are called alike."""
    keys = {key for c in tried for key in (c.key, key_in_integers(c.key))} | {control_key(shipped.candidate.steps)}
    return [row for row in job.log.rows("training") if row.get("key") in keys]


def _candidates(
    job: Job, maker: Maker, baseline: Baseline, tried: Sequence[Candidate], shipped: Shipped
) -> list[dict[str, Any]]:
    originals = [marked(baseline.default, baseline.score, maker.chooser.ceilings, job.budget)]
    if shipped.candidate.key == baseline.default.key:  # the original is handed back
        lost = replace(baseline.default, status="does not hold", note="loses more than is allowed on the confirm split")
        originals = [lost, shipped.candidate] if shipped.precision else [shipped.candidate]
    first = {
        "name": "original, fp32",
        "kind": "original",
        "score": baseline.score,
        "drop": 0.0,
        "status": "original",
        "note": "",
    }
    first |= {"predicted": None, "minutes": None, **asdict(baseline.cost)}
    shown = [*originals, *tried]
    seconds: dict[str, float] = {}
    for row in job.log.rows("training"):
        seconds[row.get("key", "")] = seconds.get(row.get("key", ""), 0.0) + row["seconds"]
    spent = {c.key: sum(seconds.get(key, 0.0) for key in (c.key, key_in_integers(c.key))) for c in shown}
    minutes = {key: s / 60 for key, s in spent.items() if s}
    return candidate_rows(first, shown, baseline.score, minutes)
