"""Even out the channels of values that share one scale, where it pays, without changing the function.

A value has one scale for all its channels, so one whose range is a hundredth of the largest has less than two bits of eight.
Factors (``streams.py``) make ranges alike. What they take from values they may give to weights, whose rows share a scale too:
how far to go is a choice (arXiv:2211.10438), here by an estimate of the noise in what the readers give; not at all is one.
Nothing is added to the network, so this costs it no time.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from penjing.quant.calibrate import not_taken, together
from penjing.quant.editable import Editable, attribute
from penjing.quant.grids import levels
from penjing.quant.streams import Line, Streams
from penjing.task import Inputs, as_tuple, samples_of

CHOICES = (0.25, 0.5, 0.75, 1.0)  # of the way to equal ranges, in octaves
GAIN = 0.1  # of the estimated noise that may be left; of smaller promises some were broken, as in a U-Net
WIDEST = 64.0  # a channel that calibration saw smaller than the largest by more may be larger on other data
FAINTEST = 1e-3  # of the mean power: what outputs with less give is judged as if they had this much
TINY = 1e-30
SAMPLES = 8  # are enough to tell loud channels from faint ones


@dataclass(frozen=True)
class Evened:
    """What evening out came to.

    Attributes:
        gains: ``{layer's node name: the estimated noise, as a share of that before}``, for layers that read what was changed;
            those that share factors are told their sum.
        noise: ``{layer's node name: the noise of 8 bits in what it reads}``, as a share of the power of what it gives, averaged
            over outputs; of every layer.
    """

    gains: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)


def even_out(module: fx.GraphModule, batches: Iterable[Inputs], *, weight_bits: int = 8, value_bits: int = 8) -> Evened:
    """Rescale channels in place, where that lowers the estimated noise to less than a tenth.

    Args:
        module: A float graph after ``fold``, whose weights will have a scale for each output channel.
        batches: Calibration data; 8 samples of it are looked at.

    Returns:
        What was gained and what is left; empty where ``batches`` are.

    Raises:
        DataError: The network does not take what ``batches`` yield.
    """
    streams = Streams(module)
    free = streams.read()
    fixed = {node: Line(dim, torch.zeros(0)) for node, dim in streams.read_along().items()}
    readers = {node: _Reader(streams.layers[node], line) for node, line in (fixed | free).items()}
    if not _Watch(module, readers).look(batches):
        return Evened()
    factors, told = torch.ones(len(streams.free), dtype=torch.float64), Evened()
    for group in _together([readers[node] for node in free]):
        judge = _Judge([_Cost(r, weight_bits, value_bits) for r in group])
        tried = [torch.where(streams.free, judge.factors(len(factors), choice), 1.0) for choice in CHOICES]
        noise = [judge.noise(f) for f in (torch.ones_like(factors), *tried)]
        least = min(noise)
        if least < GAIN * noise[0]:
            factors = factors * tried[noise.index(least) - 1]
            told.gains.update({r.layer.node.name: least / noise[0] for r in group})
    for node, reader in readers.items():
        given = factors[free[node].factors] if node in free else torch.ones_like(reader.power)
        told.noise[node.name] = _Cost(reader, 8, 8).of_values(given) / 12
    streams.store(factors)
    return told


@dataclass
class _Reader:
    """A layer and what calibration saw there; all for each channel, float64.

    Attributes:
        largest: The largest magnitude of the input.
        power: The mean square of the input.
        given: The mean square of the output.
        signed: Whether the input is ever negative.
    """

    layer: Editable
    line: Line
    largest: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    power: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    given: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    signed: bool = False


class _Watch(fx.Interpreter):
    """Sees what readers read and give."""

    def __init__(self, module: fx.GraphModule, readers: dict[fx.Node, _Reader]) -> None:
        super().__init__(module)
        self.graph_module, self.readers = module, readers

    def look(self, batches: Iterable[Inputs]) -> int:
        """Run on the first samples; how many there were."""
        samples, runs = 0, 0
        with torch.no_grad():
            for inputs, _ in together(self.graph_module, _first(batches), 2):
                self._one(inputs)
                samples, runs = samples + samples_of(inputs), runs + 1
        for reader in self.readers.values():
            reader.power, reader.given = reader.power / max(1, runs), reader.given / max(1, runs)
        return samples

    def _one(self, inputs: tuple[Tensor, ...]) -> None:
        try:
            self.run(*inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as e:  # torch's complaints about shapes
            raise not_taken(self.graph_module, inputs, e) from e

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if (reader := self.readers.get(n)) is not None:
            source = n.args[0]
            assert isinstance(source, fx.Node)
            read, given = _channels(self.env[source], reader.line.dim), _channels(value, reader.layer.place(value))
            low, high = read.aminmax(dim=1)
            reader.signed = reader.signed or bool((low < 0).any())
            reader.largest = torch.maximum(reader.largest, torch.maximum(-low, high).double())
            reader.power = reader.power + read.square().mean(1).double()
            reader.given = reader.given + given.square().mean(1).double()
        return value


def _first(batches: Iterable[Inputs]) -> Iterator[Inputs]:
    """As many batches as hold the samples that are looked at."""
    samples = 0
    for inputs in batches:
        yield inputs
        samples += samples_of(as_tuple(inputs))
        if samples >= SAMPLES:
            return


class _Cost:
    """What rounding costs one reader, for any factors: the share of each output's power that is noise, averaged."""

    def __init__(self, reader: _Reader, weight_bits: int, value_bits: int) -> None:
        self.reader, layer = reader, _read(reader.layer)
        self.most = levels(weight_bits, signed=True)[1], levels(value_bits, signed=reader.signed)[1]
        given = reader.given.clamp_min(FAINTEST * float(reader.given.mean())).clamp_min(TINY)
        self.worth = 1 / (given * len(given))
        scaled = layer.weight * layer.along(self.worth.sqrt().to(layer.weight), layer.output)
        self.gain = layer.rows(scaled.square_(), layer.input).sum(1, dtype=torch.float64)
        self.taps = layer.weight[0, 0].numel()

    def noise(self, factors: Tensor) -> float:
        """Of values and weights if each input channel is multiplied by its factor, ``(channels,)``, and its weights divided.

        Rounding is worth a twelfth of the squared step, with steps from the largest value or weight that shares a scale.
        """
        small, reader = _read(self.reader.layer), self.reader  # again each time: of a large network they are too much to keep
        over = list(range(2, small.weight.ndim))
        small.weight = small.weight.abs().amax(over, keepdim=True) if over else small.weight.abs()
        shares = factors.to(small.weight)
        step = small.rows(small.weight / small.along(shares, small.input), small.output).amax(1).double() / self.most[0]
        power = small.along((reader.power * factors.square()).to(shares), small.input).expand_as(small.weight)
        power = small.rows(power, small.output).sum(1, dtype=torch.float64)
        weights = (self.worth * self.taps * step.square() * power).sum()
        return float(self.of_values(factors) + weights) / 12

    def of_values(self, factors: Tensor) -> float:
        """Twelve times that of values alone."""
        step = (self.reader.largest * factors).max() / self.most[1]
        return float(step.square() * (self.gain / factors.square()).sum())


class _Judge:
    """Readers that share factors: their sum is what counts."""

    def __init__(self, costs: Sequence[_Cost]) -> None:
        self.costs = costs

    def noise(self, factors: Tensor) -> float:
        return sum(c.noise(factors[c.reader.line.factors]) for c in self.costs)

    def factors(self, count: int, share: float) -> Tensor:
        """So much of the way to equal ranges, averaged over readers, ``(count,)``."""
        found, times = torch.zeros(2, count, dtype=torch.float64)
        for cost in self.costs:
            wanted = -share * _octaves(cost.reader.largest)
            found.index_add_(0, cost.reader.line.factors, wanted)
            times.index_add_(0, cost.reader.line.factors, torch.ones_like(wanted))
        return torch.exp2(found / times.clamp_min(1))


def _read(layer: Editable) -> Editable:
    """The layer with its numbers, as they are: an estimate needs no more precision."""
    weight = attribute(layer.module, layer.node.args[1])
    assert weight is not None
    return replace(layer, weight=weight)


def _octaves(ranges: Tensor) -> Tensor:
    """Logarithms around 0. What is zero counts as the largest: nothing is known of it, so it must not grow."""
    most = ranges.max().clamp_min(TINY)
    found = torch.where(ranges > 0, ranges, most).clamp_min(float(most) / WIDEST).log2()
    return found - found.mean()


def _together(readers: Sequence[_Reader]) -> Iterator[list[_Reader]]:
    """Readers that share a factor, directly or by others."""
    groups: list[tuple[set[int], list[_Reader]]] = []
    for reader in readers:
        numbers, members, others = set(reader.line.factors.tolist()), [reader], []
        for known, found in groups:
            if known & numbers:
                numbers, members = known | numbers, [*found, *members]
            else:
                others.append((known, found))
        groups = [*others, (numbers, members)]
    yield from (members for _, members in groups)


def _channels(value: Tensor, dim: int) -> Tensor:
    return value.movedim(dim, 0).reshape(value.shape[dim], -1)
