"""Widths, precisions and blocks for a speed: chosen by the tables, compared on whole networks, measured and corrected."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from penjing.errors import BudgetError
from penjing.export import Artifact, export
from penjing.graph import Channels, capture, own_tensors
from penjing.graph.layers import weighted
from penjing.measure import macs, peak_memory
from penjing.plan import ChannelPlan, Keep
from penjing.prune import drop_blocks, plan_widths, prune_to_look
from penjing.quant import Quantizer
from penjing.run.baseline import Baseline
from penjing.run.contest import contest
from penjing.run.crew import Crew
from penjing.run.job import Job
from penjing.score import Evidence, structured_obs
from penjing.search import (
    LEAST_SUM,
    Allocation,
    Cost,
    Tables,
    allocate,
    extremes,
    nearest,
    over,
    regrouped,
    rivals,
    scaled,
    shown,
)

STITCHES = 6  # times that a choice is measured and corrected where a limit is given
NEARLY = 0.999  # share of the latency limit from which on a latency by the tables is the limit itself
STEADY = 0.9  # share of what files were thought to take that they may take without being made wider again
CLOSER = 0.97  # of the latency asked for, at each correction: widths come in steps, and clocks are not exact


@dataclass(frozen=True)
class Net:
    """A network on its way: what it computes in float, and how it was cut."""

    module: nn.Module
    plan: ChannelPlan
    widths: Mapping[str, int]  # of the groups that were cut


class Raw:
    """A network that is to be cut, and in which order its channels would go."""

    def __init__(self, net: Net, job: Job, tables: Tables) -> None:
        self.net, self.job, self.tables = net, job, tables

    @cached_property
    def channels(self) -> Channels:
        """Its groups."""
        return self._evidence.channels

    @cached_property
    def scores(self) -> Mapping[str, Tensor]:
        """Of the channels of every group; the lowest go first."""
        if self.net.plan.keep or self.net.plan.blocks:
            return structured_obs(self._evidence)
        known = {name: torch.tensor(row.scores, dtype=torch.float64) for name, row in self.tables.damage.items()}
        return {g.name: known.get(g.name, torch.ones(g.channels)) for g in self.channels.groups}

    @cached_property
    def _evidence(self) -> Evidence:
        return Evidence.of(capture(self.net.module, self.job.example), self.job.calibration, self.job.task.loss)

    def plan(self, allocation: Allocation, *, scored: bool = True) -> ChannelPlan:
        """Chosen while all blocks are there, as the tables were made, then without what goes with them.

        Args:
            scored: Whether it matters which channels go, or only how many.
        """
        net = self.net
        scores = self.scores if scored else {g.name: torch.ones(g.channels) for g in self.channels.groups}
        widths = regrouped(allocation.widths, self.tables.channels, self.channels, net.plan, net.widths)
        keep = plan_widths(self.channels, scores, widths).keep
        if allocation.blocks:
            keep = kept_in(drop_blocks(net.module, allocation.blocks, self.job.example), keep)
        return ChannelPlan(keep, blocks=allocation.blocks)


@dataclass
class _Aim:
    """What the tables are asked for, and what was measured of what they gave."""

    latency: float  # ms by the tables
    limits: dict[str, float]  # on all else
    way: str
    over_by: int = 0  # times that a file was too slow


class Chooser:
    """Chooses for a speed, within the limits.

    Attributes:
        ceilings: The limits, as numbers.
        whole: All widths, each layer in what is faster.
        ratio: Measured over predicted latency.
    """

    def __init__(self, crew: Crew, tables: Tables, baseline: Baseline) -> None:
        self.job, self.apart, self.tables = crew.job, crew.choices.apart, tables
        self.whole, self.narrowest = extremes(tables)
        self.ratio = 1.0
        self.ceilings = self.job.budget.ceilings(asdict(baseline.cost))

    def bounds(self) -> tuple[float, float]:
        """The shares of the whole network's latency in integers to choose from: the most that limits allow, and the least."""
        whole = self.whole.costs["latency"]
        least = min(1.0, 1.02 * self.narrowest.costs["latency"] / whole)
        fast = self.ceilings.get("latency")
        return (1.0 if fast is None else max(least, min(1.0, fast / whole))), least

    def choose(self, key: str, share: float, raw: Raw, *, like: str) -> Allocation:
        """Widths and precisions; where limits were given, measured on an uncalibrated file and corrected.

        Args:
            like: The key of the untrained candidate of this share, whose choice is taken where there is one.

        Raises:
            BudgetError: Nothing meets the limits.
        """
        held = self.job.kept(f"{key}-widths") or self.job.kept(f"{like}-widths")
        if held is not None:
            self.job.keep(f"{key}-widths", held)
            self.recall(key)
            return Allocation(**{**held["allocation"], "blocks": tuple(held["allocation"]["blocks"])})
        if share >= 1 and not self.ceilings:
            return self.whole
        asked = {r: v for r, v in self.ceilings.items() if r != "latency"}
        aim = _Aim(self._foretold(share), dict(asked), LEAST_SUM)
        try:
            choices = rivals(self.tables, self._wanted(aim), most=raw.net.widths, gone=raw.net.plan.blocks)
        except BudgetError:  # by the tables, which may err
            if not self.ceilings:
                raise
            choices = {}
        aim.way = self._nearest(share, raw, choices) if choices else LEAST_SUM
        found = self._within(aim, asked, raw) if self.ceilings else self._asked(aim, raw)
        assert found is not None
        self.job.keep(f"{key}-widths", {"allocation": asdict(found), "ratio": self.ratio})
        return found

    def recall(self, key: str) -> None:
        """Take the ratio as it was when a choice was made, or what comes next would be chosen by another."""
        if (held := self.job.kept(f"{key}-widths")) is not None:
            self.ratio = held["ratio"]

    def _foretold(self, share: float) -> float:
        """The latency by the tables at a share; any where that is the limit's, which is met as measured and not as foretold."""
        foretold = share * self.whole.costs["latency"]
        return math.inf if foretold > NEARLY * self.ceilings.get("latency", math.inf) else foretold

    def _wanted(self, aim: _Aim) -> dict[str, float]:
        fast = self.ceilings.get("latency", math.inf)
        return aim.limits | {"latency": min(aim.latency, CLOSER**aim.over_by * fast / self.ratio)}

    def _nearest(self, share: float, raw: Raw, choices: Mapping[str, Allocation]) -> str:
        """Whose choice leaves the network nearest to the original, judged on the whole; once for a share and network."""
        asked = json.dumps([round(share, 9), self.ceilings, dict(raw.net.widths), raw.net.plan.blocks], sort_keys=True)
        name = f"way-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"
        if (held := self.job.kept(name)) is not None:
            return str(held["way"])
        if len(choices) == 1:
            return next(iter(choices))
        with self.job.stage("compare choices") as told:
            plans = {name: raw.plan(a) for name, a in choices.items()}
            errors = contest(self.job, self.apart, raw.net.module, plans)
            best = nearest(errors, choices)
            told["gave"] = f"{best}, of {', '.join(choices)}"
        self.job.keep(name, {"way": best})
        return best

    def _within(self, aim: _Aim, asked: Mapping[str, float], raw: Raw) -> Allocation:
        """What meets the limits when it is measured: of several tries the one that loses least."""
        fitting: list[Allocation] = []
        for _ in range(STITCHES):
            used, found = self.ratio, self._asked(aim, raw)
            if found is None:
                break
            seen = self._measured(raw, found)
            missed = over(Cost(**seen), self.ceilings)
            if not missed:
                fitting.append(found)
                if not self._has_room(aim, found, seen, used):
                    break
            aim.over_by += "latency" in missed
            aim.limits = scaled(asked, seen, {**found.costs, "memory": aim.limits.get("memory", 0.0)})
        if not fitting:  # the tables may err: the narrowest is measured
            least = self._least(raw)
            if over(Cost(**(seen := self._measured(raw, least))), self.ceilings):
                raise BudgetError(self._refusal(seen))
            fitting = self._wider(aim, asked, raw, least, seen)
        return min(fitting, key=lambda a: a.error)

    def _wider(
        self, aim: _Aim, asked: Mapping[str, float], raw: Raw, least: Allocation, seen: Mapping[str, float]
    ) -> list[Allocation]:
        """The narrowest, and what the tables give once they are corrected by it, where that is within the limits too."""
        aim.limits = scaled(asked, seen, {**least.costs, "memory": aim.limits.get("memory", 0.0)})
        found = self._asked(aim, raw)
        fits = found is not None and not over(Cost(**self._measured(raw, found)), self.ceilings)
        return [least, found] if found is not None and fits else [least]

    def _measured(self, raw: Raw, found: Allocation) -> dict[str, float]:
        """What a choice costs; the ratio is from then on that of its latency to the predicted one."""
        seen = asdict(self._cost(raw, found))
        self.ratio = seen["latency"] / found.costs["latency"]
        return seen

    def _has_room(self, aim: _Aim, found: Allocation, seen: Mapping[str, float], used: float) -> bool:
        """Whether a file that fits takes so much less than it was thought to that a wider one may fit as well."""
        if "latency" in self.ceilings and self.ratio < STEADY * used:
            return True
        counted = [r for r in aim.limits if r != "memory"]
        return any(found.costs[r] > STEADY * aim.limits[r] and seen[r] < STEADY * self.ceilings[r] for r in counted)

    def _least(self, raw: Raw) -> Allocation:
        """The narrowest network that can be made of what is there."""
        gone = raw.net.plan.blocks
        widths = {g: min(w, raw.net.widths.get(g, w)) for g, w in self.narrowest.widths.items()}
        return replace(self.narrowest, widths=widths, blocks=tuple(b for b in self.narrowest.blocks if b not in gone))

    def _refusal(self, seen: Mapping[str, float]) -> str:
        missed = over(Cost(**seen), self.ceilings)
        told = [f"{r} of {shown(r, seen[r])} where at most {shown(r, self.ceilings[r])} was asked" for r in missed]
        return f"no network that could be made meets the limits; the nearest has {' and '.join(told)}; loosen them"

    def _asked(self, aim: _Aim, raw: Raw) -> Allocation | None:
        """What the tables give, by the way that can do all that others can where another cannot; None where nothing fits."""
        for way in dict.fromkeys((aim.way, LEAST_SUM)):
            try:
                aim.way = way
                return allocate(self.tables, self._wanted(aim), way=way, most=raw.net.widths, gone=raw.net.plan.blocks)
            except BudgetError:
                continue
        return None

    def _cost(self, raw: Raw, allocation: Allocation) -> Cost:
        """Of the network as allocated, not repaired, not trained and not calibrated: it costs the same."""
        plan, module = raw.plan(allocation, scored=False), raw.net.module
        if plan.keep or plan.blocks:
            module = prune_to_look(module, plan, self.job.example)
        quantizer = Quantizer(module, self.job.example, self.job.calibration[:1], target=self.job.profile)
        small = quantizer.module(self.floats(module, allocation))
        path = self.job.stages / "stitched.onnx"
        return self.cost(module, small, export(small, self.job.example, path, target=self.job.profile.name))

    def floats(self, module: nn.Module, allocation: Allocation) -> tuple[str, ...]:
        """The nodes of the layers to be left in float; what nodes are called changes where blocks have gone."""
        chosen = {w.weight for w in weighted(self.tables.graph) if allocation.precisions.get(w.node.name) == "float"}
        return tuple(w.node.name for w in weighted(capture(module, self.job.example)) if w.weight in chosen)

    def cost(self, net: nn.Module, small: nn.Module, artifact: Artifact, precision: str | None = None) -> Cost:
        """What a file costs that is loaded in ``precision``."""
        graph = capture(net, self.job.example)
        latency = self.job.timer({"it": (artifact, precision)})["it"].value
        if latency > self.ceilings.get("latency", math.inf):  # it may have been a busy moment
            latency = self.job.timer.surely((artifact, precision)).value
        return Cost(
            latency=latency,
            bytes=artifact.path.stat().st_size,
            macs=macs(graph),
            memory=peak_memory(small if isinstance(small, fx.GraphModule) else graph, self.job.settings.batch),
        )


def kept_in(module: nn.Module, keep: Keep) -> Keep:
    """What is kept of the parameters and buffers that a network has."""
    there = own_tensors(module).keys()
    return {name: dims for name, dims in keep.items() if name in there}
