"""From a network, its tables and a budget to a knapsack, and from its answer to widths, precisions and blocks that go."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from penjing.graph import Channels, Graph
from penjing.graph.layers import Weighted, weighted
from penjing.measure import layers
from penjing.plan import ChannelPlan
from penjing.prune import find_blocks
from penjing.search.damage import Damage
from penjing.search.knapsack import Allocation, Droppable, Problem, Side, Site, priced
from penjing.search.price_fit import Coefficients
from penjing.search.prices import Prices

BYTES = {"int8": 1, "float": 4}  # of a weight, and of a value between layers
BESIDE = {"int8": 9, "float": 4}  # bytes of an output channel beside its weights: bias, scale and zero point
FLOATS = 12  # layers that may be returned to float, at most: those whose integers cost most
NOISY = 1e-3  # and more than this share of the output's power; less is nothing beside what cutting costs
QUICKER = 0.8  # share of its time in integers that a layer must take in float to be offered it for speed
SAVED = 0.05  # and share of the whole network's time that such layers must save together: prices are no nearer to the truth
MEMORY = "memory at "  # what a layer reads and writes while it runs: a resource for each layer


@dataclass(frozen=True)
class Tables:
    """All that is known of a network before it is cut.

    Attributes:
        damage: By group, what its widths cost in accuracy; groups without a row stay whole.
        noise: By the layer's node, what its integers cost; layers without an entry run in integers at no cost.
        prices: What layers cost in time.
        beside: Bytes of the file that are no layer's.
        blocks: What leaving out each residual block and all before it costs in accuracy; blocks without an entry stay.
    """

    graph: Graph
    channels: Channels
    damage: Mapping[str, Damage]
    noise: Mapping[str, float]
    prices: Prices
    beside: float
    blocks: Mapping[str, float] = field(default_factory=dict)


def problem(tables: Tables, ceilings: Mapping[str, float], *, most: Mapping[str, int], gone: Sequence[str] = ()) -> Problem:
    """The knapsack; what it is asked is told at ``rivals.allocate``."""
    widths = {
        name: {w: e for w, e in row.errors.items() if w <= most.get(name, w)} or {most[name]: 0.0}
        for name, row in tables.damage.items()
    }
    blocks = _droppable(tables)
    left_out = {site for name in gone for site in blocks[name].sites}
    sites = [s for s in _sites(tables, widths, with_memory="memory" in ceilings) if s.name not in left_out]
    limits = {r: v for r, v in ceilings.items() if r != "memory"}
    if "memory" in ceilings:
        limits |= {r: ceilings["memory"] for s in sites for c in s.costs.values() for r in c if r.startswith(MEMORY)}
    constants = {"latency": tables.prices.constant["int8"], "bytes": tables.beside}
    may_go = {name: b for name, b in blocks.items() if name not in gone}
    return Problem(widths, sites, constants, limits, {"latency": tables.prices.padded}, may_go)


def _droppable(tables: Tables) -> dict[str, Droppable]:
    """The blocks that may go, in order, with what each adds to the error and the nodes of its layers."""
    nodes = {layer.weight: layer.node.name for layer in weighted(tables.graph)}
    weights = {b.name: b.weights for b in find_blocks(tables.graph)} if tables.blocks else {}
    before = [0.0, *tables.blocks.values()]
    return {
        name: Droppable(error - less, tuple(nodes[w] for w in weights[name] if w in nodes))
        for (name, error), less in zip(tables.blocks.items(), before, strict=False)
    }


def _sites(tables: Tables, widths: Mapping[str, Mapping[int, float]], *, with_memory: bool) -> list[Site]:
    work = {layer.weight: layer.macs for layer in layers(tables.graph)}
    sensitive = sorted(tables.noise, key=lambda w: -tables.noise[w])[:FLOATS]
    quicker = _quicker_in_float(tables)
    found = []
    for layer in weighted(tables.graph):
        at = {dim: _side(tables.channels, layer, dim, widths) for dim in (layer.reads, layer.writes)}
        name = layer.node.name
        loss = tables.noise.get(name, 0.0)
        in_float = name in quicker or (name in sensitive and loss > NOISY)
        errors = {"int8": loss} | ({"float": 0.0} if in_float else {})
        costs = {p: _costs(tables, layer, p, work[layer.weight], with_memory=with_memory) for p in errors}
        found.append(Site(name, at[layer.reads], at[layer.writes], errors, costs))
    return found


def _quicker_in_float(tables: Tables) -> frozenset[str]:
    """The nodes of layers that integers slow down, where leaving all of them in float makes a difference to the whole."""
    prices, gains = tables.prices, {}
    for layer in layers(tables.graph):
        widths = [prices.padded(n) for n in layer.widths]
        held = [prices.coefficients[p].get(layer.weight, Coefficients()).at(*widths) for p in ("int8", "float")]
        if held[1] < QUICKER * held[0]:
            gains[layer.weight] = held[0] - held[1]
    if sum(gains.values()) < SAVED * prices.predict(layers(tables.graph)):
        return frozenset()
    return frozenset(layer.node.name for layer in weighted(tables.graph) if layer.weight in gains)


def _side(channels: Channels, layer: Weighted, dim: int, widths: Mapping[str, Mapping[int, float]]) -> Side:
    """The channels along one dimension of a layer's weight: by group, and those that stay."""
    held = {
        g.name: a.index.shape[1]
        for g in channels.groups
        for a in g.axes
        if g.name in widths and (a.name, a.dim) == (layer.weight, dim)
    }
    sizes = {g.name: g.channels for g in channels.groups}
    return Side(layer.shape[dim] - sum(n * sizes[g] for g, n in held.items()), held)


