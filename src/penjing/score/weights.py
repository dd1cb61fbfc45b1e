"""How much a single weight matters: functions ``WeightEvidence -> {name: the weight's shape}``, higher = keep."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from penjing.errors import DataError, entry
from penjing.score.weight_evidence import WeightCriterion, WeightEvidence, WeightScores, precise
from penjing.score.weight_obs import obs


def magnitude(evidence: WeightEvidence) -> WeightScores:
    """``|w|`` (Han et al. 2015, arXiv:1506.02626). Needs no data."""
    return {name: w.abs() for name, w in evidence.weights.items()}


def snip(evidence: WeightEvidence) -> WeightScores:
    """``|w * dL/dw|``, the gradient being that of the mean loss (Lee et al. 2019, arXiv:1810.02340). Needs labels."""
    gradients = _mean(evidence, lambda _w, g: g)
    return {name: (precise(w) * gradients[name]).abs() for name, w in evidence.weights.items()}


def taylor(evidence: WeightEvidence) -> WeightScores:
    """``(w * dL/dw) ** 2``, averaged over batches (Molchanov et al. 2019, arXiv:1906.10771, eq. 8). Needs labels."""
    return _mean(evidence, lambda w, g: (w * g).square())


def movement(evidence: WeightEvidence) -> WeightScores:
    """``-w * dL/dw``: whether a step of gradient descent takes the weight away from zero (Sanh et al. 2020, arXiv:2005.07683).

    The paper sums this over a training run; ``GradualMovement`` does so. Here the weights stand still. Needs labels.
    """
    return _mean(evidence, lambda w, g: -w * g)


def random(evidence: WeightEvidence) -> WeightScores:
    """Drawn from ``evidence.seed``: what every other criterion must beat."""
    generator = torch.Generator().manual_seed(evidence.seed)
    return {name: torch.rand(w.shape, generator=generator).to(w.device) for name, w in evidence.weights.items()}


# Every criterion for single weights, by the name that recipes and the command line use.
WEIGHT_CRITERIA: dict[str, WeightCriterion] = {
    "magnitude": magnitude,
    "snip": snip,
    "taylor": taylor,
    "movement": movement,
    "random": random,
    "obs": obs,
}


def weight_criterion_named(name: str) -> WeightCriterion:
    """The criterion of that name.

    Raises:
        RecipeError: There is none.
    """
    return entry(WEIGHT_CRITERIA, name, "criterion")


def _mean(evidence: WeightEvidence, of: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """The mean of a function of a weight and its gradient over the batches, each counted as often as it has samples."""
    weights, samples = {name: precise(w) for name, w in evidence.weights.items()}, 0
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for count, gradients in _gradients(evidence):
        samples += count
        for name, g in gradients.items():
            total[name] += count * of(weights[name], precise(g))
    return {name: t / max(1, samples) for name, t in total.items()}


def _gradients(evidence: WeightEvidence) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """For every batch its samples and the gradient of its loss with respect to every weight; zero where there is none.

    Raises:
        DataError: The loss or a gradient is not finite.
    """
    # Without ``backward``, so that the gradients that the model's owner may hold stay; names, since weights may be frozen.
    held = {name: p.detach() for name, p in evidence.model.named_parameters()}
    asked = {name: held[name].clone().requires_grad_() for name in evidence.weights}
    for inputs, target in evidence.walk(labels=True):
        with torch.enable_grad():
            value = evidence.loss(_called(evidence.model, held | asked, inputs), target)
            found = torch.autograd.grad(value, list(asked.values()), allow_unused=True, materialize_grads=True)
        if not all(g.isfinite().all() for g in found):
            raise DataError("a gradient is NaN or infinite; look for NaN in the data, and for a loss that overflows")
        yield len(inputs[0]), dict(zip(asked, found, strict=True))


def _called(model: nn.Module, weights: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> object:
    return torch.func.functional_call(model, weights, inputs)
