"""What a criterion for single weights judges by: the layers whose weights may be cut, the model, and, for some, data."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from penjing.errors import DataError, RecipeError
from penjing.score.layer_inputs import second_moments
from penjing.score.layer_weights import LayerWeight
from penjing.task import Loss, as_tuple


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
            RecipeError: There is no data.
            DataError: It yields no batch, or no labels where ``labels`` are needed.
        """
        if self.data is None:
            raise RecipeError("this criterion needs data; give task=, or data= batches of (inputs, target)")
        device, i = next(iter(self.weights.values())).device, -1
        for i, batch in enumerate(self.data):
            if i >= self.batches:
                break
            inputs, target = _apart(batch)
            if labels and target is None:
                raise DataError("this criterion needs labels, and data yields none; give (inputs, target) pairs, or use obs")
            yield tree_map(partial(_on, device), (as_tuple(inputs), target))
        if i < 0:
            raise DataError("data is empty: it yields no batch; give at least one (inputs, target) pair")


def _apart(batch: Any) -> tuple[Any, Any]:
    """Inputs and target of a batch; a batch of one part has no target."""
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        return batch[0], batch[1] if len(batch) == 2 else None
    raise DataError(f"data yields {type(batch).__name__}; give inputs or (inputs, target) pairs")


def _on(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


WeightScores = Mapping[str, Tensor]  # name of a weight -> a score for each of its numbers, in its shape; higher = keep
WeightCriterion = Callable[[WeightEvidence], WeightScores]
