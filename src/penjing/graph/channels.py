"""From labels to groups: the channels that live or die together, and what keeps the others from being cut."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from penjing.graph.capture import Graph
from penjing.graph.rules import RULES
from penjing.graph.walk import INPUT, Ledger, Walk


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

    @property
    def channels(self) -> int:
        """How many channels can be chosen from."""
        return len(self.axes[0].index)

    @property
    def name(self) -> str:
        """The first parameter of the group, in the order the model computes."""
        return self.axes[0].name


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


Criterion = Callable[[Group, Mapping[str, Tensor]], Tensor]  # -> shape (channels,), higher = keep


def find_channels(graph: Graph) -> Channels:
    """Label every channel, walk the graph, and gather what was joined."""
    ledger = Ledger()
    walk = Walk(graph.module, RULES, ledger)
    walk.run(*(torch.full((1,), INPUT).expand(x.shape) for x in graph.example))
    component = _components(ledger)
    reasons = {int(component[i]): why for labels, why in reversed(ledger.frozen) for i in labels.tolist()}
    places = _places(ledger, component)
    order = _order(graph.module)
    families: dict[tuple[tuple[str, int, int], ...], list[int]] = defaultdict(list)
    for c, members in sorted(places.items()):
        if c not in reasons:
            families[tuple(sorted((name, dim, len(index)) for (name, dim), index in members.items()))].append(c)
    groups = [_group(family, places, order) for family in families.values()]
    fixed = {place: reasons[c] for c, members in places.items() if c in reasons for place in members}
    groups.sort(key=lambda g: min(order[a.name] for a in g.axes))
    return Channels(tuple(groups), fixed, frozenset(ledger.reads), ledger.shapes)


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
    keys = sorted(places[components[0]], key=lambda key: (order[key[0]], key[1]))
    axes = [Axis(name, dim, torch.tensor([places[c][name, dim] for c in components])) for name, dim in keys]
    by_first = axes[0].index[:, 0].argsort()
    return Group(tuple(Axis(a.name, a.dim, a.index[by_first]) for a in axes))
