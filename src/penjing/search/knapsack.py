"""One multiple-choice knapsack over widths, precisions and whole blocks, under all limits at once, solved exactly.

Every group takes one of its widths, and every layer one of its precisions or, with its block, none. Errors add up; a layer's
cost depends on the widths of what it reads and of what it writes *together*, and on its precision. Such products become linear
with one variable for each pair of widths (and precision) whose sums are tied to the single choices; then branch and bound
(HiGHS, by scipy) is exact. Multiple-choice knapsack for pruning: SPDY (Frantar and Alistarh 2022, arXiv:2203.02461); pairs of
widths: MDP (Sun et al. 2024, arXiv:2406.12079).
"""

import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from penjing.errors import BudgetError
from penjing.search.ladder import shown
from penjing.search.price_fit import Coefficients

NODES = 5_000  # of the search tree; a limit in time would give another answer on a busy day
GAP = 1e-4  # an answer so near to the best is taken, as a share
LARGEST = 1e3  # of the objective's numbers, so that the solver's absolute tolerances do not matter
TIES = 1e-6  # weight of the costs beside the errors: of two equally good answers the cheaper is taken


@dataclass(frozen=True)
class Side:
    """What a layer reads, or writes: some channels that stay and so many for each channel of some groups."""

    fixed: int = 0
    groups: Mapping[str, int] = field(default_factory=dict)  # group -> channels here for each of the group's

    def count(self, widths: Mapping[str, int], pad: Callable[[int], int] = int) -> int:
        """How many channels there are at these widths, each part of them padded."""
        return sum(pad(n * widths[g]) for g, n in self.groups.items()) + (pad(self.fixed) if self.fixed else 0)


@dataclass(frozen=True)
class Site:
    """A layer.

    Attributes:
        errors: By precision, what it costs in accuracy; the precisions it may have.
        costs: By precision and resource.
    """

    name: str
    reads: Side
    writes: Side
    errors: Mapping[str, float]
    costs: Mapping[str, Mapping[str, Coefficients]]


@dataclass(frozen=True)
class Droppable:
    """Layers that may go together, and what their absence adds to the loss of accuracy."""

    error: float
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """What there is to choose.

    Attributes:
        widths: By group, the widths it may have and the error of each.
        constants: By resource, what costs the same whatever is chosen.
        ceilings: By resource, the most that may be spent; resources without one are told and free.
        pads: By resource, how a number of channels is rounded up.
        blocks: What may go as a whole, each only with all before it; no layer is in two of them.
    """

    widths: Mapping[str, Mapping[int, float]]
    sites: Sequence[Site]
    constants: Mapping[str, float]
    ceilings: Mapping[str, float]
    pads: Mapping[str, Callable[[int], int]] = field(default_factory=dict)
    blocks: Mapping[str, Droppable] = field(default_factory=dict)

    @property
    def resources(self) -> list[str]:
        """All that is counted."""
        found = [r for s in self.sites for costs in s.costs.values() for r in costs]
        return list(dict.fromkeys([*self.constants, *found, *self.ceilings]))

    def pad(self, resource: str) -> Callable[[int], int]:
        """How channels are counted for a resource."""
        return self.pads.get(resource, int)


@dataclass(frozen=True)
class Allocation:
    """A choice, what it loses and what it costs by the tables."""

    widths: Mapping[str, int]
    precisions: Mapping[str, str]  # by the layer's name
    error: float
    costs: Mapping[str, float]
    blocks: tuple[str, ...] = ()  # that go


def priced(
    problem: Problem, widths: Mapping[str, int], precisions: Mapping[str, str], blocks: Sequence[str] = ()
) -> Allocation:
    """Any choice with its error and costs; precisions of layers whose block goes do not count."""
    gone = {name for b in blocks for name in problem.blocks[b].sites}
    sites = [s for s in problem.sites if s.name not in gone]
    error = sum(problem.widths[g][w] for g, w in widths.items()) + sum(s.errors[precisions[s.name]] for s in sites)
    error += sum(problem.blocks[b].error for b in blocks)
    costs = {r: problem.constants.get(r, 0.0) + sum(_cost(problem, s, r, widths, precisions) for s in sites)
             for r in problem.resources}  # fmt: skip
    return Allocation(dict(widths), {s.name: precisions[s.name] for s in sites}, error, costs, tuple(blocks))


