"""One pass over the calibration data: the range of every value that gets a grid, and the mean of what every layer reads."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from penjing import ranks
from penjing.errors import DataError, first_line
from penjing.graph.capture import takes_any_batch
from penjing.progress import Progress, silent
from penjing.quant.observers import Observer
from penjing.task import Inputs, as_tuple, samples_of

TOGETHER = 8  # samples of small batches that are run at once; of more too little would be counted
MOST = 2**20  # and numbers of their inputs, for memory: six images of 224 px


@dataclass
class Seen:
    """What calibration learned.

    Attributes:
        values: The observer of each value, by its node's name.
        means: The mean of each channel (dim 1) of a value, ``(channels,)``, by its node's name.
        lowest: The least of each channel.
    """

    values: dict[str, Observer] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)
    lowest: dict[str, Tensor] = field(default_factory=dict)

    def update(self, other: "Seen") -> None:
        """Take in what another pass learned."""
        self.values |= other.values
        self.means |= other.means
        self.lowest |= other.lowest


def calibrate(
    module: fx.GraphModule,
    batches: Iterable[Inputs],
    values: Set[str],
    make: Callable[[], Observer],
    *,
    means: Set[str] = frozenset(),
    least: Set[str] = frozenset(),
    progress: Progress = silent,
) -> Seen:
    """Watch the float network on all batches; of several processes each takes its share, and all get everything.

    Args:
        values: Names of the nodes to observe.
        means: Names of the nodes whose mean for each channel is wanted.
        least: Names of other nodes, whose least value for each channel is wanted.

    Raises:
        DataError: There is no batch, the network does not take one, a value is not finite, or all inputs are constant.
    """
    by_batch = make().by_batch
    shared = batches if by_batch else ranks.own(batches)
    watch = _Watch(module, values, means, least, make)
    total = len(batches) if isinstance(batches, Sized) else 1
    with torch.no_grad(), progress("calibration", total) as advance:
        for inputs, count in together(module, shared, 0 if by_batch else TOGETHER):
            watch.one(inputs)
            for _ in range(count):
                advance(f"{watch.samples} samples")
    if not by_batch:
        watch.gather()
    if not watch.samples:
        raise DataError("calibration is empty: it yields no batch; give a few hundred images")
    _check_inputs(module, watch.values)
    return Seen(watch.values, {name: total / watch.counts[name] for name, total in watch.totals.items()}, watch.lowest)


def together(
    module: fx.GraphModule, batches: Iterable[Inputs], most: int = TOGETHER
) -> Iterator[tuple[tuple[Tensor, ...], int]]:
    """Small batches of one shape as larger ones of ``most`` samples, which cost less; and of how many each is made.

    As they are, where the network was read for one size of batch.
    """
    most = most if takes_any_batch(module) else 0
    waiting: list[tuple[Tensor, ...]] = []
    for inputs in map(as_tuple, batches):
        if inputs and not samples_of(inputs):
            continue
        if waiting and not _fits(waiting, inputs, most):
            yield _joined(waiting), len(waiting)
            waiting = []
        waiting.append(inputs)
    if waiting:
        yield _joined(waiting), len(waiting)


def _fits(waiting: list[tuple[Tensor, ...]], inputs: tuple[Tensor, ...], most: int) -> bool:
    """Whether a batch can be put to others: of the same shapes, all inputs of as many samples, and not too many in all."""
    batched = all(x.ndim and len(x) == len(inputs[0]) for x in inputs)
    alike = [(x.shape, x.dtype) for x in waiting[0]] == [(x.shape, x.dtype) for x in inputs]
    if not (batched and alike):
        return False
    count = len(waiting) + 1
    return count * len(inputs[0]) <= most and count * sum(x.numel() for x in inputs) <= MOST


def _joined(batches: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return batches[0] if len(batches) == 1 else tuple(map(torch.cat, zip(*batches, strict=True)))


def not_taken(module: fx.GraphModule, inputs: tuple[Tensor, ...], error: Exception) -> DataError:
    """What is to be said where a network does not run on a batch of the calibration."""
    shapes = [tuple(x.shape) for x in inputs]
    only = ""
    if not takes_any_batch(module):
        given = [n.meta["val"] for n in module.graph.nodes if n.op == "placeholder"]
        example = next((x for x in given if x.ndim), given[0])
        only = (
            f"; it takes batches like the example alone, of shape {tuple(example.shape)}, since its forward makes a number of "
            "the batch size, as int(x.shape[0]) or a loop over the samples do: give such batches, or leave the size a tensor's"
        )
    return DataError(f"the model does not take what calibration yields, inputs of shape {shapes}: {first_line(error)}{only}")


def _check_inputs(module: fx.GraphModule, values: Mapping[str, Observer]) -> None:
    inputs = {n.name: values[n.name] for n in module.graph.nodes if n.op == "placeholder" and n.name in values}
    if inputs and all(bool(o.low == o.high) for o in inputs.values()):
        told = " and ".join(f"every number of {name} is {float(o.low):g}" for name, o in inputs.items())
        raise DataError(f"calibration is constant: {told}; give images as the network will see them")


class _Watch(fx.Interpreter):
    def __init__(
        self,
        module: fx.GraphModule,
        values: Set[str],
        means: Set[str],
        least: Set[str],
        make: Callable[[], Observer],
    ) -> None:
        super().__init__(module)
        self.network = module
        self.weights = dict[str, Tensor]()
        self.values = {name: make() for name in values}
        self.means, self.least = means, least
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}  # rows that the totals are of: a network may fold other dims into the batch
        self.lowest: dict[str, Tensor] = {}
        self.samples = 0
        self.wrong = ""  # told outside of the interpreter, which would add where it was to what is said

    def gather(self) -> None:
        """Take in what the other processes saw."""
        mine = self.values, self.totals, self.counts, self.lowest, self.samples
        (self.values, self.totals, self.counts, self.lowest, self.samples), *others = ranks.gathered(mine)
        for values, totals, counts, lowest, samples in others:
            for name, observer in self.values.items():
                observer.merge(values[name])
            for name, total in totals.items():
                self.totals[name] = self.totals.get(name, 0) + total
                self.counts[name] = self.counts.get(name, 0) + counts[name]
            for name, low in lowest.items():
                self.lowest[name] = torch.minimum(self.lowest.get(name, low), low)
            self.samples += samples

    def one(self, inputs: tuple[Tensor, ...]) -> None:
        self.samples += samples_of(inputs)
        try:
            self.run(*(_channels_last(x) for x in inputs))
        except (RuntimeError, TypeError, ValueError, IndexError) as e:  # torch's complaints about shapes
            raise not_taken(self.network, inputs, e) from e
        if self.wrong:
            raise DataError(f"{self.wrong}; look for NaN or infinity in the images")

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Weights as convolutions want them, made once: torch would do so for every batch."""
        value = super().get_attr(target, args, kwargs)
        if not isinstance(value, Tensor) or value.ndim != 4:
            return value
        if target not in self.weights:
            self.weights[target] = _channels_last(value)
        return self.weights[target]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.values:
            observer = self.values[n.name]
            observer.update(_in_memory_order(value).reshape(1, -1))
            low, high = float(observer.low), float(observer.high)
            if not (abs(low) < float("inf") and abs(high) < float("inf")):
                self.wrong = self.wrong or f"calibration makes {n.name} range from {low} to {high}"
        if n.name in self.means or n.name in self.least:
            others = [d for d in range(value.ndim) if d != 1]
            if n.name in self.means:
                mean = value.mean(others) * value.shape[0]
                self.totals[n.name] = self.totals.get(n.name, 0) + mean
                self.counts[n.name] = self.counts.get(n.name, 0) + value.shape[0]
            else:
                least = value.amin(others)
                self.lowest[n.name] = torch.minimum(self.lowest.get(n.name, least), least)
        return value


def _channels_last(x: Tensor) -> Tensor:
    """The memory format in which convolutions are fastest, for maps of two dimensions; others as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _in_memory_order(value: Tensor) -> Tensor:
    """A view that can be flattened without a copy; observers do not care about the order."""
    return value if value.is_contiguous() or value.ndim != 4 else value.permute(0, 2, 3, 1)
