"""One candidate: widths and precisions for a speed, then cut, repair, train, put into integers, write, score the file."""

import copy
import hashlib
import json
import math
from dataclasses import replace

from torch import fx

from penjing.export import Artifact, export
from penjing.plan import ChannelPlan
from penjing.prune import prune_channels, repair
from penjing.prune.store import load, save
from penjing.quant import Quantizer
from penjing.run.baseline import Baseline
from penjing.run.choose import Chooser, Net, Raw, kept_in
from penjing.run.job import Job
from penjing.run.training import Start, Trainer, key_in_integers
from penjing.search import Allocation, Candidate, Cost, in_integers, within
from penjing.task import as_a_file

WORTH = 0.5  # share of the drop that integers must cause to be trained in


class Maker:
    """Makes candidates, each once: what an earlier process of this run has made is taken from the folder."""

    def __init__(self, job: Job, chooser: Chooser, baseline: Baseline, trainer: Trainer) -> None:
        self.job, self.chooser, self.trainer = job, chooser, trainer
        self.original, self.reference = baseline.cost, baseline.score

    def make(self, share: float, source: Candidate | None, *, trained: bool, trials: int = 1) -> Candidate:
        """A candidate that takes ``share`` of the time of the whole network in integers.

        Args:
            source: What to cut from; None for the original.
            trained: Whether to train it, with an equal part of what is left for ``trials`` candidates.

        Raises:
            BudgetError: Nothing meets the limits.
        """
        key = self._key(share, source, trained=trained)
        if (held := self.job.kept(key)) is not None:
            return self._remembered(Candidate.from_json(held))
        longer = source is not None and source.share == share
        name = f"{1 / share:.2g}x{' trained longer' if longer else ' trained' if trained else ''}"
        raw = Raw(self._source(source), self.job, self.chooser.tables)
        untrained = self._key(share, source, trained=False)
        allocation = self.chooser.choose(key, share, raw, like=untrained)
        with self.job.stage(f"{name}: cut and repair") as told:
            net = self._cut(raw, allocation, like=untrained)
            told["gave"] = f"{len(net.plan.keep)} tensors cut, {len(net.plan.blocks)} blocks left out"
        steps = 0
        if trained:
            self._save(net, key, trained=True)  # for those who train it together with this process
            start = Start(net.module, key)
            steps = self.trainer.steps(start, key, trials)
            with self.job.stage(f"{name}: distil") as told:
                net = replace(net, module=self.trainer.train(start, key, name, steps))
                told["gave"] = f"{steps} steps"
        self._save(net, key, trained=trained)
        made = self._scored(key, name, share, net, allocation, steps, twin=untrained)
        self.job.keep(key, made.to_json())
        return made

    def _remembered(self, made: Candidate) -> Candidate:
        """What was made by an earlier process, which must count as it did then."""
        self.chooser.recall(made.key)
        if made.steps:
            self.trainer.recount(made.key)
        return made

    def net(self, candidate: Candidate) -> Net:
        """A candidate's network in float."""
        return self._source(candidate)

    def module(self, candidate: Candidate, net: Net | None = None) -> fx.GraphModule:
        """A candidate's network in integers, as its file has it."""
        net = net or self.net(candidate)
        quantizer = Quantizer(net.module, self.job.example, self.job.calibration, target=self.job.profile)
        module = quantizer.module(candidate.floats)
        if candidate.steps_in_integers:
            start = Start(module, candidate.key, tuple(candidate.floats))
            name = in_integers(candidate.name)
            trained = self.trainer.train(start, key_in_integers(candidate.key), name, candidate.steps_in_integers)
            assert isinstance(trained, fx.GraphModule)
            return trained
        return module

    def artifact(self, candidate: Candidate, module: fx.GraphModule | None = None) -> Artifact:
        """A candidate's file."""
        path = self.job.stages / f"{candidate.key}.onnx"
        return export(module or self.module(candidate), self.job.example, path, target=self.job.profile.name)

    # What is made.

    def _source(self, candidate: Candidate | None) -> Net:
        if candidate is None or not (candidate.widths or candidate.blocks or candidate.steps):
            return Net(copy.deepcopy(self.job.model).eval(), ChannelPlan({}), {})
        path = self.job.stages / f"{candidate.key}.safetensors"
        plan = ChannelPlan.from_json(self.job.kept(f"{candidate.key}-plan"))
        return Net(load(path, lambda: self.job.model).eval(), plan, candidate.widths)

    def _cut(self, raw: Raw, allocation: Allocation, *, like: str) -> Net:
        job, net = self.job, raw.net
        if (held := job.kept(f"{like}-plan")) is not None:  # written after the network: the same was cut before
            small = load(job.stages / f"{like}.safetensors", lambda: job.model).eval()
            return Net(small, ChannelPlan.from_json(held), dict(allocation.widths))
        plan = raw.plan(allocation)
        if not (plan.keep or plan.blocks):
            return net
        small = prune_channels(net.module, plan, job.example)
        small = repair(small, net.module, plan, job.example, job.calibration, seed=job.settings.seed, progress=job.progress)
        whole = net.plan.then(plan)  # what it cut before of blocks that have gone since is nowhere to be cut
        whole = replace(whole, keep=kept_in(small, whole.keep))
        return Net(small, whole, dict(allocation.widths))

    def _save(self, net: Net, key: str, *, trained: bool) -> None:
        if net.plan.keep or net.plan.blocks or trained:
            save(self.job.stages / f"{key}.safetensors", net.module, net.plan, self.job.example)
            self.job.keep(f"{key}-plan", net.plan.to_json())

    def _scored(
        self, key: str, name: str, share: float, net: Net, allocation: Allocation, steps: int, *, twin: str
    ) -> Candidate:
        """Integers, the file, its score; trained in integers where these cost too much and there is training left."""
        job = self.job
        floats = self.chooser.floats(net.module, allocation)
        made = Candidate(
            name=name, key=key, kind="trained" if steps else "untrained", share=share, widths=dict(net.widths), floats=floats,
            blocks=net.plan.blocks, cost=self.original, predicted=allocation.costs["latency"], steps=steps,
        )  # fmt: skip
        with job.stage(f"{name}: quantize, export, score") as told:
            module = self.module(made, net)
            artifact = self.artifact(made, module)
            score = job.searched(artifact.load(job.threads))
            told["gave"] = f"{score:.4g} on the search split"
        made = replace(made, score=_number(score), cost=self._cost(made, twin, net, module, artifact))
        if steps and self._integers_cost_too_much(net, score):
            made = self._trained_in_integers(made, net)
        return made

    def _cost(self, made: Candidate, twin: str, net: Net, module: fx.GraphModule, artifact: Artifact) -> Cost:
        """What a file costs; it takes the time that the same network took untrained, where that was made and timed."""
        held = self.job.kept(twin) if made.steps else None
        if held is not None:
            other = Candidate.from_json(held)
            if (other.widths, other.blocks, other.floats) == (made.widths, made.blocks, made.floats):
                return replace(other.cost, bytes=float(artifact.path.stat().st_size))
        return self.chooser.cost(net.module, module, artifact)

    def _integers_cost_too_much(self, net: Net, score: float) -> bool:
        if within(self.reference - score, self.job.budget.max_drop):
            return False
        exact = self.job.searched(as_a_file(net.module.eval()))
        return exact - score >= WORTH * (self.reference - score)

    def _trained_in_integers(self, made: Candidate, net: Net) -> Candidate:
        steps = self.trainer.take_reserve(made.key)
        if not steps:
            return made
        trained = replace(made, kind="quantization-aware", steps=made.steps + steps, steps_in_integers=steps)
        with self.job.stage(f"{made.name}: train in integers") as told:
            module = self.module(trained, net)
            artifact = self.artifact(trained, module)
            score = self.job.searched(artifact.load(self.job.threads))
            told["gave"] = f"{score:.4g} on the search split"
        if score <= (-math.inf if made.score is None else made.score):
            self.artifact(made, self.module(made, net))  # the file as it was
            return made
        return replace(trained, score=score, cost=self.chooser.cost(net.module, module, artifact))

    def _key(self, share: float, source: Candidate | None, *, trained: bool) -> str:
        told = json.dumps([round(share, 9), self.chooser.ceilings, source.key if source else "", trained], sort_keys=True)
        return f"{'trained' if trained else 'cut'}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def _number(score: float) -> float | None:
    """A score as JSON knows it; None where the metric gave none."""
    return score if math.isfinite(score) else None
