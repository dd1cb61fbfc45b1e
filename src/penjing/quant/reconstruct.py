"""Round the weights of whole blocks together, by gradient, so that each block gives what the float network's does.

BRECQ (Li et al. 2021, arXiv:2102.05426): a residual block's layers can make up for each other. QDrop (Wei et al. 2022,
arXiv:2203.05740): while that is learned, half of the values are left in float at random, which keeps few calibration samples
from being learned by heart. Values of fewer than 8 bits learn their steps too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from penjing.errors import DataError
from penjing.graph import Graph
from penjing.progress import Progress, silent
from penjing.quant.grids import Grid, spread
from penjing.quant.insert import Layer, layers, value_grid
from penjing.quant.lockstep import count_samples, own, parameter, twins, unquantized
from penjing.score.flow import Batch, Flow
from penjing.score.products import arguments

FINE = 255  # a grid of so many steps needs no learning
EDGE = 0.499  # a number that far from an integer is still rounded to it
LOOKS = 10  # at how a block stands while it learns
LARGEST = 8  # layers of a block; larger ones are taken apart


@dataclass(frozen=True)
class Block:
    """A part of the float network through which all goes from one value to another."""

    entry: fx.Node
    exit: fx.Node


def find_blocks(reference: fx.GraphModule, quantized: set[str], *, largest: int = LARGEST) -> list[Block]:
    """Parts between the values that alone carry all that is computed later; each holds at least one layer.

    A part that has more layers than ``largest``, several inputs or several outputs becomes one block for each layer.

    Args:
        quantized: Names of the layers' nodes that count.
    """
    found: list[Block] = []
    inside: list[fx.Node] = []
    entry = last = None
    for node, carrier in _carriers(reference):
        if node.name in quantized:
            if last is not None:
                found += _parts(entry, last, inside, largest)
                entry, inside = last, []
            inside.append(node)
            last = None
        last = carrier if carrier is not None else last
    return [*found, *_parts(entry, last, inside, largest)]


def _parts(entry: fx.Node | None, end: fx.Node | None, inside: list[fx.Node], largest: int) -> list[Block]:
    if not inside:
        return []
    if entry is not None and end is not None and len(inside) <= largest:
        return [Block(entry, end)]
    return [Block(n.all_input_nodes[0], n) for n in inside]


def _carriers(reference: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node | None]]:
    """Each node, and the one value that is still needed behind it; None where there are more, or no sample is a row of it."""
    nodes = list(reference.graph.nodes)
    place = {n: i for i, n in enumerate(nodes)}
    held = {n for n in _computed(nodes) if n.op != "output" and isinstance(n.meta.get("val"), Tensor)}
    last = {n: max((place[u] for u in n.users), default=-1) for n in held}
    batch = next(str(n.meta["val"].shape[:1]) for n in nodes if n.op == "placeholder")
    alive: set[fx.Node] = {n for n in held if n.op == "placeholder"}
    for i, node in enumerate(nodes):
        alive = {n for n in alive | ({node} & held) if last[n] > i}
        (one,) = alive if len(alive) == 1 else (None,)
        yield node, one if one is not None and str(one.meta["val"].shape[:1]) == batch else None


def _computed(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """What depends on the network's inputs."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A rounding: changes weights, in place, to values on their grids; and the steps of values of fewer than 8 bits.

    Attributes:
        start: The rounding that is improved on.
        steps: Gradient steps for each block.
        batch: Samples that are looked at in a step.
        lr: Of the weights, in steps of their grids; ``value_lr`` of the logarithm of a value's step. Both fall to 0.
        drop: Share of the values that stay in float while a block learns.
        seed: Of the samples and of what is dropped.
    """

    start: Callable[[fx.GraphModule, fx.GraphModule, Sequence[Batch], Progress], None]
    steps: int = 500
    batch: int = 32
    lr: float = 0.003
    value_lr: float = 0.01
    drop: float = 0.5
    seed: int = 0

    def __call__(
        self, reference: fx.GraphModule, module: fx.GraphModule, batches: Sequence[Batch], progress: Progress = silent
    ) -> None:
        """Round all blocks, in order, each on what the quantized network feeds it by then.

        Args:
            reference: The float network, norms folded.
            module: Its copy with fake-quantize nodes, whose weights are still those of ``reference``.
            batches: Inputs; a few hundred samples.

        Raises:
            DataError: There is none, or their shapes differ.
        """
        count_samples(batches)
        inputs = [_joined(parts) for parts in zip(*batches, strict=True)]
        self.start(reference, module, batches, progress)
        both = _Both.of(reference, module)
        found = find_blocks(reference, {n.name for n in both.quantized})
        floats, integers = _Ahead(reference, batches), _Ahead(module, batches)
        generator = torch.Generator().manual_seed(self.seed)
        with progress("reconstructing", len(found)) as advance:
            for block in found:
                entry = _joined(floats.at(block.entry))
                trial = _Trial(both, block)
                fed = _Fed(inputs, entry, _joined(integers.at(trial.entry)), _joined(floats.at(block.exit)))
                before, after = self._learn(trial, fed, generator)
                advance(f"{block.exit.name}: squared error {before:.3g} -> {after:.3g}")

    def _learn(self, trial: "_Trial", fed: "_Fed", generator: torch.Generator) -> tuple[float, float]:
        """Learn a block's rounding; of where it stood at several times, keep what is best on all samples."""
        before = best = trial.error(fed, self.batch)
        learned, stretch = [c.latent for c in trial.choices.values()], list(trial.stretch.values())
        if not learned or not before:
            return before, before
        adam = torch.optim.Adam([{"params": learned, "lr": self.lr}, {"params": stretch, "lr": self.value_lr}])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.steps)
        kept = trial.settled()
        for step in range(1, self.steps + 1):
            at = torch.randint(len(fed.entry), (self.batch,), generator=generator)
            adam.zero_grad()
            found = trial.soft(fed.mixed(at, self.drop, generator), self.drop, generator)
            (found - fed.wanted[at]).square().mean().backward(inputs=[*learned, *stretch])
            adam.step()
            schedule.step()
            if step % max(1, self.steps // LOOKS) == 0:
                trial.write(now := trial.settled())
                if (error := trial.error(fed, self.batch)) < best:
                    best, kept = error, now
        trial.write(kept)
        return before, best


@dataclass(frozen=True)
class _Both:
    """The networks, with what belongs together."""

    reference: fx.GraphModule
    module: fx.GraphModule
    back: dict[fx.Node, fx.Node]  # node of the float network -> node of the quantized one
    quantized: dict[fx.Node, Layer]

    @classmethod
    def of(cls, reference: fx.GraphModule, module: fx.GraphModule) -> "_Both":
        back = {t: n for n, t in twins(reference, module).items()}
        return cls(reference, module, back, {layer.node: layer for layer in layers(module)})


@dataclass(frozen=True)
class _Fed:
    """What a block is given and should give, all samples in one."""

    inputs: list[Tensor]  # of the network
    entry: Tensor  # of the float network
    quantized: Tensor
    wanted: Tensor

    def mixed(self, at: Tensor, drop: float, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
        """Some samples' inputs, and what goes into the block: now what the float network feeds it, now the quantized one."""
        return [x[at] for x in self.inputs], _mixed(self.entry[at], self.quantized[at], drop, generator)


@dataclass(frozen=True)
class _Choice:
    """A layer whose integers are learned.

    Attributes:
        latent: Learned: real numbers that are rounded to the integers, without the zero point.
        limits: The least and the greatest integer, without the zero point.
    """

    layer: Layer
    latent: Tensor
    scale: Tensor
    limits: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, layer: Layer, weight: Tensor, float_weight: Tensor) -> "_Choice":
        """From the integers that it has, each as near to the float weight as rounding to that integer allows."""
        grid = layer.grid
        codes, zero, scale = grid.encode(weight.detach()), spread(grid.zero_point, weight.shape), grid.steps(weight.shape)
        start = (codes - zero).float()
        latent = start + (float_weight.detach() / scale - start).clamp(-EDGE, EDGE)
        return cls(layer, latent.requires_grad_(), scale, (grid.low - zero, grid.high - zero))

    def value(self) -> Tensor:
        """The weight on its grid; gradients go straight through the rounding."""
        rounded = self.latent + (self.latent.round() - self.latent).detach()
        return rounded.clamp(*self.limits) * self.scale

    def settled(self) -> Tensor:
        """The same as the grid decodes it, bit by bit."""
        codes = self.latent.detach().round().clamp(*self.limits).int()
        return self.layer.grid.decode(codes + spread(self.layer.grid.zero_point, codes.shape))


class _Trial(fx.Interpreter):
    """A block of the quantized network while its rounding is learned."""

    def __init__(self, both: "_Both", block: Block) -> None:
        module = both.module
        super().__init__(module)
        self.gm, self.entry, self.end = module, both.back[block.entry], both.back[block.exit]
        self.inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
        self.nodes = _between(self.entry, self.end)
        mine = [both.quantized[n] for n in self.nodes if n in both.quantized]
        self.choices = {
            layer.node.all_input_nodes[1]: _Choice.of(
                layer, parameter(module, layer.weight), parameter(both.reference, layer.weight)
            )
            for layer in mine
            if own(both.reference, layer.weight)
        }
        self.coarse = {n: grid for n in self.nodes if (grid := _coarse_grid(module, n)) is not None}
        self.stretch = self._stretches()
        self.scales = {name: parameter(module, name).clone() for name in self.stretch}
        self.learning: tuple[float, torch.Generator] | None = None

    def _stretches(self) -> dict[str, Tensor]:
        """A factor's logarithm for the step of each coarse grid that serves nobody outside of the block, by its name."""
        inside = set(self.nodes)
        names = {_scale_name(n) for n in self.coarse}
        outside = {n.target for n in self.gm.graph.nodes if n.op == "get_attr" and not set(n.users) <= inside}
        return {name: torch.zeros((), requires_grad=True) for name in sorted(names - outside)}

    def soft(self, fed: tuple[list[Tensor], Tensor], drop: float, generator: torch.Generator) -> Tensor:
        """What the block gives with the weights half-way and some values in float."""
        self.learning = (drop, generator)
        try:
            return self._run(*fed)
        finally:
            self.learning = None

    @torch.no_grad()
    def error(self, fed: _Fed, batch: int) -> float:
        """Mean squared error of what the block gives with the weights that it has."""
        total = 0.0
        for at in torch.arange(len(fed.entry)).split(batch):
            found = self._run([x[at] for x in fed.inputs], fed.quantized[at])
            total += float((found - fed.wanted[at]).square().sum())
        return total / fed.wanted.numel()

    def _run(self, inputs: list[Tensor], entry: Tensor) -> Tensor:
        self.env = {**dict(zip(self.inputs, inputs, strict=True)), self.entry: entry}
        for node in self.nodes:
            if node not in self.env:
                self.env[node] = self.run_node(node)
        found: Tensor = self.env[self.end]
        return found

    def run_node(self, n: fx.Node) -> Any:
        """A node's value, as it is learned."""
        if self.learning is None:
            return super().run_node(n)
        if n in self.choices:
            return self.choices[n].value()
        if n not in self.coarse:
            return super().run_node(n)
        x = self.env[unquantized(n)]
        name = _scale_name(n)
        learned = name in self.stretch
        q = _stepped(x, self.coarse[n], self.scales[name], self.stretch[name]) if learned else super().run_node(n)
        return _mixed(x, q, *self.learning)

    def settled(self) -> dict[str, Tensor]:
        """What was learned, by the names of the weights and scales that it is for."""
        weights = {c.layer.weight: c.settled() for c in self.choices.values()}
        return weights | {name: self.scales[name] * stretch.detach().exp() for name, stretch in self.stretch.items()}

    @torch.no_grad()
    def write(self, values: dict[str, Tensor]) -> None:
        """Put them into the network."""
        for name, value in values.items():
            parameter(self.gm, name).copy_(value)


def _coarse_grid(module: fx.GraphModule, node: fx.Node) -> Grid | None:
    """The grid that a node puts a computed value on, if it has fewer than 8 bits."""
    grid = value_grid(module, node)
    if grid is None or unquantized(node).op == "get_attr" or grid.high - grid.low >= FINE:
        return None
    return grid


def _scale_name(fake: fx.Node) -> str:
    return str(arguments(fake)["scale"].target)


def _stepped(x: Tensor, grid: Grid, scale: Tensor, stretch: Tensor) -> Tensor:
    """Fake-quantize with a step, ``scale`` stretched, that gets a gradient (LSQ, Esser et al. 2020, arXiv:1902.08153)."""
    step = scale * stretch.exp()
    q = (x / step).clamp(grid.low - grid.zero_point, grid.high - grid.zero_point)
    return (q + (q.round() - q).detach()) * step


def _between(entry: fx.Node, end: fx.Node) -> list[fx.Node]:
    """What ``end`` is computed from, up to ``entry``, in the order of the graph."""
    needed: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node not in needed and node is not entry:
            needed.add(node)
            waiting += node.all_input_nodes
    return [n for n in entry.graph.nodes if n in needed and n.op != "placeholder"]


def _mixed(one: Tensor, other: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Elements of ``one`` with that probability, else of ``other``."""
    return torch.where(torch.rand(one.shape, generator=generator) < share, one, other)


class _Ahead:
    """The values of a network on all batches, as far as they have been asked for."""

    def __init__(self, module: fx.GraphModule, batches: Sequence[Batch]) -> None:
        self.flow = Flow(Graph(module, batches[0], dynamic=True), batches)
        self.place = {n: i for i, n in enumerate(self.flow.nodes)}
        self.reached = -1

    def at(self, node: fx.Node) -> list[Tensor]:
        """A node's values; of those before the last one asked for, only what is read later."""
        while self.reached < self.place[node]:
            if self.reached >= 0:
                self.flow.drop(self.flow.nodes[self.reached])
            self.reached += 1
            self.flow.compute(self.flow.nodes[self.reached])
        found: list[Tensor] = self.flow[node]
        return found


def _joined(parts: Sequence[Tensor]) -> Tensor:
    shapes = sorted({tuple(p.shape[1:]) for p in parts})
    if len(shapes) > 1:
        raise DataError(f"calibration has samples of shapes {shapes}; give samples of one shape, or take another rounding")
    return torch.cat(list(parts))
