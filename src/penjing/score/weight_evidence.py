"""What a criterion for single weights judges by: the layers whose weights may be cut, the model, and, for some, data."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from penjing.errors import DataError
from penjing.score.layer_inputs import second_moments
from penjing.score.layer_weights import LayerWeight
from penjing.task import Loss, inputs_and_target

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class WeightEvidence:
    """What a criterion judges single weights by.

    Attributes:
        model: In eval mode; a criterion leaves it as it is.
        layers: The weights to judge.
        data: Batches ``(inputs, target)``, or of one tensor of inputs; None where the criterion needs none.
        loss: ``(output, target) -> scalar``, for criteria that take labels.
        batches: How many batches are looked at.
    """

    model: nn.Module
    layers: tuple[LayerWeight, ...]
    data: Iterable[Any] | None = None
    loss: Loss = F.cross_entropy
    batches: int = 8
    seed: int = 0

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The weights to judge, detached."""
        held = dict(self.model.named_parameters())
        return {layer.name: held[layer.name].detach() for layer in self.layers}

    @cached_property
    def moments(self) -> dict[str, Tensor]:
        """Second moments of what every layer reads, for each weight ``(groups, d, d)``; see ``second_moments``."""
        return second_moments(self.model, self.layers, (inputs for inputs, _ in self.walk(labels=False)), seed=self.seed)

    def walk(self, *, labels: bool) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        """The batches, as ``(inputs, target)``; the target is None where they have none.

        Raises:
            DataError: There is no data, it yields no batch, or no labels where ``labels`` are needed.
        """
        if self.data is None:
            raise DataError("this criterion needs data; give task=, or data= batches of (inputs, target)")
        device, i = next(iter(self.weights.values())).device, -1
        for i, batch in enumerate(self.data):
            if i >= self.batches:
                break
            inputs, target = inputs_and_target(batch, self._inputs(batch))
            if labels and target is None:
                raise DataError("this criterion needs labels, and data yields none; give (inputs, target) pairs, or use obs")
            yield tree_map(partial(_on, device), (inputs, target))
        if i < 0:
            raise DataError("data is empty: it yields no batch; give at least one (inputs, target) pair")

    def _inputs(self, batch: Any) -> int:
        """How many inputs a batch holds: what ``forward`` cannot do without, unless they are a tuple of their own."""
        if isinstance(batch, tuple | list) and batch and isinstance(batch[0], tuple | list):
            return len(batch[0])
        asked = inspect.signature(self.model.forward).parameters.values()
        return max(1, sum(p.kind in _BY_PLACE and p.default is p.empty for p in asked))


def precise(x: Tensor) -> Tensor:
    """In float32 at least: a square of half precision is zero soon."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _on(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


WeightScores = Mapping[str, Tensor]  # name of a weight -> a score for each of its numbers, in its shape; higher = keep
WeightCriterion = Callable[[WeightEvidence], WeightScores]
