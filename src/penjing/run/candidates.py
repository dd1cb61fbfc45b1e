"""One candidate: widths and precisions for a speed, then cut, repair, train, put into integers, write, score the file."""

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, fx, nn

from penjing.errors import BudgetError
from penjing.export import Artifact, export
from penjing.graph import Channels, capture
from penjing.graph.layers import weighted
from penjing.measure import macs, peak_memory
from penjing.plan import ChannelPlan, Keep
from penjing.prune import drop_blocks, plan_widths, prune_channels, prune_to_look, repair
from penjing.prune.store import load, save
from penjing.quant import Quantizer
from penjing.run.baseline import Baseline
from penjing.run.job import Job
from penjing.run.training import Start, Trainer
from penjing.score import Evidence, structured_obs
from penjing.search import Allocation, Candidate, Cost, Tables, allocate, extremes, over, regrouped, scaled, shown
from penjing.task import as_a_file

STITCHES = 6  # times that a choice is measured and corrected where a limit is given
STEADY = 0.9  # share of what files were thought to take that they may take without being made wider again
CLOSER = 0.97  # of the latency asked for, at each correction: widths come in steps, and clocks are not exact
WORTH = 0.5  # share of the drop that integers must cause to be trained in


@dataclass(frozen=True)
class Net:
    """A network on its way: what it computes in float, and how it was cut."""

    module: nn.Module
    plan: ChannelPlan
    widths: Mapping[str, int]  # of the groups that were cut


