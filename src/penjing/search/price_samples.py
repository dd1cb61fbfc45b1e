"""Networks of other widths, written, run and watched: what the prices of layers are read from."""

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penjing.export import Artifact, export
from penjing.graph import Channels, Graph, as_inputs, capture, find_channels, repeated
from penjing.graph.layers import Layer, layer_name, layers
from penjing.measure import compare
from penjing.progress import Progress, silent
from penjing.prune import plan_widths, prune_to_look
from penjing.prune.decide import allowed_widths
from penjing.quant import Quantizer, Target
from penjing.score import Evidence, l2_norm

PRECISIONS = ("int8", "float")  # float is what the runtime makes of a file without integers: f32, or bf16 where the CPU has it
THIN = 4  # layers of at most so many inputs, as a network's first, have kernels of their own
SPREAD = 0.5  # how far the widths of one network lie apart, as a share of all widths
Widths = Mapping[str, int]


@dataclass(frozen=True)
class Site:
    """A layer as prices see it.

    Attributes:
        weight: The name of its weight.
        geometry: All that decides its time but for widths: layers of one geometry share a price.
        widths: Inputs and outputs.
        positions: Of its output, in one sample; of a transposed convolution of its input.
    """

    weight: str
    geometry: str
    widths: tuple[int, int]
    positions: int


