"""Where in the graph a group's channels pass: inputs of the layers that read them, outputs of what makes or scales them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from penjing.errors import DataError, first_line
from penjing.graph import Graph
from penjing.graph.layers import weighted
from penjing.graph.walk import shape_of
from penjing.score.evidence import Evidence

aten = torch.ops.aten

# The places of scale and shift among a norm's arguments, and the dimension of its output that channels lie along.
_NORMS: dict[Any, tuple[tuple[int, int], int]] = {
    aten.batch_norm.default: ((1, 2), 1),
    aten.instance_norm.default: ((1, 2), 1),
    aten.group_norm.default: ((2, 3), 1),
    aten.layer_norm.default: ((2, 3), -1),
    aten.rms_norm.default: ((2, 3), -1),  # the shift's place is the epsilon's: it has none
}


@dataclass(frozen=True)
class Site:
    """A value that a group's channels lie along.

    Attributes:
        node: The layer or norm.
        weight: The parameter whose dimension ``dim`` has the channels' indices; ``size`` of them.
        place: The dimension of the value that channels lie along.
        reads: Whether the value is the layer's input, else its output.
    """

    node: fx.Node
    weight: str
    dim: int
    size: int
    place: int
    reads: bool

    def fold(self, values: Tensor) -> Tensor:
        """From one number for every channel of the value, in the last dimension, to one for every index of ``dim``.

        The groups of a grouped convolution share the indices of one dimension of its weight, so they are summed.
        """
        folded: Tensor = values.unflatten(-1, (-1, self.size)).sum(-2)
        return folded


Sites = Mapping[
    str, list[tuple[Site, Tensor]]
]  # group name -> a site, and the indices (channels, k) that each channel has there


def reading_sites(evidence: Evidence) -> Sites:
    """The inputs of the layers that sum over a group's channels; where none does, the outputs of the layers that make them.

    A depthwise convolution sums over no channels: they only pass through it.
    """
    found = {}
    for name, sites in all_sites(evidence).items():
        read = [(s, index) for s, index in sites if s.reads and (s.weight, s.dim) in evidence.channels.reads]
        found[name] = read or [(s, index) for s, index in sites if s.node.target not in _NORMS]
    return found


def all_sites(evidence: Evidence) -> Sites:
    """Every site of every group."""
    at: dict[tuple[str, int], list[Site]] = {}
    for site in [*_layer_sites(evidence), *_norm_sites(evidence)]:
        at.setdefault((site.weight, site.dim), []).append(site)
    return {
        group.name: [(site, axis.index) for axis in group.axes for site in at.get((axis.name, axis.dim), [])]
        for group in evidence.channels.groups
    }


def _layer_sites(evidence: Evidence) -> list[Site]:
    sites = []
    for layer in weighted(evidence.graph):
        rank = _value(layer.node.all_input_nodes[0]).ndim
        if rank < 2 or (layer.kind != "linear" and rank != len(layer.shape)):
            continue  # without a batch, the first dimension is no sample
        for dim, reads in ((layer.reads, True), (layer.writes, False)):
            sites.append(Site(layer.node, layer.weight, dim, layer.shape[dim], layer.place, reads))
    return sites


def _norm_sites(evidence: Evidence) -> list[Site]:
    weights = evidence.weights
    sites = []
    for node in evidence.graph.module.graph.nodes:
        if node.target in _NORMS:
            places, along = _NORMS[node.target]
            # Scale or shift, one is enough: what multiplies the output multiplies both.
            names = [n for n in _names(node, places) if n in weights and weights[n].ndim == 1][:1]
            sites += [Site(node, name, 0, len(weights[name]), along, False) for name in names]
    return sites


def norm_scales(graph: Graph) -> set[str]:
    """The names of the parameters that norms scale channels with."""
    nodes = [n for n in graph.module.graph.nodes if n.target in _NORMS]
    return {name for n in nodes for name in _names(n, _NORMS[n.target][0][:1])}


def _names(node: fx.Node, places: Iterable[int]) -> list[str]:
    """The parameters among a node's arguments."""
    held = [node.args[p] for p in places if len(node.args) > p]
    return [str(a.target) for a in held if isinstance(a, fx.Node) and a.op == "get_attr"]


def batch_of(site: Site) -> int:
    """The size of the first dimension of the site's value, when the model was read."""
    source = site.node.all_input_nodes[0] if site.reads else site.node
    return shape_of(_value(source))[0]


def _value(node: fx.Node) -> Tensor:
    value = node.meta["val"]
    first: Tensor = value[0] if isinstance(value, tuple | list) else value
    return first


class Tapped(fx.Interpreter):
    """Run a graph, with ``touch(site, value)`` in place of the value at every site. Weights are constants on the way."""

    def __init__(self, module: fx.GraphModule, sites: Iterable[Site], touch: Callable[[Site, Tensor], Tensor]) -> None:
        super().__init__(module)
        self.touch = touch
        self.at: dict[fx.Node, list[Site]] = {}
        for site in sites:
            self.at.setdefault(site.node, []).append(site)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.detach() if isinstance(value, Tensor) else value

    def run_node(self, n: fx.Node) -> Any:
        if n not in self.at:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        for site in self.at[n]:
            if site.reads:
                args = (self.touch(site, args[0]), *args[1:])
        out = self.call_function(n.target, args, kwargs)
        for site in self.at[n]:
            if not site.reads:
                out = (self.touch(site, out[0]), *out[1:]) if isinstance(out, tuple) else self.touch(site, out)
        return out

    def outputs(self, inputs: tuple[Tensor, ...]) -> Any:
        """What the model gives.

        Raises:
            DataError: It does not take these inputs.
        """
        try:
            return self.run(*inputs)
        except (RuntimeError, ValueError, IndexError) as e:  # torch's complaints about shapes
            shapes = [tuple(x.shape) for x in inputs]
            raise DataError(f"the model does not take what data yields, inputs of shape {shapes}: {first_line(e)}") from e
