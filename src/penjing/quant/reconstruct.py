"""Round the weights of whole blocks together, by gradient, so that each block gives what the float network's does.

BRECQ (Li et al. 2021, arXiv:2102.05426): a residual block's layers can make up for each other. Each block is settled before
the next one is looked at, and learned on what the settled ones feed it. Values of fewer than 8 bits learn their steps too,
while half of them are left in float at random, so that few samples are not learned by heart (QDrop, arXiv:2203.05740).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from penjing.errors import DataError
from penjing.graph.walk import arguments, behind
from penjing.quant.codes import Straight
from penjing.quant.grids import Grid, spread
from penjing.quant.insert import Layer, value_grid
from penjing.quant.lockstep import InOrder, Lockstep, Pass, own, parameter, unquantized
from penjing.task import samples_of

FINE = 255  # a grid of so many steps needs no learning
HELD_BACK = 0.2  # share of the samples that decide whether what was learned is kept
LOOKS = 10  # at how a block stands while it learns
LARGEST = 8  # layers of a block; larger ones are taken apart


@dataclass(frozen=True)
class Block:
    """A part of the float network through which all goes from one value to another."""

    entry: fx.Node
    exit: fx.Node


def find_blocks(reference: fx.GraphModule, quantized: set[str]) -> list[Block]:
    """Parts between the values that alone carry all that is computed later; each holds at least one layer.

    A part that has more layers than ``LARGEST``, several inputs or several outputs becomes one block for each layer that reads
    and gives a row for each sample; the others are in none.

    Args:
        quantized: Names of the layers' nodes that count.
    """
    found: list[Block] = []
    inside: list[fx.Node] = []
    entry = last = None
    for node, carrier in _carriers(reference):
        if node.name in quantized:
            if last is not None:
                found += _parts(entry, last, inside)
                entry, inside = last, []
            inside.append(node)
            last = None
        last = carrier if carrier is not None else last
    batch = _batch(reference)
    return [b for b in (*found, *_parts(entry, last, inside)) if all(_rows(n) == batch for n in _met(b))]


def _parts(entry: fx.Node | None, end: fx.Node | None, inside: list[fx.Node]) -> list[Block]:
    if not inside:
        return []
    if entry is not None and end is not None and len(inside) <= LARGEST:
        return [Block(entry, end)]
    return [Block(n.all_input_nodes[0], n) for n in inside]


def _met(block: Block) -> list[fx.Node]:
    """What a block is given and gives, with the inputs of the network that it reads besides, as for a bias."""
    inside = behind(block.exit, until={block.entry})
    return [block.entry, block.exit, *(n for n in inside if n.op == "placeholder")]


def _carriers(reference: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node | None]]:
    """Each node, and the one value that is still needed behind it; None where there are more, or no sample is a row of it."""
    nodes = list(reference.graph.nodes)
    place = {n: i for i, n in enumerate(nodes)}
    sizes = torch.SymInt | torch.SymBool | int
    held = {n for n in _computed(nodes) if n.op != "output" and not isinstance(n.meta.get("val"), sizes)}
    last = {n: max((place[u] for u in n.users), default=-1) for n in held}
    batch = _batch(reference)
    alive: set[fx.Node] = {n for n in held if n.op == "placeholder"}
    for i, node in enumerate(nodes):
        alive = {n for n in alive | ({node} & held) if last[n] > i}
        (one,) = alive if len(alive) == 1 else (None,)
        yield node, one if one is not None and _rows(one) == batch else None


def _batch(reference: fx.GraphModule) -> str:
    """The rows of the first input that is no single number."""
    inputs = [n for n in reference.graph.nodes if n.op == "placeholder"]
    return next((_rows(n) for n in inputs if n.meta["val"].ndim), "")


def _rows(node: fx.Node) -> str:
    """The first size of a value; empty where it is no tensor."""
    value = node.meta.get("val")
    return str(value.shape[:1]) if isinstance(value, Tensor) else ""


def _computed(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """What depends on the network's inputs."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


@dataclass(frozen=True, kw_only=True)
class Reconstruction(InOrder):
    """Block after block: its layers first, then all of them together; and the steps of values of fewer than 8 bits.

    What was learned is kept only where the block's error on samples that were held back went down.

    Attributes:
        layers: The rounding that a block begins with.
        steps: Gradient steps for each block.
        batch: Samples that are looked at in a step.
        lr: Of the weights, in steps of their grids; ``value_lr`` of the logarithm of a value's step; ``bias_lr`` of biases,
            where 1 is the root of the block's mean squared error. All fall to 0.
        drop: Share of the values of fewer than 8 bits that stay in float while a block learns.
        seed: Of the samples that are held back, of those of each step, and of what is dropped.
    """

    layers: InOrder
    steps: int = 300
    batch: int = 32
    lr: float = 0.002
    value_lr: float = 0.01
    bias_lr: float = 0.1
    drop: float = 0.5
    seed: int = 0

    def begin(self, both: Lockstep) -> Pass:
        """See ``InOrder``."""
        return _Blocks(self, both, self.layers.begin(both))