class Maker:
    """Makes candidates, each once: what an earlier process of this run has made is taken from the folder."""

    def __init__(self, job: Job, tables: Tables, baseline: Baseline, trainer: Trainer) -> None:
        self.job, self.tables, self.trainer = job, tables, trainer
        self.original, self.reference = baseline.cost, baseline.score
        self.whole, self.narrowest = extremes(tables)
        self.ratio = 1.0  # measured over predicted latency
        self.ceilings = job.budget.ceilings(asdict(baseline.cost))

    def bounds(self) -> tuple[float, float]:
        """The shares of the whole network's latency in integers to choose from: the most that limits allow, and the least.

        Raises:
            BudgetError: Nothing meets the limits.
        """
        whole = self.whole.costs["latency"]
        least = min(1.0, 1.02 * self.narrowest.costs["latency"] / whole)
        fast = self.ceilings.get("latency")
        return (1.0 if fast is None else max(least, min(1.0, fast / whole))), least

    def make(self, share: float, source: Candidate | None, *, trained: bool, trials: int = 1) -> Candidate:
        """A candidate that takes ``share`` of the time of the whole network in integers.

        Args:
            source: What to cut from; None for the original.
            trained: Whether to train it, with an equal part of what is left for ``trials`` candidates.

        Raises:
            BudgetError: Nothing meets the limits.
        """
        key = self._key(share, source, trained)
        if (held := self.job.kept(key)) is not None:
            return self._remembered(Candidate.from_json(held))
        name = f"{1 / share:.2g}x{' trained' if trained else ''}"
        allocation = self._allocated(key, share, source)
        with self.job.stage(f"{name}: cut and repair") as told:
            net = self._cut(self._source(source), allocation)
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
        made = self._scored(key, name, share, net, allocation, steps)
        self.job.keep(key, made.to_json())
        return made

    def _remembered(self, made: Candidate) -> Candidate:
        """What was made by an earlier process, which must count as it did then."""
        if (held := self.job.kept(f"{made.key}-widths")) is not None:
            self.ratio = held["ratio"]
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
            trained = self.trainer.train(start, f"{candidate.key}-integers", candidate.name, candidate.steps_in_integers)
            assert isinstance(trained, fx.GraphModule)
            return trained
        return module

    def artifact(self, candidate: Candidate, module: fx.GraphModule | None = None) -> Artifact:
        """A candidate's file."""
        path = self.job.stages / f"{candidate.key}.onnx"
        return export(module or self.module(candidate), self.job.example, path, target=self.job.profile.name)

    # What is decided before anything is cut.

    def _allocated(self, key: str, share: float, source: Candidate | None) -> Allocation:
        """Widths and precisions; where limits were given, measured on an uncalibrated file and corrected."""
        held = self.job.kept(f"{key}-widths")
        if held is not None:
            self.ratio = held["ratio"]  # as it was then, or what comes next would be chosen by another
            return Allocation(**{**held["allocation"], "blocks": tuple(held["allocation"]["blocks"])})
        if share >= 1 and not self.ceilings:
            return self.whole
        most = dict(source.widths) if source else {}
        asked = {r: v for r, v in self.ceilings.items() if r != "latency"}
        limits = dict(asked)
        aim = share * self.whole.costs["latency"]
        fast = self.ceilings.get("latency")
        seen: dict[str, float] = {}
        fitting: list[Allocation] = []
        over_by = 0
        for _ in range(STITCHES):
            used = self.ratio
            latency = min(aim, CLOSER**over_by * fast / used) if fast else aim
            try:
                found = allocate(self.tables, limits | {"latency": latency}, most=most, gone=source.blocks if source else ())
            except BudgetError:
                if fitting:
                    break
                raise
            if not self.ceilings:
                fitting.append(found)
                break
            seen = asdict(self._cost(self._stitched(found, source), found))
            self.ratio = seen["latency"] / found.costs["latency"]
            if missed := over(Cost(**seen), self.ceilings):
                over_by += "latency" in missed
                limits = scaled(asked, seen, {**found.costs, "memory": limits.get("memory", 0.0)})
                continue
            fitting.append(found)
            if not fast or self.ratio >= STEADY * used:  # else a busy moment had it cut too narrow
                break
        if not fitting:
            told = [
                f"{r} of {shown(r, seen[r])} where {shown(r, v)} was asked" for r, v in self.ceilings.items() if seen[r] > v
            ]
            raise BudgetError(f"the nearest network that could be made has {' and '.join(told)}; loosen the limits")
        found = min(fitting, key=lambda a: a.error)
        self.job.keep(f"{key}-widths", {"allocation": asdict(found), "ratio": self.ratio})
        return found

    def _stitched(self, allocation: Allocation, source: Candidate | None) -> nn.Module:
        """The network as allocated, not repaired and not trained: it costs the same."""
        net = self._source(source)
        channels = Evidence.of(capture(net.module, self.job.example)).channels
        plan = self._plan(net, channels, {g.name: torch.ones(g.channels) for g in channels.groups}, allocation)
        return prune_to_look(net.module, plan, self.job.example) if plan.keep or plan.blocks else net.module

    def _cost(self, module: nn.Module, allocation: Allocation) -> Cost:
        quantizer = Quantizer(module, self.job.example, self.job.calibration[:1], target=self.job.profile)
        small = quantizer.module(self._floats(module, allocation))
        path = self.job.stages / "stitched.onnx"
        return self.cost(module, small, export(small, self.job.example, path, target=self.job.profile.name))

    def cost(self, net: nn.Module, small: nn.Module, artifact: Artifact) -> Cost:
        """What a file costs."""
        graph = capture(net, self.job.example)
        latency = self.job.timer({"it": (artifact, None)})["it"].value
        if latency > self.ceilings.get("latency", math.inf):  # it may have been a busy moment
            latency = self.job.timer.surely((artifact, None)).value
        return Cost(
            latency=latency,
            bytes=artifact.path.stat().st_size,
            macs=macs(graph),
            memory=peak_memory(small if isinstance(small, fx.GraphModule) else graph, self.job.settings.batch),
        )

    # What is made.

    def _source(self, candidate: Candidate | None) -> Net:
        if candidate is None or not (candidate.widths or candidate.blocks or candidate.steps):
            return Net(copy.deepcopy(self.job.model).eval(), ChannelPlan({}), {})
        path = self.job.stages / f"{candidate.key}.safetensors"
        plan = ChannelPlan.from_json(self.job.kept(f"{candidate.key}-plan"))
        return Net(load(path, lambda: self.job.model).eval(), plan, candidate.widths)

    def _cut(self, net: Net, allocation: Allocation) -> Net:
        job = self.job
        evidence = Evidence.of(capture(net.module, job.example), job.calibration, job.task.loss)
        plan = self._plan(net, evidence.channels, self._scores(net, evidence), allocation)
        if not (plan.keep or plan.blocks):
            return net
        small = prune_channels(net.module, plan, job.example)
        small = repair(small, net.module, plan, job.example, job.calibration, seed=job.settings.seed, progress=job.progress)
        whole = net.plan.then(plan)  # what it cut before of blocks that have gone since is nowhere to be cut
        whole = replace(whole, keep=_in(small, whole.keep))
        return Net(small, whole, dict(allocation.widths))

    def _plan(self, net: Net, channels: Channels, scores: Mapping[str, Tensor], allocation: Allocation) -> ChannelPlan:
        """Chosen while all blocks are there, as the tables were made, then without what goes with them."""
        widths = regrouped(allocation.widths, self.tables.channels, channels, net.plan, net.widths)
        keep = plan_widths(channels, scores, widths).keep
        if allocation.blocks:
            keep = _in(drop_blocks(net.module, allocation.blocks, self.job.example), keep)
        return ChannelPlan(keep, blocks=allocation.blocks)

    def _floats(self, module: nn.Module, allocation: Allocation) -> tuple[str, ...]:
        """The nodes of the layers to be left in float; what nodes are called changes where blocks have gone."""
        chosen = {w.weight for w in weighted(self.tables.graph) if allocation.precisions.get(w.node.name) == "float"}
        return tuple(w.node.name for w in weighted(capture(module, self.job.example)) if w.weight in chosen)

    def _scores(self, net: Net, evidence: Evidence) -> Mapping[str, Tensor]:
        if net.plan.keep or net.plan.blocks:
            return structured_obs(evidence)
        known = {name: torch.tensor(row.scores, dtype=torch.float64) for name, row in self.tables.damage.items()}
        return {g.name: known.get(g.name, torch.ones(g.channels)) for g in evidence.channels.groups}

    def _save(self, net: Net, key: str, *, trained: bool) -> None:
        if net.plan.keep or net.plan.blocks or trained:
            save(self.job.stages / f"{key}.safetensors", net.module, net.plan, self.job.example)
            self.job.keep(f"{key}-plan", net.plan.to_json())

    def _scored(self, key: str, name: str, share: float, net: Net, allocation: Allocation, steps: int) -> Candidate:
        """Integers, the file, its score; trained in integers where these cost too much and there is training left."""
        job = self.job
        floats = self._floats(net.module, allocation)
        made = Candidate(
            name=name, key=key, kind="trained" if steps else "untrained", share=share, widths=dict(net.widths), floats=floats,
            blocks=net.plan.blocks, cost=self.original, predicted=self.ratio * allocation.costs["latency"], steps=steps,
        )  # fmt: skip
        with job.stage(f"{name}: quantize, export, score") as told:
            module = self.module(made, net)
            artifact = self.artifact(made, module)
            score = job.task.metric(artifact.load(self.job.threads), job.task.search).value
            told["gave"] = f"{score:.4g} on the search split"
        made = replace(made, score=score, cost=self.cost(net.module, module, artifact))
        if steps and self._integers_cost_too_much(net, score):
            made = self._trained_in_integers(made, net)
        return made

    def _integers_cost_too_much(self, net: Net, score: float) -> bool:
        most = self.job.budget.max_drop
        if most is None or self.reference - score <= most:
            return False
        exact = self.job.task.metric(as_a_file(net.module.eval()), self.job.task.search).value
        return exact - score >= WORTH * (self.reference - score)

    def _trained_in_integers(self, made: Candidate, net: Net) -> Candidate:
        steps = self.trainer.take_reserve(made.key)
        if not steps:
            return made
        trained = replace(made, kind="quantization-aware", steps=made.steps + steps, steps_in_integers=steps)
        with self.job.stage(f"{made.name}: train in integers") as told:
            module = self.module(trained, net)
            artifact = self.artifact(trained, module)
            score = self.job.task.metric(artifact.load(self.job.threads), self.job.task.search).value
            told["gave"] = f"{score:.4g} on the search split"
        if score <= (made.score or 0.0):
            self.artifact(made, self.module(made, net))  # the file as it was
            return made
        return replace(trained, score=score, cost=self.cost(net.module, module, artifact))

    def _key(self, share: float, source: Candidate | None, trained: bool) -> str:
        told = json.dumps([round(share, 9), self.ceilings, source.key if source else "", trained], sort_keys=True)
        return f"{'trained' if trained else 'cut'}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def _in(module: nn.Module, keep: Keep) -> Keep:
    """What is kept of the parameters and buffers that a network has."""
    there = {n for held in (module.named_parameters, module.named_buffers) for n, _ in held(remove_duplicate=False)}
    return {name: dims for name, dims in keep.items() if name in there}
