"""From labels to groups: the channels that live or die together, and what keeps the others from being cut."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, fx

from penjing.graph.capture import Graph
from penjing.graph.rules import RULES
from penjing.graph.walk import INPUT, Ledger, Walk, unlabelled


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
    """

    groups: tuple[Group, ...]
    fixed: Mapping[tuple[str, int], str]
    reads: frozenset[tuple[str, int]]
    shapes: Mapping[str, tuple[int, ...]]


def find_channels(graph: Graph) -> Channels:
    """Label every channel, walk the graph, and gather what was joined."""
    ledger = Ledger()
    walk = Walk(graph.module, RULES, ledger, graph.constants)
    walk.run(*(unlabelled(x.shape, INPUT) for x in graph.example))
    component = _components(ledger)
    reasons = {int(component[i]): why for labels, why in reversed(ledger.frozen) for i in labels.tolist()}
    places = _places(ledger, component)
    order = _order(graph.module)
    families: dict[tuple[tuple[str, int, int], ...], list[int]] = defaultdict(list)
    for c, members in sorted(places.items()):
        if c not in reasons:
            families[tuple(sorted((name, dim, len(index)) for (name, dim), index in members.items()))].append(c)
    summed = {int(component[i]) for labels in ledger.sums for i in labels.unique().tolist()}
    groups = _numbered(replace(_group(f, places, order), summed=not summed.isdisjoint(f)) for f in families.values())
    fixed = {place: reasons[c] for c, members in places.items() if c in reasons for place in members}
    groups.sort(key=lambda g: (order[g.axes[0].name], int(g.axes[0].index[0, 0])))
    return Channels(tuple(groups), fixed, frozenset(ledger.reads), ledger.shapes)


def _numbered(groups: Iterable[Group]) -> list[Group]:
    """Tell apart the groups that begin with the same parameter, in an order that no cut changes."""
    seen: Counter[str] = Counter()
    numbered = []
    for group in sorted(groups, key=lambda g: g.places):
        first = group.axes[0].name
        numbered.append(replace(group, part=seen[first]))
        seen[first] += 1
    return numbered


def _components(ledger: Ledger) -> np.ndarray:
    """The number of the connected component of each label."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b = (torch.cat([j[i] for j in ledger.joins] or [torch.empty(0, dtype=torch.int64)]).numpy() for i in (0, 1))
    met = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(ledger.count, ledger.count))
    _, component = connected_components(met, directed=False)
    return np.asarray(component)


def _places(ledger: Ledger, component: np.ndarray) -> dict[int, dict[tuple[str, int], list[int]]]:
    """For each component, the indices it holds of each dimension of each parameter."""
    places: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for (name, dim), start in ledger.first.items():
        size = ledger.shapes[name][dim]
        for index, c in enumerate(component[start : start + size].tolist()):
            places[c][name, dim].append(index)
    return places


def _order(module: fx.GraphModule) -> dict[str, int]:
    """When each parameter is first used, so that groups come in the order the model computes."""
    used: dict[str, int] = {}
    for position, node in enumerate(module.graph.nodes):
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                used.setdefault(str(source.target), position)
    return used


def _group(components: list[int], places: Mapping[int, Mapping[tuple[str, int], list[int]]], order: Mapping[str, int]) -> Group:
    # A weight before the bias that is used with it, so that groups are named after weights.
    keys = sorted(places[components[0]], key=lambda key: (order[key[0]], key[0].endswith("bias"), key[1]))
    axes = [Axis(name, dim, torch.tensor([places[c][name, dim] for c in components])) for name, dim in keys]
    by_first = axes[0].index[:, 0].argsort()
    return Group(tuple(Axis(a.name, a.dim, a.index[by_first]) for a in axes))