class _Blocks(Pass):
    """The layers' own pass, and behind each block what it learns as a whole."""

    def __init__(self, settings: Reconstruction, both: Lockstep, layers: Pass) -> None:
        self.settings, self.both, self.layers = settings, both, layers
        self.sizes = [samples_of(b) for b in both.module.batches]
        by_input = zip(both.module.inputs, zip(*both.module.batches, strict=True), strict=True)
        self.inputs = {n: _joined(parts) for n, parts in by_input if _rows(n) == _batch(both.networks[1])}
        back = {t: n for n, t in both.twin.items()}
        found = find_blocks(both.networks[0], {layer.node.name for layer in both.layers})
        self.ends = {back[b.exit]: back[b.entry] for b in found}
        self.total = layers.total + len(found)
        self.entries: dict[fx.Node, Tensor] = {}  # what blocks are given
        self.generator = torch.Generator().manual_seed(settings.seed)
        order = torch.randperm(both.samples, generator=self.generator)
        self.held_back = order[: max(1, round(HELD_BACK * both.samples))]

    def at(self, node: fx.Node, layer: Layer | None) -> Iterator[str]:
        yield from self.layers.at(node, layer)
        if node in self.ends:
            yield self._block(node)
        if node in self.ends.values():
            self.entries[node] = _joined(self.both.module[node])

    def _block(self, end: fx.Node) -> str:
        trial = _Trial(self.both, self.ends.pop(end), end)
        fed = _Fed(self.inputs, self.entries[trial.entry], _joined(self.both.reference[self.both.twin[end]]))
        if trial.entry not in self.ends.values():
            del self.entries[trial.entry]
        before, after = self._learn(trial, fed)
        self.both.put(end, trial.given(fed, self.settings.batch).split(self.sizes))
        return f"{end.name}: squared error {before:.3g} -> {after:.3g}"

    def _learn(self, trial: "_Trial", fed: "_Fed") -> tuple[float, float]:
        """Learn a block's rounding; of where it stood at several times, keep what is best on the samples held back."""
        use, back, settings = *fed.apart(self.held_back), self.settings
        before = best = trial.error(back, settings.batch)
        unit = trial.error(use, settings.batch)
        parameters = trial.learned(settings, unit)
        if not parameters or not before or not unit:
            return before, before
        adam = torch.optim.Adam(parameters)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, settings.steps)
        kept = trial.settled()
        for step in range(1, settings.steps + 1):
            some = use.some(torch.randint(len(use.entry), (settings.batch,), generator=self.generator))
            adam.zero_grad()
            loss = (trial.soft(some, settings.drop, self.generator) - some.wanted).square().mean() / unit
            loss.backward(inputs=[t for group in parameters for t in group["params"]])
            adam.step()
            schedule.step()
            if step % max(1, settings.steps // LOOKS) == 0:
                trial.write(now := trial.settled())
                if (error := trial.error(back, settings.batch)) < best:
                    best, kept = error, now
        trial.write(kept)
        return before, best


@dataclass(frozen=True)
class _Fed:
    """What a block is given and should give, all samples in one."""

    inputs: dict[fx.Node, Tensor]  # of the network
    entry: Tensor  # what the quantized network gives there
    wanted: Tensor

    def some(self, at: Tensor) -> "_Fed":
        """Of those samples."""
        return _Fed({n: x[at] for n, x in self.inputs.items()}, self.entry[at], self.wanted[at])

    def apart(self, held: Tensor) -> tuple["_Fed", "_Fed"]:
        """Without those samples, and those; all twice, where there is only one."""
        others = torch.ones(len(self.entry), dtype=torch.bool)
        others[held] = len(held) == len(self.entry)
        return self.some(others), self.some(held)


class _Trial(fx.Interpreter):
    """A block of the quantized network while its rounding is learned."""

    def __init__(self, both: Lockstep, entry: fx.Node, end: fx.Node) -> None:
        reference, self.gm = both.networks
        super().__init__(self.gm)
        self.entry, self.end = entry, end
        inside = {n for n in behind(end, until={entry}) if n.op != "placeholder"}
        self.nodes = [n for n in self.gm.graph.nodes if n in inside]
        self.layers = {
            layer.node.all_input_nodes[1]: layer
            for layer in both.layers
            if layer.node in inside and own(reference, layer.weight)
        }
        self.choices = {
            n: _choice(la.grid, parameter(self.gm, la.weight), parameter(reference, la.weight)) for n, la in self.layers.items()
        }
        self.biases = {
            layer.bias: parameter(self.gm, layer.bias).detach().clone().requires_grad_()
            for layer in self.layers.values()
            if layer.bias is not None and own(reference, layer.bias)
        }
        self.coarse = {n: grid for n in self.nodes if (grid := _coarse_grid(self.gm, n)) is not None}
        self.stretch = self._stretches()
        self.scales = {name: parameter(self.gm, name).clone() for name in self.stretch}
        self.learning: tuple[float, torch.Generator] | None = None

    def _stretches(self) -> dict[str, Tensor]:
        """A factor's logarithm for the step of each coarse grid that serves nobody outside of the block, by its name."""
        inside = set(self.nodes)
        names = {_scale_name(n) for n in self.coarse}
        outside = {n.target for n in self.gm.graph.nodes if n.op == "get_attr" and not set(n.users) <= inside}
        return {name: torch.zeros((), requires_grad=True) for name in sorted(names - outside)}

    def learned(self, settings: Reconstruction, unit: float) -> list[dict[str, Any]]:
        """What there is to learn, as the optimizer wants it; ``unit`` is the block's mean squared error."""
        groups = (
            ([c.latent for c in self.choices.values()], settings.lr),
            (list(self.biases.values()), settings.bias_lr * unit**0.5),
            (list(self.stretch.values()), settings.value_lr),
        )
        return [{"params": found, "lr": lr} for found, lr in groups if found]

    def soft(self, fed: _Fed, drop: float, generator: torch.Generator) -> Tensor:
        """What the block gives with what is learned so far, and some values in float."""
        self.learning = (drop, generator)
        try:
            return self._run(fed)
        finally:
            self.learning = None

    @torch.no_grad()
    def given(self, fed: _Fed, batch: int) -> Tensor:
        """What the block gives with the weights that it has."""
        parts = torch.arange(len(fed.entry)).split(batch)
        return torch.cat([self._run(fed.some(at)) for at in parts])

    def error(self, fed: _Fed, batch: int) -> float:
        """Its mean squared error."""
        return float((self.given(fed, batch) - fed.wanted).square().mean())

    def _run(self, fed: _Fed) -> Tensor:
        self.env = {**fed.inputs, self.entry: fed.entry}
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
        if n.op == "get_attr" and str(n.target) in self.biases:
            return self.biases[str(n.target)]
        if n not in self.coarse:
            return super().run_node(n)
        x = self.env[unquantized(n)]
        name = _scale_name(n)
        learned = name in self.stretch
        q = _stepped(x, self.coarse[n], self.scales[name], self.stretch[name]) if learned else super().run_node(n)
        return _mixed(x, q, *self.learning)

    def settled(self) -> dict[str, Tensor]:
        """What was learned, by the names of the weights and scales that it is for."""
        weights = {la.weight: _decoded(la.grid, self.choices[n].settled()) for n, la in self.layers.items()}
        biases = {name: b.detach().clone() for name, b in self.biases.items()}
        return weights | biases | {name: self.scales[name] * stretch.detach().exp() for name, stretch in self.stretch.items()}

    @torch.no_grad()
    def write(self, values: dict[str, Tensor]) -> None:
        """Put them into the network."""
        for name, value in values.items():
            parameter(self.gm, name).copy_(value)


def _choice(grid: Grid, weight: Tensor, float_weight: Tensor) -> Straight:
    """From the integers that it has."""
    zero = spread(grid.zero_point, weight.shape)
    start = (grid.encode(weight.detach()) - zero).float()
    return Straight.of(start, float_weight.detach(), grid.steps(weight.shape), (grid.low - zero, grid.high - zero))


def _decoded(grid: Grid, integers: Tensor) -> Tensor:
    """The weight on its grid, bit by bit, of integers without the zero point."""
    return grid.decode(integers.int() + spread(grid.zero_point, integers.shape))


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


def _mixed(one: Tensor, other: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Elements of ``one`` with that probability, else of ``other``."""
    return torch.where(torch.rand(one.shape, generator=generator) < share, one, other)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    shapes = sorted({tuple(p.shape[1:]) for p in parts})
    if len(shapes) > 1:
        raise DataError(f"calibration has samples of shapes {shapes}; give samples of one shape, or take another rounding")
    return torch.cat(list(parts))
