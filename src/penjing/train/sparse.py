"""Sparsity while training: what is zero stays zero, and four ways to become sparse on the way."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penjing.distill.combine import half_cosine
from penjing.errors import ModelError, RecipeError
from penjing.prune.masks import Masks, alive_share, check_pattern, choose_masks, settled
from penjing.prune.patterns import highest
from penjing.score.layer_weights import LayerWeight, layer_weights
from penjing.train.optimizers import momenta


@dataclass(frozen=True, kw_only=True)
class Sparsity(ABC):
    """What all ways have in common; ``density``, ``pattern`` and ``scope`` mean what they mean for ``sparsify``.

    The density is reached exactly, up to the rounding of the pattern, before the last step.
    """

    density: float | None = None
    pattern: str = "unstructured"
    scope: str = "layer"
    exclude: tuple[str, ...] = ()  # patterns of parameter names that stay dense

    def __post_init__(self) -> None:
        settled(self.density, self.pattern, self.scope)
        for name, value in asdict(self).items():
            if name in ("start", "end", "swap", "dense", "final") and not 0 <= value <= 1:
                raise RecipeError(f"sparsity.{name} is {value}; give a share from 0 to 1")
            if name in ("updates", "phases") and value < 1:
                raise RecipeError(f"sparsity.{name} is {value}; give at least 1")

    @property
    def target(self) -> float:
        """The density to end with."""
        return settled(self.density, self.pattern, self.scope)[0]

    def reached(self, step: int, total: int) -> bool:
        """Whether the density is the one to end with once ``step`` of ``total`` was taken, and stays so."""
        return step >= total - 1

    @abstractmethod
    def revise(self, run: "SparseRun", step: int, total: int) -> None:
        """Change the run's masks, before ``step`` of ``total`` (from 0) is taken; the gradients are there."""


@dataclass(frozen=True, kw_only=True)
class _Gradual(Sparsity):
    """Cut a few weights at a time, ever fewer: the density falls as a cube, and then stays."""

    start: float = 0.0  # share of all steps after which cutting begins
    end: float = 0.75  # and ends; the rest is recovery
    updates: int = 100  # how many cuts in between

    def reached(self, step: int, total: int) -> bool:
        return step >= self._last(total)

    def due(self, initial: float, step: int, total: int) -> float | None:
        """The density to cut to at ``step``; None where nothing is due."""
        last = self._last(total)
        first = min(last, round(self.start * total))
        if step == last:
            return self.target
        if not first < step < last or (step - first) * self.updates // (last - first) == (
            (step - first - 1) * self.updates // (last - first)
        ):
            return None
        return self.target + (initial - self.target) * (1 - (step - first) / (last - first)) ** 3

    def _last(self, total: int) -> int:
        """The step of the last cut."""
        return min(total - 1, round(self.end * total))


@dataclass(frozen=True, kw_only=True)
class GradualMagnitude(_Gradual):
    """Cut the smallest weights a few at a time, ever fewer, the density falling as a cube (Zhu & Gupta, arXiv:1710.01878)."""

    def revise(self, run: "SparseRun", step: int, total: int) -> None:
        if (density := self.due(run.initial, step, total)) is not None:
            run.cut(density, {name: p.detach().abs() for name, p in run.weights.items()})


@dataclass(frozen=True, kw_only=True)
class GradualMovement(_Gradual):
    """Cut what has moved towards zero: the lowest ``-sum w * dL/dw`` over the steps (Sanh et al. 2020, arXiv:2005.07683).

    The density falls as in ``GradualMagnitude``. Unlike the paper's, a weight that is cut stays cut.
    """

    start: float = 0.1  # share of all steps after which cutting begins; movements are summed up from the first

    def revise(self, run: "SparseRun", step: int, total: int) -> None:
        for name, p in run.weights.items():
            if p.grad is not None:  # which overflow now and then, in half precision
                moved = (p.detach() * p.grad).nan_to_num(0, 0, 0)
                run.scores[name] = run.scores.get(name, torch.zeros_like(p)) - moved
        if (density := self.due(run.initial, step, total)) is not None:
            run.cut(density, {name: run.scores.get(name, torch.zeros_like(p)) for name, p in run.weights.items()})


