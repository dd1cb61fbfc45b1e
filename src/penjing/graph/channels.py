"""From labels to groups: the channels that live or die together, and what keeps the others from being cut."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from penjing.graph.capture import Graph
from penjing.graph.families import Held, settled
from penjing.graph.labels import INPUT, Ledger, unlabelled
from penjing.graph.rules import RULES
from penjing.graph.walk import Walk


@dataclass(frozen=True)
class Axis:
    """A dimension of a parameter or buffer that loses indices when a channel goes.

    ``index`` has shape ``(channels, k)``: the ``k`` indices that each channel of the group holds there.
    """

    name: str
    dim: int
    index: Tensor


@dataclass(frozen=True)
class Group:
    """Channels that are cut from the same places: any of them may go, and takes its indices on every axis with it."""

    axes: tuple[Axis, ...]
    part: int = 0  # which of the groups whose first parameter is the same
    summed: bool = False  # whether they are added to one another on the way, as on a residual stream
    blocks: Tensor | None = None  # shape (blocks, channels of each): equally many of every row stay, as in a group norm

    @property
    def channels(self) -> int:
        """How many channels can be chosen from."""
        return len(self.axes[0].index)

    @property
    def name(self) -> str:
        """The first parameter of the group, in the order the model computes; groups that share it are numbered."""
        return f"{self.axes[0].name}[{self.part}]" if self.part else self.axes[0].name

    @property
    def equal(self) -> int:
        """How many blocks it has that stay equal; 1 where any of its channels may go."""
        return 1 if self.blocks is None else len(self.blocks)

    @property
    def places(self) -> tuple[tuple[str, int, int], ...]:
        """Where a channel is cut from, and how many indices it holds there: the same before and after a cut."""
        return tuple((a.name, a.dim, a.index.shape[1]) for a in self.axes)


@dataclass(frozen=True)
class Channels:
    """What can be cut and what cannot.

    Attributes:
        groups: In the order the model computes.
        fixed: ``{(parameter, dim): reason}`` for dimensions of which some channels must stay.
        reads: Dimensions of weights that sum over a value's channels; zeroed there, a channel contributes nothing.
        shapes: Of every parameter that was labelled.
        unread: Parameters that take no part in eval mode, and so in no group.
        ledger: The labels of every value, for those who must know where in the graph a channel is.
    """

    groups: tuple[Group, ...]
    fixed: Mapping[tuple[str, int], str]
    reads: frozenset[tuple[str, int]]
    shapes: Mapping[str, tuple[int, ...]]
    ledger: Ledger = field(repr=False)
    unread: tuple[str, ...] = ()

    def alive(self, keep: Mapping[str, Mapping[int, Iterable[int]]]) -> Tensor:
        """Which labels a plan keeps; shape ``(labels,)``, boolean."""
        alive = torch.ones(self.ledger.count, dtype=torch.bool)
        for (name, dim), start in self.ledger.first.items():
            if dim in keep.get(name, {}):
                size = self.shapes[name][dim]
                alive[start : start + size] = False
                alive[start + torch.tensor(list(keep[name][dim]))] = True
        return alive


def find_channels(graph: Graph) -> Channels:
    """Label every channel, walk the graph, and gather what was joined."""
    ledger = Ledger()
    walk = Walk(graph.module, RULES, ledger, graph.constants)
    walk.run(*(unlabelled(x.shape, INPUT) for x in graph.example))
    families = settled(ledger)
    summed = {int(families.component[i]) for labels in ledger.sums for i in labels.unique().tolist()}
    order = _order(graph.module)
    groups = _numbered(
        replace(_group(f, families.held, order, families.rows.get(i)), summed=not summed.isdisjoint(f))
        for i, f in enumerate(families.members)
    )
    groups.sort(key=lambda g: (order[g.axes[0].name], int(g.axes[0].index[0, 0])))
    return Channels(tuple(groups), families.fixed, frozenset(ledger.reads), ledger.shapes, ledger, graph.unread)


def _numbered(groups: Iterable[Group]) -> list[Group]:
    """Tell apart the groups that begin with the same parameter, in an order that no cut changes."""
    seen: Counter[str] = Counter()
    numbered = []
    for group in sorted(groups, key=lambda g: g.places):
        first = group.axes[0].name
        numbered.append(replace(group, part=seen[first]))
        seen[first] += 1
    return numbered


def _order(module: fx.GraphModule) -> dict[str, int]:
    """When each parameter is first used, so that groups come in the order the model computes."""
    used: dict[str, int] = {}
    for position, node in enumerate(module.graph.nodes):
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                used.setdefault(str(source.target), position)
    return used


def _group(members: list[int], held: Held, order: Mapping[str, int], rows: list[list[int]] | None) -> Group:
    # A weight before the bias that is used with it, so that groups are named after weights.
    found = sorted(held.axes(members).items(), key=lambda item: (order[item[0][0]], item[0][0].endswith("bias"), item[0][1]))
    by_first = found[0][1][:, 0].argsort()
    number = {members[i]: n for n, i in enumerate(by_first.tolist())}
    blocks = torch.tensor(sorted(sorted(number[c] for c in row) for row in rows)) if rows else None
    axes = tuple(Axis(name, dim, torch.from_numpy(index[by_first])) for (name, dim), index in found)
    return Group(axes, blocks=blocks)