def _cost(p: Problem, site: Site, resource: str, widths: Mapping[str, int], precisions: Mapping[str, str]) -> float:
    found = site.costs[precisions[site.name]].get(resource, Coefficients())
    pad = p.pad(resource)
    return found.at(site.reads.count(widths, pad), site.writes.count(widths, pad))


def solve(problem: Problem) -> Allocation:
    """The choice with the least error within the ceilings.

    Raises:
        BudgetError: There is none; names the ceilings that cannot be met and what comes nearest.
    """
    program = _Program(problem)
    found = program.least_error()
    if found is None:
        nearest = program.least_excess()
        over = [
            f"{r} of {shown(r, nearest.costs[r])} where at most {shown(r, most)} was asked"
            for r, most in problem.ceilings.items()
            if nearest.costs[r] > most * (1 + 1e-9)
        ]
        if not over:  # it was found where there was no time to look for the best
            return nearest
        raise BudgetError(f"no choice of widths and precisions meets the limits; the nearest has {' and '.join(over)}")
    return found


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep what the solver's own code prints, whatever it is told, away from standard output, which may be read as JSON."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


class _Program:
    """The knapsack as a mixed-integer linear program: columns, rows that tie them, and one row a resource."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.errors: list[float] = []  # by column
        self.whole: list[int] = []
        self.tied: list[tuple[dict[int, float], float, float]] = []  # each with the least and the most of its sum
        self.spent: dict[str, dict[int, float]] = {r: {} for r in problem.resources}
        self.width = {g: {w: self._column(e, 1) for w, e in row.items()} for g, row in problem.widths.items()}
        for columns in self.width.values():
            self.tied.append((dict.fromkeys(columns.values(), 1.0), 1.0, 1.0))
        self.gone = {name: self._column(b.error, 1) for name, b in problem.blocks.items()}
        for first, second in itertools.pairwise(self.gone.values()):
            self.tied.append(({second: 1.0, first: -1.0}, -1.0, 0.0))
        self.block = {site: self.gone[name] for name, b in problem.blocks.items() for site in b.sites}
        self.precision = {s.name: {p: self._column(s.errors[p], 1) for p in s.errors} for s in problem.sites}
        for site in problem.sites:
            none = {self.block[site.name]: 1.0} if site.name in self.block else {}
            self.tied.append((dict.fromkeys(self.precision[site.name].values(), 1.0) | none, 1.0, 1.0))
            self._site(site)

    def least_error(self) -> Allocation | None:
        """None where no choice is within the ceilings."""
        objective = np.array(self.errors)
        total = max(1e-9, float(np.sum(self.errors)))
        for resource in self.problem.ceilings:
            row = self.spent[resource]
            whole = sum(map(abs, row.values())) or 1.0  # each resource by its own measure: MACs are millions, ms are not
            for c, v in row.items():
                objective[c] += TIES * total * v / whole
        largest = float(np.abs(objective).max(initial=0.0)) or 1.0
        return self._solved(objective * (LARGEST / largest), self.problem.ceilings)

    def least_excess(self) -> Allocation:
        """The choice whose largest cost, as a share of its ceiling, is the least."""
        excess = self._column(0.0, 0)
        objective = np.zeros(len(self.errors))
        objective[excess] = 1.0
        found = self._solved(objective, self.problem.ceilings, excess)
        assert found is not None
        return found

    def _column(self, error: float, whole: int) -> int:
        self.errors.append(error)
        self.whole.append(whole)
        return len(self.errors) - 1

    def _site(self, site: Site) -> None:
        """Variables for the layer's pairs of widths, and what they cost.

        A group that is on both sides meets itself: its pairs are the diagonal. Each linear term is told by the first pair
        that its group is in.
        """
        reads, writes = list(site.reads.groups) or [""], list(site.writes.groups) or [""]
        told: set[tuple[str, str]] = set()
        for g, h in itertools.product(reads, writes):
            columns = self._pairs(site, g, h)
            for (p, w, v), column in columns.items():
                for resource, c in site.costs[p].items():
                    cost = self._share(site, resource, c, g, w, h, v, told)
                    if cost:
                        row = self.spent[resource]
                        row[column] = row.get(column, 0.0) + cost
            told |= {("reads", g), ("writes", h)}
        for p, column in self.precision[site.name].items():
            for resource, c in site.costs[p].items():
                pad = self.problem.pad(resource)
                i, o = (pad(side.fixed) if side.fixed else 0 for side in (site.reads, site.writes))
                row = self.spent[resource]
                row[column] = row.get(column, 0.0) + c.at(i, o)

    def _share(
        self, site: Site, resource: str, c: Coefficients, g: str, w: int, h: str, v: int, told: set[tuple[str, str]]
    ) -> float:
        """What the widths ``w`` of ``g`` and ``v`` of ``h`` add to the layer's cost."""
        pad = self.problem.pad(resource)
        i = pad(site.reads.groups[g] * w) if g else 0
        o = pad(site.writes.groups[h] * v) if h else 0
        cost = c.product * i * o
        fixed_in, fixed_out = (pad(s.fixed) if s.fixed else 0 for s in (site.reads, site.writes))
        if ("reads", g) not in told:
            cost += (c.inputs + c.product * fixed_out) * i
        if ("writes", h) not in told:
            cost += (c.outputs + c.product * fixed_in) * o
        return cost

    def _pairs(self, site: Site, g: str, h: str) -> dict[tuple[str, int, int], int]:
        """A variable for each precision and pair of widths, whose sums are the single choices, or zero where its block goes."""
        precisions = self.precision[site.name]
        first, second = (self.width.get(x, {0: -1}) for x in (g, h))
        pairs = [(w, w) for w in first] if g == h else list(itertools.product(first, second))
        columns = {(p, w, v): self._column(0.0, 0) for p in precisions for w, v in pairs}
        may_go = site.name in self.block
        for group, chosen, at in ((g, first, 1), (h, second, 2)):
            if group:
                for width, single in chosen.items():
                    row = {c: 1.0 for k, c in columns.items() if k[at] == width} | {single: -1.0}
                    self.tied.append((row, -1.0 if may_go else 0.0, 0.0))
        if len(precisions) > 1 or may_go or not (g or h):
            for p, single in precisions.items():
                self.tied.append(({c: 1.0 for k, c in columns.items() if k[0] == p} | {single: -1.0}, 0.0, 0.0))
        return columns

    def _solved(self, objective: np.ndarray, ceilings: Mapping[str, float], excess: int | None = None) -> Allocation | None:
        from scipy.optimize import Bounds, LinearConstraint, milp

        matrix, low, high = self._rows(ceilings, excess)
        most = np.ones(len(self.errors))
        if excess is not None:
            most[excess] = math.inf
        with _unheard():
            found = milp(
                objective,
                integrality=np.array(self.whole),
                bounds=Bounds(np.zeros_like(most), most),
                constraints=LinearConstraint(matrix, low, high),
                options={"node_limit": NODES, "mip_rel_gap": GAP},
            )
        return None if found.x is None else self._chosen(found.x)

    def _rows(self, ceilings: Mapping[str, float], excess: int | None) -> tuple[Any, np.ndarray, np.ndarray]:
        from scipy.sparse import coo_array

        rows = [row for row, _, _ in self.tied]
        low, high = [least for _, least, _ in self.tied], [most for _, _, most in self.tied]
        for resource, most in ceilings.items():
            constant = self.problem.constants.get(resource, 0.0)
            row = {c: v / most for c, v in self.spent[resource].items()}
            rows.append(row if excess is None else row | {excess: -1.0})
            low = [*low, -math.inf]
            high = [*high, (0.0 if excess is not None else 1.0) - constant / most]
        at = [(i, c, v) for i, row in enumerate(rows) for c, v in row.items()]
        values, i, c = [v for _, _, v in at], [i for i, _, _ in at], [c for _, c, _ in at]
        return coo_array((values, (i, c)), shape=(len(rows), len(self.errors))).tocsr(), np.array(low), np.array(high)

    def _chosen(self, x: np.ndarray) -> Allocation:
        widths = {g: max(columns, key=lambda w: x[columns[w]]) for g, columns in self.width.items()}
        precisions = {s: max(columns, key=lambda p: x[columns[p]]) for s, columns in self.precision.items()}
        return priced(self.problem, widths, precisions, [name for name, column in self.gone.items() if x[column] > 0.5])