@dataclass(frozen=True, kw_only=True)
class RigL(Sparsity):
    """Sparse from the first step; now and then each layer swaps its smallest weights for those of the largest gradients.

    Evci et al. 2020 (arXiv:1911.11134); ``scope="erk"`` is the paper's. Patterns N:M, which leave a weight no other place,
    are refused. A weight without a gradient is not taken in, so that the density stays exact.
    """

    swap: float = 0.3  # share of a layer's weights that is swapped at first; falls to 0 as half a cosine
    end: float = 0.75  # share of all steps after which nothing is swapped
    updates: int = 50  # how many swaps until then

    def __post_init__(self) -> None:
        super().__post_init__()
        if settled(self.density, self.pattern, self.scope)[1].of:
            raise RecipeError(f"RigL does not take pattern {self.pattern!r}; use GradualMagnitude or ACDC")

    def reached(self, step: int, total: int) -> bool:
        del step, total
        return True

    def revise(self, run: "SparseRun", step: int, total: int) -> None:
        last = self.end * total
        if step == 0:
            run.cut(self.target, {name: p.detach().abs() for name, p in run.weights.items()})
        elif step < last and step % max(1, round(last / self.updates)) == 0:
            run.swap(self.swap * half_cosine(step / last))


@dataclass(frozen=True, kw_only=True)
class ACDC(Sparsity):
    """Dense at first, then phases in turn: sparse (the largest weights of that moment), dense; sparse to end with.

    Peste et al. 2021 (arXiv:2106.12379). In a dense phase what was cut starts again, from zero and without momentum.
    """

    dense: float = 0.1  # share of all steps before the first sparse phase
    final: float = 0.25  # share of all steps in the last one
    phases: int = 6  # in between, sparse and dense ones in turn

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phases % 2:
            raise RecipeError(f"sparsity.phases is {self.phases}; give an even number, so that the last is dense")
        if self.dense + self.final > 1:
            raise RecipeError(f"sparsity.dense + final is {self.dense + self.final}; give at most 1, all steps")

    def reached(self, step: int, total: int) -> bool:
        return self._phase(step, total) == self.phases

    def revise(self, run: "SparseRun", step: int, total: int) -> None:
        phase = self._phase(step, total)
        if step and phase == self._phase(step - 1, total):
            return
        if phase % 2 == 0:
            run.cut(self.target, {name: p.detach().abs() for name, p in run.weights.items()})
        elif phase > 0:
            run.open()

    def _phase(self, step: int, total: int) -> int:
        """-1 at first, then 0 (sparse), 1 (dense), ... up to ``phases``, the last sparse one."""
        last = min(total - 1, round((1 - self.final) * total))
        first = min(last, round(self.dense * total))
        if step >= last:
            return self.phases
        return -1 if step < first else (step - first) * self.phases // (last - first)


