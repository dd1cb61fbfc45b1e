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
from penjing.run.tell import WITHOUT_INTEGERS, Shipped, tell
from penjing.search import Candidate, Mix, MixSettings, Tried, fastest_mix, marked, over, within
from penjing.task import NoScore, Score

APART = 1.2  # times the time of a candidate from which on the next one leaves room for another between
LOOKS = 3  # candidates that are confirmed, at most
SPENT = 0.8  # share of the error that is left which each of them spends, so that most have nearly all; the original the rest


def confirm(job: Job, maker: Maker, baseline: Baseline, tried: Sequence[Candidate]) -> None:
    """Confirm the candidates that hold, best first, until one loses no more than is allowed; write the results.

    Behind one that does not, a gentler one is made, if the next is much slower. Where none holds, the whole network with those
    layers back in float whose integers lose too much is the last to try.
    """
    before = job.score(baseline.artifact.load(job.threads, "f32"), job.task.confirm)
    shown = list(tried)
    waiting = [c for c in tried if c.status == "holds"] or _whole(tried)
    looked, left = 0, 1.0  # and how much is left of the error
    while waiting and looked < LOOKS:
        looked, spent, left = looked + 1, SPENT * left, (1 - SPENT) * left
        candidate = waiting.pop(0)
        try:
            shipped = _shipped(job, maker, baseline, candidate, before, 1 / spent)
        except NoScore:
            shown[shown.index(candidate)] = replace(candidate, status="does not hold", note="the metric gives no number")
            continue
        if candidate.status != "holds" and (shipped.mix is None or shipped.is_original):
            continue
        worth = shipped.is_worth(baseline, maker.chooser.ceilings, job.budget.max_drop)
        status = "chosen" if worth else "does not hold"
        note = shipped.candidate.note if worth else _why_not(shipped, job.budget.max_drop)
        shown[shown.index(candidate)] = replace(shipped.candidate, status=status, note=note)
        if worth:
            return tell(job, maker, baseline, shown, shipped)
        if looked < LOOKS - 1 and (gentler := _between(job, maker, baseline, candidate, waiting[:1])) is not None:
            shown.append(gentler)
            waiting.insert(0, gentler)
    return tell(job, maker, baseline, shown, _original(job, maker, baseline, before, 1 / left))


def _between(job: Job, maker: Maker, baseline: Baseline, failed: Candidate, following: Sequence[Candidate]) -> Candidate | None:
    """A candidate half way between one that failed and the next, not trained; None where that is near, or does not hold."""
    if failed.steps or not following or following[0].share < APART * failed.share:
        return None
    made = maker.make((failed.share * following[0].share) ** 0.5, None, trained=False)
    made = marked(made, baseline.score, maker.chooser.ceilings, job.budget)
    return made if made.status == "holds" else None


def _why_not(shipped: Shipped, allowed: float | None) -> str:
    if allowed is not None and not within(shipped.found.drop, allowed):
        return f"loses {shipped.found.drop:.4g} on the confirm split, {allowed:.4g} allowed"
    return "slower than the original when it was timed again"


def _whole(tried: Sequence[Candidate]) -> list[Candidate]:
    """The network that was not cut and loses too much in integers."""
    return [c for c in tried if c.status == "too inaccurate" and not (c.widths or c.blocks or c.steps)][:1]


def _shipped(job: Job, maker: Maker, baseline: Baseline, candidate: Candidate, before: Score, looks: float) -> Shipped:
    """The candidate in its fastest form, confirmed."""
    net, mix = maker.net(candidate), None
    if not candidate.steps_in_integers:  # grids that were trained stay
        with job.stage("find the fastest form") as told:
            try:
                mix = _mixed(job, baseline, net.module, candidate)
                told["gave"] = f"{mix.chosen.name}, placement {mix.placement}"
            except BudgetError:  # by chance its integers score a little more than its floats, and just enough
                told["gave"] = "as it was scored"
    cost = None
    if mix is not None:
        cost = maker.chooser.cost(net.module, mix.module, mix.chosen.artifact, mix.chosen.precision)
    if mix is not None and cost is not None and not over(cost, maker.chooser.ceilings):
        module, artifact, precision = mix.module, mix.chosen.artifact, mix.chosen.precision
        predicted = candidate.predicted if _is_as_planned(mix.chosen, candidate) else None
        note = f"shipped as: {mix.chosen.name}"
        candidate = replace(candidate, cost=cost, score=mix.chosen.score, predicted=predicted, note=note)
    else:
        module, precision, mix = maker.module(candidate, net), None, None
        artifact = export(module, job.example, _final(job, candidate), target=job.profile.name)
    with job.stage("confirm") as told:
        after = job.score(artifact.load(job.threads, precision), job.task.confirm)
        found = paired(before, after, looks=looks)
        told["gave"] = f"a drop of {found.drop:.4g}"
    judgement = judged(found, job.budget.max_drop) if job.budget.max_drop is not None else Judgement("holds", None)
    latency = job.timer({"it": (artifact, precision)})["it"].value
    return Shipped(candidate, net, module, artifact, precision, found, judgement, before, after, latency, mix)


def _is_as_planned(form: Tried, candidate: Candidate) -> bool:
    """Whether a form is the one that a time was predicted for: in integers but for the layers that the plan left in float."""
    return form.name not in WITHOUT_INTEGERS and form.floats == candidate.floats


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
        evaluate=job.searched,
        least=least,
        floats=candidate.floats,
        settings=MixSettings(threads=job.threads, batch=job.settings.batch, seconds=job.settings.seconds),
        timer=job.timer,
        progress=job.progress,
    )


def _final(job: Job, candidate: Candidate) -> Path:
    return job.stages / f"{candidate.key}-final.onnx"


def _original(job: Job, maker: Maker, baseline: Baseline, before: Score, looks: float) -> Shipped:
    """The original in its runtime's default precision, or in fp32 where that loses too much."""
    artifact = baseline.artifact
    precision = None
    after = job.score(artifact.load(job.threads), job.task.confirm)
    allowed = job.budget.max_drop
    if not within(before.value - after.value, allowed):
        precision, after = "f32", before
    candidate = replace(baseline.default, status="chosen", note="nothing that was tried is better")
    if precision:
        candidate = replace(candidate, name="original, in fp32", cost=baseline.cost, score=baseline.score)
    net, found = maker.net(candidate), paired(before, after, looks=looks)
    latency = job.timer({"it": (artifact, precision)})["it"].value
    keeps = not over(baseline.cost if precision else baseline.default.cost, maker.chooser.ceilings)
    judgement = Judgement("does not hold", None)
    if keeps and precision is None and allowed is not None:
        judgement = judged(found, allowed)
    elif keeps:  # in fp32 it is what it is compared with
        judgement = Judgement("holds", None)
    return Shipped(candidate, net, job.model, artifact, precision, found, judgement, before, after, latency, None)
