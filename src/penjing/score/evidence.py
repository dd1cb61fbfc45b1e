"""What a criterion judges by: the weights, the graph that they are used in, and, for some, data."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from penjing.errors import DataError
from penjing.graph import Channels, Graph, find_channels
from penjing.task import Loss, inputs_and_target

Scores = Mapping[str, Tensor]  # group name -> shape (channels,), higher = keep


@dataclass(frozen=True)
class Evidence:
    """What a criterion judges by.

    Attributes:
        graph: What the model computes, with its weights.
        channels: The groups to judge.
        data: Batches of inputs, or of ``(inputs, target)``; None where the criterion needs none.
        loss: ``(output, target) -> scalar``, for criteria that take labels.
    """

    graph: Graph
    channels: Channels
    data: Iterable[Any] | None = None
    loss: Loss = F.cross_entropy

    @classmethod
    def of(cls, graph: Graph, data: Iterable[Any] | None = None, loss: Loss = F.cross_entropy) -> "Evidence":
        """Evidence on all channels of a graph."""
        return cls(graph, find_channels(graph), data, loss)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameters by name, shared ones under each of their names."""
        return dict(self.graph.module.named_parameters(remove_duplicate=False))

    def batches(self) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        """The data, batch by batch: inputs and target, None where there is none, on the device of the weights.

        Raises:
            DataError: There is no data, or a batch is not what the model takes.
        """
        if self.data is None:
            raise DataError("this criterion looks at what the channels carry, and there is no data; give data=[...] batches")
        device = next((w.device for w in self.weights.values()), self.graph.example[0].device)

        def here(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        empty = True
        for batch in self.data:
            inputs, target = inputs_and_target(batch, len(self.graph.example))
            self._check_batch(inputs)
            if len(inputs[0]):
                yield tuple(here(x) for x in inputs), tree_map(here, target)
                empty = False
        if empty:
            raise DataError("data is empty: it yields no sample; give a list or a loader, which can be walked more than once")

    def _check_batch(self, inputs: tuple[Tensor, ...]) -> None:
        for x, like in zip(inputs, self.graph.example, strict=True):
            if not inputs[0].ndim or x.ndim != like.ndim:
                raise DataError(f"data yields inputs of shape {tuple(x.shape)}; the model was read with {tuple(like.shape)}")
            if not self.graph.dynamic and x.shape != like.shape:
                raise DataError(
                    f"data yields inputs of shape {tuple(x.shape)}, but the model takes only the shape of the example, "
                    f"{tuple(like.shape)}; give batches of that size"
                )


Criterion = Callable[[Evidence], Scores]
