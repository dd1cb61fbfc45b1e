"""Confirm on the split that nothing was chosen on, and hand over what holds there: in the end the original."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from penjing.errors import BudgetError
from penjing.export import export
from penjing.measure import Judgement, judged, paired
from penjing.quant import Quantizer
from penjing.run.baseline import Baseline
from penjing.run.candidates import Maker
from penjing.run.job import Job
from penjing.run.tell import Shipped, tell
from penjing.search import Candidate, Mix, MixSettings, fastest_mix, over
from penjing.task import Score

LOOKS = 3  # candidates that are confirmed, at most: each further look needs a clearer answer


def confirm(job: Job, maker: Maker, baseline: Baseline, tried: Sequence[Candidate]) -> None:
    """Confirm the candidates that hold, best first, until one loses no more than is allowed; write the results.

    Where none holds, the whole network with those layers back in float whose integers lose too much is the last to try.
    """
    before = job.task.metric(baseline.artifact.load(job.threads, "f32"), job.task.confirm)
    shown = list(tried)
    holding = [c for c in tried if c.status == "holds"][:LOOKS]
    for looks, candidate in enumerate(holding or _whole(tried), 1):
        shipped = _shipped(job, maker, baseline, candidate, before, looks)
        if candidate.status != "holds" and (shipped.mix is None or shipped.is_original):
            continue
        worth = shipped.is_worth(baseline, maker.chooser.ceilings, job.budget.max_drop)
        shown[shown.index(candidate)] = replace(shipped.candidate, status="chosen" if worth else "does not hold")
        if worth:
            return tell(job, maker, baseline, shown, shipped)
    return tell(job, maker, baseline, shown, _original(job, maker, baseline, before))


def _whole(tried: Sequence[Candidate]) -> list[Candidate]:
    """The network that was not cut and loses too much in integers."""
    return [c for c in tried if c.status == "too inaccurate" and not (c.widths or c.blocks or c.steps)][:1]


def _shipped(job: Job, maker: Maker, baseline: Baseline, candidate: Candidate, before: Score, looks: int) -> Shipped:
    """The candidate in its fastest form, confirmed."""
    net, mix = maker.net(candidate), None
    if not candidate.steps_in_integers:  # grids that were trained stay
        with job.stage("find the fastest form") as told:
            try:
                mix = _mixed(job, baseline, net.module, candidate)
                told["gave"] = f"{mix.chosen.name}, placement {mix.placement}"
            except BudgetError:  # by chance its integers score a little more than its floats, and just enough
                told["gave"] = "as it was scored"
    cost = maker.chooser.cost(net.module, mix.module, mix.chosen.artifact) if mix is not None else None
    if mix is not None and cost is not None and not over(cost, maker.chooser.ceilings):
        module, artifact, precision = mix.module, mix.chosen.artifact, mix.chosen.precision
        candidate = replace(candidate, cost=cost, score=mix.chosen.score, note=f"shipped as: {mix.chosen.name}")
    else:
        module, precision, mix = maker.module(candidate, net), None, None
        artifact = export(module, job.example, _final(job, candidate), target=job.profile.name)
    with job.stage("confirm") as told:
        after = job.task.metric(artifact.load(job.threads, precision), job.task.confirm)
        found = paired(before, after, looks=looks)
        told["gave"] = f"a drop of {found.drop:.4g}"
    judgement = judged(found, job.budget.max_drop) if job.budget.max_drop is not None else Judgement("holds", None)
    latency = job.timer({"it": (artifact, precision)})["it"].value
    return Shipped(candidate, net, module, artifact, precision, found, judgement, before, after, latency, mix)


def _mixed(job: Job, baseline: Baseline, net: nn.Module, candidate: Candidate) -> Mix:
    """The fastest of the candidate's placements and precisions that scores enough on the search split."""
    allowed = job.budget.max_drop
    score = candidate.score if candidate.score is not None else baseline.score
    if candidate.status != "holds" and allowed is not None:
        least = baseline.score - allowed
    elif allowed is None or job.budget.wants_accuracy:
        least = score
    else:
        least = min(score, baseline.score - allowed)
    quantizer = Quantizer(net, job.example, job.calibration, target=job.profile)
    return fastest_mix(
        quantizer,
        net,
        job.example,
        _final(job, candidate),
        evaluate=lambda run: job.task.metric(run, job.task.search).value,
        least=least,
        floats=candidate.floats,
        settings=MixSettings(threads=job.threads, batch=job.settings.batch, seconds=job.settings.seconds),
        timer=job.timer,
        progress=job.progress,
    )


def _final(job: Job, candidate: Candidate) -> Path:
    return job.stages / f"{candidate.key}-final.onnx"


def _original(job: Job, maker: Maker, baseline: Baseline, before: Score) -> Shipped:
    """The original in its runtime's default precision, or in fp32 where that loses too much."""
    artifact = baseline.artifact
    precision = None
    after = job.task.metric(artifact.load(job.threads), job.task.confirm)
    allowed = job.budget.max_drop
    if allowed is not None and paired(before, after).drop > allowed:
        precision, after = "f32", before
    candidate = replace(baseline.default, status="chosen", note="nothing that was tried holds")
    net = maker.net(candidate)
    latency = job.timer({"it": (artifact, precision)})["it"].value
    judgement = Judgement("does not hold", None)
    return Shipped(
        candidate, net, job.model, artifact, precision, paired(before, after), judgement, before, after, latency, None
    )