@dataclass(frozen=True)
class Sample:
    """One network that was run.

    Attributes:
        precision: "int8" or "float".
        wall: A whole call, in ms.
        times: Of each site in the graph, in ms; 0 where the runtime tells nothing of it.
    """

    precision: str
    wall: float
    sites: tuple[Site, ...]
    times: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """The sample as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Sample":
        """Read what ``to_json`` gave."""
        sites = tuple(Site(**s | {"widths": tuple(s["widths"])}) for s in value["sites"])
        return cls(value["precision"], value["wall"], sites, tuple(value["times"]))


def site(layer: Layer) -> Site:
    """The layer as prices see it."""
    positions = max(1, layer.macs // math.prod(layer.shape))
    depthwise = layer.groups > 1 and layer.groups in layer.widths
    groups = "depthwise" if depthwise else f"{layer.groups} groups"
    thin = f" from {layer.widths[0]}" if layer.widths[0] <= THIN else ""
    return Site(layer.weight, f"{layer.kind} {layer.kernel} {groups}{thin} at {positions}", layer.widths, positions)


def cut_layers(found: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> list[Layer]:
    """The layers when their weights have other shapes; positions are taken to stay."""
    return [_cut_layer(layer, shapes.get(layer.weight, layer.shape)) for layer in found]


def _cut_layer(layer: Layer, shape: tuple[int, ...]) -> Layer:
    transposed = layer.kind == "transposed conv"
    first, second = shape[:2]
    groups = layer.groups
    if groups == layer.widths[0] > 1:  # depthwise: as many groups as inputs
        groups = first if transposed else first * groups // layer.shape[0]
    widths = (first, second * groups) if transposed else (second * groups, first)
    macs = layer.macs // math.prod(layer.shape) * math.prod(shape)
    return replace(layer, widths=widths, groups=groups, macs=macs, shape=tuple(shape))


def draw_widths(channels: Channels, count: int, lanes: int, seed: int = 0) -> list[dict[str, int]]:
    """Widths of all groups for ``count`` networks, the same at every call: the whole network, the narrowest, and between them.

    Networks differ in how wide they are altogether; around that, every group's widths are drawn so that over all networks each
    was seen narrow and wide (a Latin hypercube, McKay et al. 1979).
    """
    generator = torch.Generator().manual_seed(seed)
    options = {g.name: allowed_widths(g.channels, lanes, blocks=g.equal) for g in channels.groups}
    between = max(0, count - 2)
    found = [{name: widths[0] for name, widths in options.items()}, {name: widths[-1] for name, widths in options.items()}]
    drawn: list[dict[str, int]] = [{} for _ in range(between)]
    for name, widths in options.items():
        order = torch.randperm(between, generator=generator)
        for n, row in enumerate(drawn):
            shifted = (n + 0.5) / between + SPREAD * ((float(order[n]) + 0.5) / between - 0.5)
            row[name] = widths[min(len(widths) - 1, int(min(max(shifted, 0.0), 1.0) * len(widths)))]
    return (found + drawn)[:count]


def structure(graph: Graph) -> str:
    """A digest of all that decides how long the network takes: its operations and their sizes, not its weights."""
    sha = hashlib.sha256()
    for n in graph.module.graph.nodes:
        value = n.meta.get("val")
        shape = tuple(value.shape) if isinstance(value, Tensor) else None
        sha.update(f"{n.op} {n.target} {n.args} {n.kwargs} {shape}\n".encode())
    return sha.hexdigest()[:24]


class Sampler:
    """Makes networks of other widths from one, and watches them run."""

    def __init__(
        self, model: nn.Module, example: Tensor | Sequence[Tensor], *, target: Target, batch: int, threads: int, seconds: float
    ) -> None:
        """``seconds`` is how long each file is timed, and again how long it is profiled."""
        self.model, self.example = model, as_inputs(example)
        self.target, self.threads, self.seconds = target, threads, seconds
        self.graph = capture(model, self.example)
        self.channels = find_channels(self.graph)
        self.layers = layers(self.graph)
        self.scores = l2_norm(Evidence(self.graph, self.channels))  # which channels stay does not matter here
        self.timed = repeated(self.example, batch)

    def samples(
        self, widths: Sequence[Widths], progress: Progress = silent, label: str = "watching networks run"
    ) -> list[Sample]:
        """Every network in every precision, all of them timed in turns."""
        with tempfile.TemporaryDirectory() as folder:
            made: dict[str, tuple[Artifact, list[Site], dict[str, float]]] = {}
            with progress(label, len(widths) * len(PRECISIONS)) as advance:
                for n, chosen in enumerate(widths):
                    for precision, artifact, sites in self._written(chosen, Path(folder) / str(n)):
                        profile = artifact.profile(*self.timed, threads=self.threads, seconds=2 * self.seconds)
                        spent = {name: ms / profile.wall.value for name, ms in profile.layers.items()}
                        made[f"{n} {precision}"] = artifact, sites, spent
                        advance(f"{n + 1} of {len(widths)} in {precision}: {profile.wall.value:.3g} ms")
            runs = {name: artifact.load(self.threads) for name, (artifact, _, _) in made.items()}
            walls = compare(runs, *self.timed, seconds=self.seconds, progress=progress)
        return [_sample(name.partition(" ")[2], walls[name].value, sites, spent) for name, (_, sites, spent) in made.items()]

    def _written(self, widths: Widths, stem: Path) -> list[tuple[str, Artifact, list[Site]]]:
        """The network cut to these widths, as a file in each precision."""
        net, sites = self._cut(widths), self.sites(widths)
        quantizer = Quantizer(net, self.example, [self.example], target=self.target)  # ranges cost nothing: one batch will do
        modules = {"int8": quantizer.module(sharing=True), "float": quantizer.plain()}
        return [
            (name, export(modules[name], self.example, stem.with_suffix(f".{name}.onnx"), target=self.target.name), sites)
            for name in PRECISIONS
        ]

    def sites(self, widths: Widths) -> list[Site]:
        """The layers of the network cut to these widths."""
        keep = plan_widths(self.channels, self.scores, widths).keep
        shapes = {
            layer.weight: tuple(len(keep.get(layer.weight, {}).get(d, range(n))) for d, n in enumerate(layer.shape))
            for layer in self.layers
        }
        cut = cut_layers(self.layers, shapes)
        return [replace(site(old), widths=new.widths) for old, new in zip(self.layers, cut, strict=True)]

    def _cut(self, widths: Widths) -> nn.Module:
        """The network with these widths."""
        return prune_to_look(self.model, plan_widths(self.channels, self.scores, widths), self.example)


def _sample(precision: str, wall: float, sites: Sequence[Site], spent: Mapping[str, float]) -> Sample:
    """``spent`` are shares of a call, by the layer's name; a layer that is used again has a number behind its name."""
    uses: dict[str, int] = {}
    times = []
    for s in sites:
        name = layer_name(s.weight)
        uses[name] = uses.get(name, 0) + 1
        times.append(wall * spent.get(name if uses[name] == 1 else f"{name}:{uses[name]}", 0.0))
    return Sample(precision, wall, tuple(sites), tuple(times))
