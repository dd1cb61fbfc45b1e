"""Zero the weights that matter least, in a copy of the model: exact zeros are the mask, and nothing else remembers it."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from penjing.errors import ModelError, RecipeError
from penjing.graph import check_weights
from penjing.prune.masks import alive_share, check_pattern, choose_masks, settled
from penjing.prune.patterns import Pattern
from penjing.score.layer_weights import layer_weights
from penjing.score.weight_evidence import WeightCriterion, WeightEvidence, WeightScores
from penjing.score.weight_obs import obs, refitted
from penjing.score.weights import magnitude, weight_criterion_named
from penjing.task import Task


def sparsify(
    model: nn.Module,
    density: float | None = None,
    *,
    pattern: str = "unstructured",
    scope: str = "layer",
    criterion: str | WeightCriterion = magnitude,
    task: Task | None = None,
    data: Iterable[Any] | None = None,
    batches: int = 8,
    refit: bool | None = None,
    exclude: Sequence[str] = (),
) -> nn.Module:
    """A copy of ``model``, in eval mode, in whose convolutions and linear layers only some weights are not zero.

    Class, parameter names, biases and norms are the model's own. The zeros are exact, and ``fit`` keeps them by default.
    They make a compressed file smaller, and no network faster in ONNX Runtime or OpenVINO: see ``measure.sparsity``.

    Args:
        density: The share of weights that stay, above 0 and at most 1, reached exactly up to the rounding of the pattern;
            0.1, or N / M for an N:M pattern, where None. Zeros that are there already stay.
        pattern: ``"unstructured"``, N:M such as ``"2:4"`` (of every 4 neighbouring inputs, at each output and place in the
            kernel, 2 stay), ``"block:AxB"`` (A outputs by B inputs) or ``"kernel"``; see ``pattern_named``.
        scope: How the density is divided: ``"layer"`` (the same everywhere), ``"global"``, ``"erk"`` or ``"lamp"``.
        criterion: A function ``WeightEvidence -> {name: scores}``, or the name of one in ``WEIGHT_CRITERIA``.
        task: Where ``data`` and the loss come from: its ``train`` batches. Without it, the loss is cross-entropy.
        data: Batches ``(inputs, target)``; for ``obs``, tensors of inputs will do.
        batches: How many of them are looked at.
        refit: Whether the weights that stay make up for those that go, by least squares on what each layer reads; needs
            data. None: with ``obs``, whose scores reckon with it.
        exclude: Patterns (``"head.*"``) of parameter names to leave dense.

    Raises:
        RecipeError: A setting is unknown or out of range; the pattern does not divide a layer.
        ModelError: The model has no weights to cut, fewer that are not zero than are to stay, or some that are not finite.
        DataError: There is no data where it is needed, or it is empty, has no labels where they are needed, or makes a value
            that is not finite.
    """
    share, chosen = settled(density, pattern, scope)
    judge = weight_criterion_named(criterion) if isinstance(criterion, str) else criterion
    if batches < 1:
        raise RecipeError(f"batches is {batches}; give at least 1")
    check_weights(model)
    sparse = copy.deepcopy(model).eval()
    given = data if data is not None else task.train if task else None
    loss = task.loss if task else F.cross_entropy
    evidence = WeightEvidence(sparse, layer_weights(sparse, exclude), given, loss, batches)
    check_pattern(evidence.layers, chosen)
    _check_alive(evidence, share, chosen)
    scores = _checked(evidence, judge(evidence))
    masks = choose_masks(evidence.layers, evidence.weights, scores, share, pattern=chosen, scope=scope)
    weights = refitted(evidence, masks) if (judge is obs if refit is None else refit) else evidence.weights
    with torch.no_grad():
        for name, weight in weights.items():
            sparse.get_parameter(name).copy_(torch.where(masks[name], weight, torch.zeros_like(weight)))
    return sparse


def _check_alive(evidence: WeightEvidence, density: float, pattern: Pattern) -> None:
    """Refuse a density that the model is below already."""
    count = sum(w.numel() for w in evidence.weights.values())
    there = alive_share(evidence.layers, evidence.weights, pattern)
    if round(there * count) < round(density * count) and not pattern.of:
        raise ModelError(f"only {there:.4g} of the weights are not zero, and density is {density}; ask for less")


def _checked(evidence: WeightEvidence, scores: WeightScores) -> WeightScores:
    """Refuse scores of a criterion that are not what they should be: it may be the user's own."""
    for name, weight in evidence.weights.items():
        found = scores.get(name)
        if found is None or found.shape != weight.shape or not found.isfinite().all():
            got = "none" if found is None else f"of shape {tuple(found.shape)}"
            raise RecipeError(
                f"the criterion gives scores {got} for {name}, whose shape is {tuple(weight.shape)}; "
                "give a finite one for each weight"
            )
    return scores
