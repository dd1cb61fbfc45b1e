"""One pass over the calibration data: the range of every value that gets a grid, and the mean of what every layer reads."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from penjing.errors import DataError, first_line
from penjing.quant.observers import Observer
from penjing.task import Inputs, as_tuple


@dataclass
class Seen:
    """What calibration learned of one value."""

    observer: Observer
    total: float = 0.0
    count: int = 0

    def add(self, value: Tensor) -> None:
        rows = value.detach().reshape(1, -1)
        self.observer.update(rows)
        self.total += float(rows.double().sum()) if rows.numel() < 2**14 else float(rows.sum())
        self.count += rows.numel()

    @property
    def mean(self) -> float:
        return self.total / max(self.count, 1)


def calibrate(
    module: fx.GraphModule, batches: Iterable[Inputs], groups: dict[str, str], make: Callable[[], Observer], read: set[str]
) -> tuple[dict[str, Seen], dict[str, Tensor]]:
    """Watch the float network on all batches.

    Args:
        groups: ``{node name: name of the grid it shares}``, the values to watch; one observer for each grid.
        read: Names of nodes whose mean for each channel (dim 1) is wanted.

    Raises:
        DataError: There is no batch, the network does not take one, or a value is not finite.
    """
    watch = _Watch(module, groups, make, read)
    with torch.no_grad():
        for inputs in batches:
            watch.one(as_tuple(inputs))
    if not watch.batches:
        raise DataError("calibration is empty: it yields no batch; give a few hundred images")
    return watch.seen, {name: total / watch.samples for name, total in watch.means.items()}


class _Watch(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, groups: dict[str, str], make: Callable[[], Observer], read: set[str]) -> None:
        super().__init__(module)
        self.groups, self.make, self.read = groups, make, read
        self.seen: dict[str, Seen] = {}
        self.means: dict[str, Tensor] = {}
        self.batches = self.samples = 0

    def one(self, inputs: tuple[Tensor, ...]) -> None:
        self.batches += 1
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
        if n.name in self.groups:
            low, high = (float(v) for v in torch.aminmax(value))
            if not (abs(low) < float("inf") and abs(high) < float("inf")):
                raise DataError(
                    f"calibration makes {n.name} range from {low} to {high}; look for NaN or infinity in the images"
                )
            self.seen.setdefault(self.groups[n.name], Seen(self.make())).add(value)
        if n.name in self.read:
            channels = value.movedim(1, 0) if value.ndim > 1 else value[None]
            mean = channels.flatten(1).mean(1) * value.shape[0]
            self.means[n.name] = self.means.get(n.name, 0) + mean
        return value
