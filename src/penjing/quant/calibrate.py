"""One pass over the calibration data: the range of every value that gets a grid, and the mean of what every layer reads."""

from collections.abc import Callable, Iterable, Mapping, Set, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from penjing.errors import DataError, first_line
from penjing.progress import Progress, silent
from penjing.quant.observers import Observer
from penjing.task import Inputs, as_tuple


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
    """Watch the float network on all batches.

    Args:
        values: Names of the nodes to observe.
        means: Names of the nodes whose mean for each channel is wanted.
        least: Names of other nodes, whose least value for each channel is wanted.

    Raises:
        DataError: There is no batch, the network does not take one, a value is not finite, or all inputs are constant.
    """
    watch = _Watch(module, values, means, least, make)
    total = len(batches) if isinstance(batches, Sized) else 1
    with torch.no_grad(), progress("calibration", total) as advance:
        for inputs in batches:
            watch.one(as_tuple(inputs))
            advance(f"{watch.samples} samples")
    if not watch.samples:
        raise DataError("calibration is empty: it yields no batch; give a few hundred images")
    _check_inputs(module, watch.values)
    return Seen(watch.values, {name: total / watch.samples for name, total in watch.totals.items()}, watch.lowest)


def _check_inputs(module: fx.GraphModule, values: Mapping[str, Observer]) -> None:
    inputs = {n.name: values[n.name] for n in module.graph.nodes if n.op == "placeholder" and n.name in values}
    if inputs and all(bool(o.low == o.high) for o in inputs.values()):
        told = " and ".join(f"every number of {name} is {float(o.low):g}" for name, o in inputs.items())
        raise DataError(f"calibration is constant: {told}; give images as the network will see them")


class _Watch(fx.Interpreter):
    def __init__(
        self, module: fx.GraphModule, values: Set[str], means: Set[str], least: Set[str], make: Callable[[], Observer]
    ) -> None:
        super().__init__(module)
        self.values = {name: make() for name in values}
        self.means, self.least = means, least
        self.totals: dict[str, Tensor] = {}
        self.lowest: dict[str, Tensor] = {}
        self.samples = 0

    def one(self, inputs: tuple[Tensor, ...]) -> None:
        self.samples += inputs[0].shape[0]
        try:
            self.run(*inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as e:  # torch's complaints about shapes
            shapes = [tuple(x.shape) for x in inputs]
            raise DataError(
                f"the model does not take what calibration yields, inputs of shape {shapes}: {first_line(e)}"
            ) from e

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.values:
            observer = self.values[n.name]
            observer.update(value.reshape(1, -1))
            low, high = float(observer.low), float(observer.high)
            if not (abs(low) < float("inf") and abs(high) < float("inf")):
                raise DataError(
                    f"calibration makes {n.name} range from {low} to {high}; look for NaN or infinity in the images"
                )
        if n.name in self.means or n.name in self.least:
            others = [d for d in range(value.ndim) if d != 1]
            if n.name in self.means:
                mean = value.mean(others) * value.shape[0]
                self.totals[n.name] = self.totals.get(n.name, 0) + mean
            else:
                least = value.amin(others)
                self.lowest[n.name] = torch.minimum(self.lowest.get(n.name, least), least)
        return value
