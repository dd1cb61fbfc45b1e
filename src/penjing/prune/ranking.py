"""Which groups are ranked together, and in which order their channels go: one line of steps for each family of groups."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx

from penjing.graph import Group
from penjing.score import Scores


@dataclass(frozen=True)
class Step:
    """A group becomes narrower by what a runtime's vectors hold."""

    group: str
    before: int
    width: int
    share: float  # of the family's channels that are gone halfway through the step


@dataclass(frozen=True)
class Line:
    """The steps of a family, least important first; any first few of them are a sound choice of widths.

    Attributes:
        gone: How many channels have gone before the first step, after it, after the second, ...
        size: How many the family had before any cut.
    """

    steps: tuple[Step, ...]
    gone: tuple[int, ...]
    size: int

    def taken(self, ratio: float) -> tuple[Step, ...]:
        """The steps after which the share of channels that are gone is nearest to ``ratio``; the fewer of two."""
        return self.steps[: min(range(len(self.gone)), key=lambda i: abs(self.gone[i] - ratio * self.size))]


def lines(
    groups: Sequence[Group], widths: Mapping[str, Sequence[int]], sizes: Mapping[str, int], scores: Scores,
    family: Callable[[Group], Hashable], divisor: Callable[[Tensor], Tensor],
) -> list[Line]:  # fmt: skip
    """Line up the steps of every family.

    Args:
        widths: The width that each group has and those it may be cut to, widest first.
        sizes: How many channels each group had before any cut.
        family: What groups that are ranked together have in common; see ``RANKINGS``.
        divisor: What the scores of a group are divided by; see ``NORMALIZERS``.
    """
    families: dict[Hashable, list[Group]] = defaultdict(list)
    for group in groups:
        families[family(group)].append(group)
    return [_line(members, widths, sizes, scores, divisor) for members in families.values()]


def _line(
    groups: Sequence[Group], widths: Mapping[str, Sequence[int]], sizes: Mapping[str, int], scores: Scores,
    divisor: Callable[[Tensor], Tensor],
) -> Line:  # fmt: skip
    cuts: list[tuple[float, str, int, int]] = []
    for g in groups:
        score = scores[g.name].detach().double().cpu()
        prices = _prices(g, score / divisor(score).clamp_min(torch.finfo(torch.float64).tiny), widths[g.name])
        cuts += [(price, g.name, a, b) for price, (a, b) in zip(prices, pairwise(widths[g.name]), strict=True)]
    cuts.sort(key=lambda cut: cut[0])  # stable, so that the steps of a group keep their order
    size = sum(sizes.get(g.name, g.channels) for g in groups)
    gone = [size - sum(g.channels for g in groups)]
    steps = []
    for _, name, before, width in cuts:
        gone.append(gone[-1] + before - width)
        steps.append(Step(name, before, width, (gone[-2] + gone[-1]) / 2 / size))
    return Line(tuple(steps), tuple(gone), size)


def rows_of(group: Group) -> Tensor:
    """The numbers of the channels, one row for every block that must stay as wide as the others: ``(blocks, channels)``."""
    return torch.arange(group.channels)[None] if group.blocks is None else group.blocks


def _prices(group: Group, scores: Tensor, widths: Sequence[int]) -> list[float]:
    """The mean score of the channels that go with each step, each time the lowest that are left of every block."""
    ranked = scores[rows_of(group)].sort(dim=1, descending=True).values  # (blocks, channels of each)
    bounds = [width // len(ranked) for width in widths]
    prices = [float(ranked[:, b:a].mean()) for a, b in pairwise(bounds)]
    # Sums of equal scores may differ in the last bit: no step is cheaper than the one before it.
    return torch.tensor(prices, dtype=torch.float64).cummax(0).values.tolist() if prices else []


# What the scores of a group are divided by.

NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda scores: scores.abs().mean(),
    "max": lambda scores: scores.abs().max(),
    "none": lambda _scores: torch.ones((), dtype=torch.float64),
}


# What groups that are ranked together have in common.

Family = Callable[[Group], Hashable]


def each_alone(_module: fx.GraphModule) -> Family:
    """No group with another."""
    return lambda group: group.name


def all_together(_module: fx.GraphModule) -> Family:
    """Every group with every other."""
    return lambda _group: None


def by_topology(module: fx.GraphModule) -> Family:
    """Groups that are cut from the same places of the same operations, equally often.

    A place is an operation, which of its arguments the parameter is, and the parameter's dimension; sizes do not matter.
    """
    uses: dict[str, list[str]] = defaultdict(list)
    for node in module.graph.nodes:
        for i, argument in enumerate(node.args):
            if isinstance(argument, fx.Node) and argument.op == "get_attr":
                uses[str(argument.target)].append(f"{node.target} {i}")

    def topology(group: Group) -> Hashable:
        places = Counter((tuple(sorted(uses[a.name])), a.dim) for a in group.axes)
        return frozenset(places.items()), group.summed, group.blocks is None

    return topology


RANKINGS: dict[str, Callable[[fx.GraphModule], Family]] = {
    "layer": each_alone,
    "global": all_together,
    "isomorphic": by_topology,
}