class SparseRun:
    """The masks of one training run: applied around every step, kept in its checkpoint.

    Attributes:
        masks: By parameter name; False must be zero. Weights without a mask are free.
        weights: Those that the way cuts.
        scores: What the way has summed up about them.
        initial: The share of them that was not zero when the run began.
    """

    def __init__(self, model: nn.Module, optimizer: Any, way: Sparsity | None, *, hold: bool) -> None:
        self.optimizer, self.way = optimizer, way
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.masks: Masks = _zeros(self.parameters) if hold else {}
        self.scores: dict[str, Tensor] = {}
        self.weights: dict[str, nn.Parameter] = {}
        self.initial, self.step, self.total = 1.0, 0, 1
        if way is not None:
            self._prepare(model, way)

    def _prepare(self, model: nn.Module, way: Sparsity) -> None:
        self.layers: tuple[LayerWeight, ...] = tuple(
            layer for layer in layer_weights(model, way.exclude) if layer.name in self.parameters
        )
        if not self.layers:
            raise ModelError("none of the weights to cut is trained; set requires_grad, or cut them with sparsify")
        _, self.pattern = settled(way.density, way.pattern, way.scope)
        check_pattern(self.layers, self.pattern)
        self.weights = {layer.name: self.parameters[layer.name] for layer in self.layers}
        self.initial = alive_share(self.layers, self.weights, self.pattern)
        count = sum(p.numel() for p in self.weights.values())
        if round(self.initial * count) < round(way.target * count) and not self.pattern.of:
            raise ModelError(f"only {self.initial:.4g} of the weights are not zero, and density is {way.target}; ask for less")

    def at(self, step: int, total: int) -> None:
        """Say which step of how many comes next, from 0."""
        self.step, self.total = step, total

    def before_step(self) -> None:
        """Revise the masks, and take what they forbid out of the gradients, so that it does not count when they are clipped."""
        if self.way is not None:
            self.way.revise(self, self.step, self.total)
        for name, mask in self.masks.items():
            gradient = self.parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(~mask, 0)

    def after_step(self) -> None:
        """Zero what must be zero, and its momentum, whatever the optimizer did."""
        with torch.no_grad():
            for name, mask in self.masks.items():
                p = self.parameters[name]
                p.masked_fill_(~mask, 0)
                for momentum in momenta(self.optimizer, p):
                    momentum.masked_fill_(~mask, 0)

    def cut(self, density: float, scores: Mapping[str, Tensor]) -> None:
        """Keep the share ``density`` of the weights that are not zero, by their scores."""
        assert self.way is not None
        weights = {name: p.detach() for name, p in self.weights.items()}
        new = choose_masks(self.layers, weights, scores, density, pattern=self.pattern, scope=self.way.scope)
        self.masks |= new

    def open(self) -> None:
        """Free all the weights that the way cuts."""
        self.masks |= {name: torch.ones_like(p, dtype=torch.bool) for name, p in self.weights.items()}

    def swap(self, share: float) -> None:
        """In every layer, drop that share of what stays, the smallest, for as much that was zero, of the largest gradients."""
        for layer in self.layers:
            p = self.weights[layer.name]
            if p.grad is None:
                continue
            mask, size, pull = (
                self.pattern.units(layer.by_output(t)).float().mean(1)
                for t in (self.masks[layer.name], p.detach().abs(), p.grad.abs())
            )
            inside, candidate = mask > 0, (mask == 0) & (pull > 0)
            count = min(int(share * int(inside.sum())), int(candidate.sum()))
            dropped = highest(torch.where(inside, -size, -torch.inf), count)
            grown = highest(torch.where(candidate, pull, -torch.inf), count)
            shape = tuple(layer.by_output(p).shape)
            self.masks[layer.name] = layer.as_stored(self.pattern.spread(inside & ~dropped | grown, shape))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        masks = {f"mask.{name}": mask for name, mask in self.masks.items()}
        scores = {f"score.{name}": score for name, score in self.scores.items()}
        return masks | scores | {"initial": torch.tensor(self.initial, dtype=torch.float64)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` gave."""

        def held(kind: str) -> dict[str, Tensor]:
            names = [n.removeprefix(kind) for n in tensors if n.startswith(kind)]
            return {n: tensors[kind + n].to(self.parameters[n].device) for n in names}

        self.masks, self.scores, self.initial = held("mask."), held("score."), float(tensors["initial"])


def describe(way: Sparsity | None) -> dict[str, Any] | None:
    """The way as JSON values."""
    return None if way is None else {"way": type(way).__name__, **asdict(way), "exclude": list(way.exclude)}


def _zeros(parameters: Mapping[str, nn.Parameter]) -> Masks:
    """Masks of the weights of which some, but not all, are zero: one that is all zero has yet to be learned."""
    found = {name: p.detach() != 0 for name, p in parameters.items() if p.ndim > 1}
    return {name: mask for name, mask in found.items() if mask.any() and not mask.all()}
