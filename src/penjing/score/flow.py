"""Run a captured graph node by node over a whole calibration set: every value is a list, with one entry a batch.

So what is learned at one layer can change it before the next one is looked at, in a single pass over the data.
Memory holds the values that are still to be read, of all batches: a few activations of all images, not the whole network's.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from penjing.errors import DataError, first_line
from penjing.graph import Graph
from penjing.task import inputs_and_target

Batch = tuple[Tensor, ...]


class Flow(fx.Interpreter):
    """The values of a graph on many batches, computed one node at a time."""

    def __init__(self, graph: Graph, batches: Sequence[Batch]) -> None:
        super().__init__(graph.module)
        self.nodes: list[fx.Node] = list(graph.module.graph.nodes)
        self.inputs = [n for n in self.nodes if n.op == "placeholder"]
        self.batches = batches
        self.held: list[dict[fx.Node, Any]] = [{} for _ in batches]

    @torch.no_grad()
    def compute(self, node: fx.Node) -> None:
        """The node's value on every batch; what it reads must have been computed and not be dropped yet.

        Raises:
            DataError: The operation fails on a batch.
        """
        for batch, values in zip(self.batches, self.held, strict=True):
            if node.op == "placeholder":
                values[node] = batch[self.inputs.index(node)]
                continue
            self.env = values
            try:
                values[node] = self.run_node(node)
            except (RuntimeError, ValueError, IndexError) as e:  # torch's complaints about shapes
                shapes = [tuple(x.shape) for x in batch]
                raise DataError(f"{node.name} fails on a batch of inputs of shape {shapes}: {first_line(e)}") from e

    def drop(self, node: fx.Node) -> None:
        """Let go of the values that no node after this one reads."""
        for values in self.held:
            for done in self.user_to_last_uses.get(node, []):
                values.pop(done, None)
            if not node.users and node.op != "output":
                values.pop(node, None)

    def __getitem__(self, node: fx.Node) -> list[Any]:
        return [values[node] for values in self.held]

    def __contains__(self, node: fx.Node) -> bool:
        return all(node in values for values in self.held)

    def walk(self) -> Iterator[fx.Node]:
        """Compute node after node; each one's values and what it read are there while it is looked at."""
        for node in self.nodes:
            self.compute(node)
            yield node
            self.drop(node)


def tensor_of(graph: Graph, name: str) -> Tensor:
    """A parameter, buffer or constant of the captured graph."""
    value = operator.attrgetter(name)(graph.module)
    assert isinstance(value, Tensor)
    return value


def calibration(data: Iterable[Any] | None, graph: Graph) -> list[Batch]:
    """The inputs of all batches, without targets, on the example's device.

    Args:
        data: Yields inputs (a tensor, or a tuple of as many as the model takes) or ``(inputs, target)``.

    Raises:
        DataError: There is none, or a batch is not what the model takes: its number of inputs, shapes, types or values.
    """
    if data is None or isinstance(data, Tensor) or not isinstance(data, Iterable):
        given = "missing" if data is None else type(data).__name__
        raise DataError(f"calibration data is {given}; give a loader or a list of batches, e.g. list(images.split(64))")
    parts = (inputs_and_target(batch, len(graph.example))[0] for batch in data)
    batches = [_checked(i, inputs, graph) for i, inputs in enumerate(parts)]
    batches = [b for b in batches if len(b[0])]
    if not batches:
        raise DataError("calibration data is empty: it yields no batch; give at least one, and a few hundred samples for use")
    return batches


def _checked(number: int, batch: Batch, graph: Graph) -> Batch:
    where = f"batch {number} of the calibration data"
    for x, like in zip(batch, graph.example, strict=True):
        fits = x.ndim == like.ndim and x.dtype == like.dtype and x.shape[1:] == like.shape[1:]
        if not fits or (x.shape != like.shape and not graph.dynamic):
            raise DataError(
                f"{where} has inputs {x.dtype} of shape {tuple(x.shape)}, but the example is {like.dtype} of shape "
                f"{tuple(like.shape)}; give batches like the example" + (", of any size" if graph.dynamic else "")
            )
        if x.is_floating_point() and not x.isfinite().all():
            raise DataError(f"{where} has inputs that are NaN or infinite; remove or mend those samples")
    return tuple(x.detach().to(like.device) for x, like in zip(batch, graph.example, strict=True))
