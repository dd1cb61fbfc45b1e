"""Freezing weights that swing between two integers of their grid (Nagel et al. 2022, arXiv:2203.11086).

A weight whose best value lies between two integers is pushed from one to the other and back every few steps, and which one it
ends with is chance. A weight that turns back too often is set to the integer nearest to the mean of its integers, and stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from penjing.distill.combine import half_cosine
from penjing.errors import ModelError, RecipeError
from penjing.quant.grids import TINY, Grid
from penjing.quant.learned import WeightGrid, weight_grids
from penjing.train.optimizers import momenta


@dataclass(frozen=True, kw_only=True)
class Freezing:
    """When a weight is frozen: at more turns per step, as a moving average, than a threshold that falls as half a cosine."""

    start: float = 0.1  # turns per step at first
    end: float = 0.01  # and at the last step
    momentum: float = 0.01  # share of the latest step in the moving averages

    def __post_init__(self) -> None:
        for name in ("start", "end", "momentum"):
            if not 0 < getattr(self, name) <= 1:
                raise RecipeError(f"freezing.{name} is {getattr(self, name)}; give a number above 0, up to 1")

    def threshold(self, step: int, total: int) -> float:
        """Turns per step beyond which a weight is frozen, at ``step`` of ``total``, from 0."""
        return self.end + (self.start - self.end) * half_cosine(step / max(1, total - 1))


@dataclass
class Swings:
    """How the integers of one weight have moved; each tensor has its shape."""

    codes: Tensor  # int16: the integers after the last step
    direction: Tensor  # int8: where they moved to when they last moved: -1, 1, or 0 before that
    turns: Tensor  # float32: moving average of the turns per step
    mean: Tensor  # float32: moving average of the integers
    frozen: Tensor  # bool

    @classmethod
    def of(cls, codes: Tensor) -> "Swings":
        """Those of a weight that has not moved yet."""
        turns, frozen = torch.zeros_like(codes, dtype=torch.float32), torch.zeros_like(codes, dtype=torch.bool)
        return cls(codes.short(), torch.zeros_like(codes, dtype=torch.int8), turns, codes.float(), frozen)

    def update(self, codes: Tensor, threshold: float, momentum: float) -> None:
        """Take in the integers after a step, and freeze what has turned too often."""
        moved = (codes - self.codes).sign().char()
        turned = (moved != 0) & (moved == -self.direction)
        self.turns.lerp_(turned.float(), momentum)
        self.mean.lerp_(codes.float(), momentum)
        self.direction = torch.where(moved != 0, moved, self.direction)
        new = (self.turns > threshold) & ~self.frozen
        latest = torch.where(new, self.mean.round(), codes.float()).short()
        self.codes = torch.where(self.frozen, self.codes, latest)
        self.frozen = self.frozen | new


class FreezeRun:
    """The swings of all weights of one training run: followed after every step, kept in its checkpoint.

    Attributes:
        swings: By parameter name; empty without a way.
    """

    def __init__(self, model: nn.Module, optimizer: Any, way: Freezing | None) -> None:
        self.optimizer, self.way = optimizer, way
        self.grids: dict[str, WeightGrid] = {}
        self.weights: dict[str, nn.Parameter] = {}
        if way is not None:
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            self.grids = {name: grid for name, grid in weight_grids(model).items() if name in trained}
            if not self.grids:
                raise ModelError(
                    "no weight that is trained has a grid, so none can be frozen on it; quantize the network first"
                )
            self.weights = {name: trained[name] for name in self.grids}
        self.swings = {name: Swings.of(self.grids[name].now().encode(p.detach())) for name, p in self.weights.items()}
        self.step, self.total = 0, 1

    def at(self, step: int, total: int) -> None:
        """Say which step of how many comes next, from 0."""
        self.step, self.total = step, total

    def before_step(self) -> None:
        """Take what is frozen out of the gradients, so that it does not count when they are clipped."""
        for name, swings in self.swings.items():
            gradient = self.weights[name].grad
            if gradient is not None:
                gradient.masked_fill_(swings.frozen, 0)

    @torch.no_grad()
    def after_step(self) -> None:
        """Follow the integers; put what is frozen where its grid now has its integer, and take its momentum."""
        if self.way is None:
            return
        threshold = self.way.threshold(self.step, self.total)
        for name, swings in self.swings.items():
            weight, grid = self.weights[name], self.grids[name].now()
            swings.update(grid.encode(weight), threshold, self.way.momentum)
            weight.copy_(torch.where(swings.frozen, _at_rest(grid, swings.codes), weight))
            for momentum in momenta(self.optimizer, weight):
                momentum.masked_fill_(swings.frozen, 0)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {f"{f.name}.{name}": getattr(swings, f.name) for name, swings in self.swings.items() for f in fields(Swings)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` gave."""
        for name, p in self.weights.items():
            held = {f.name: tensors[f"{f.name}.{name}"].to(p.device) for f in fields(Swings)}
            self.swings[name] = Swings(**held)


def _at_rest(grid: Grid, codes: Tensor) -> Tensor:
    """The values of integers, without exact zeros: those are weights that were cut (see ``Training.hold_zeros``)."""
    values = grid.decode(codes)
    return torch.where(values == 0, TINY, values)
