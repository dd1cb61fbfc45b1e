"""What a criterion judges by: the weights, the graph that they are used in, and, for some, data."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from penjing.graph import Channels, Graph, find_channels
from penjing.task import Loss

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


Criterion = Callable[[Evidence], Scores]