def _costs(tables: Tables, layer: Weighted, precision: str, macs: int, *, with_memory: bool) -> dict[str, Coefficients]:
    """The layer's costs, in numbers of indices along both dimensions of its weight."""
    taps = math.prod(layer.shape[2:])
    size = BYTES[precision]
    time = tables.prices.coefficients[precision].get(layer.weight, Coefficients())
    costs = {
        "latency": _by_index(time, layer),
        "bytes": replace(_by_index(Coefficients(outputs=BESIDE[precision]), layer), product=size * taps),
        "macs": Coefficients(product=macs / math.prod(layer.shape[:2])),
    }
    if with_memory:
        given, made = (_positions(v, layer) for v in (layer.node.args[0], layer.node))
        costs[MEMORY + layer.node.name] = _by_index(Coefficients(inputs=size * given, outputs=size * made), layer)
    return costs


def _by_index(c: Coefficients, layer: Weighted) -> Coefficients:
    """Costs by channel as costs by index of the weight: in a grouped layer one index stands for a channel of every group."""
    if layer.groups == 1:
        return c
    if layer.groups == layer.widths[0]:  # depthwise: what it reads goes with what it writes, along one dimension
        each = (c.inputs * layer.widths[0] + c.outputs * layer.widths[1]) / layer.shape[0]
        return Coefficients(c.base, inputs=each) if layer.reads == 0 else Coefficients(c.base, outputs=each)
    reads, writes = (1, layer.groups) if layer.kind == "transposed conv" else (layer.groups, 1)
    return Coefficients(c.base, c.inputs * reads, c.outputs * writes, c.product * reads * writes)


def _positions(node: object, layer: Weighted) -> int:
    """How many positions a value has, of one sample."""
    shape = node.meta["val"].shape  # type: ignore[attr-defined]
    return math.prod(int(n) for n in shape[1:]) // max(1, int(shape[layer.place]))


def regrouped(
    widths: Mapping[str, int], whole: Channels, now: Channels, plan: ChannelPlan, current: Mapping[str, int]
) -> dict[str, int]:
    """Widths of the whole network's groups as widths of the groups that a network has after ``plan``.

    These may be others: where a block that tied channels to one another has gone, each of them is free.

    Args:
        current: The widths that the whole network's groups have now; what is not named is as it was.
    """
    owner = {
        (a.name, a.dim, index): group
        for group in whole.groups
        if group.name in widths
        for a in group.axes
        for index in a.index.flatten().tolist()
    }
    found = {}
    for group in now.groups:
        axis = group.axes[0]
        first = int(axis.index[0, 0])
        kept = plan.keep.get(axis.name, {}).get(axis.dim)
        old = owner.get((axis.name, axis.dim, first if kept is None else kept[first]))
        if old is not None:
            step = group.equal
            share = widths[old.name] / current.get(old.name, old.channels)
            found[group.name] = min(group.channels, step * max(1, round(share * group.channels / step)))
    return found


def extremes(tables: Tables) -> tuple[Allocation, Allocation]:
    """The whole network, and the narrowest without all blocks that may go, in integers where these are faster."""
    whole = problem(tables, {}, most={})
    quicker = _quicker_in_float(tables)
    integers = {s.name: "float" if s.name in quicker else "int8" for s in whole.sites}
    widths = [{name: pick(row) for name, row in whole.widths.items()} for pick in (max, min)]
    wide, narrow = (priced(whole, w, integers, gone) for w, gone in zip(widths, ([], list(whole.blocks)), strict=True))
    return wide, narrow


def scaled(ceilings: Mapping[str, float], measured: Mapping[str, float], predicted: Mapping[str, float]) -> dict[str, float]:
    """The ceilings as the tables must see them for what they predict to come out right, by what was measured."""
    return {r: v * predicted[r] / measured[r] if measured.get(r) and predicted.get(r) else v for r, v in ceilings.items()}
