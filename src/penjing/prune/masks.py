"""Masks: how many weights of each layer stay, and which. What is decided is plain booleans; nothing is changed here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from penjing.errors import RecipeError, entry
from penjing.prune.patterns import Pattern, highest, pattern_named
from penjing.score.layer_weights import LayerWeight

Masks = dict[str, Tensor]  # name of a weight -> boolean of its shape: True stays


@dataclass(frozen=True)
class Units:
    """The units of one layer.

    Attributes:
        scores: One for each, per weight; -inf where all its weights are zero already.
        squares: The mean square of the weights of each.
        size: Weights in each.
        alive: How many are not all zero.
        shape: ``(O, I, K)`` of the weight.
        sides: Sum of the dimensions of the weight as it is stored.
    """

    scores: Tensor
    squares: Tensor
    size: int
    alive: int
    shape: tuple[int, ...]
    sides: int

    @property
    def weights(self) -> int:
        """Weights in the layer."""
        return len(self.scores) * self.size


Scope = Callable[[Sequence[Units], int], list[int]]  # (layers, weights that stay in all) -> units that stay in each


def choose_masks(
    layers: Sequence[LayerWeight],
    weights: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    density: float,
    *,
    pattern: Pattern,
    scope: str,
) -> Masks:
    """Decide which weights stay: the share ``density`` of all, none of them zero already, in no layer none.

    Args:
        scores: One for each weight, higher = keep; a unit's is the sum over its weights.
        scope: How the share is divided among the layers; see ``SCOPES``.

    Returns:
        Masks that keep ``density`` exactly, up to the rounding of a unit; fewer where fewer are not zero.

    Raises:
        RecipeError: The pattern does not divide a layer, or so low a density would empty one.
    """
    check_pattern(layers, pattern)
    units = [_units(layer, weights[layer.name], scores[layer.name], pattern) for layer in layers]
    total = round(density * sum(u.weights for u in units))
    least = sum(u.size for u in units)
    if total < least:
        raise RecipeError(
            f"density is {density}, which leaves {total} weights for {len(units)} layers; give at least "
            f"{least / sum(u.weights for u in units):.2g}, or exclude small layers"
        )
    counts = entry(SCOPES, scope, "scope")(units, min(total, sum(u.alive * u.size for u in units)))
    masks: Masks = {}
    for layer, u, count in zip(layers, units, counts, strict=True):
        chosen = pattern.best_of_each(u.scores, density, u.shape) if pattern.of else highest(u.scores, count)
        masks[layer.name] = layer.as_stored(pattern.spread(chosen & (u.scores > -torch.inf), u.shape))
    return masks


def settled(density: float | None, pattern: str, scope: str) -> tuple[float, Pattern]:
    """The density to reach, and the pattern; N:M brings a density of its own, else 0.1 is the default.

    Raises:
        RecipeError: The density is out of range or contradicts the pattern; the pattern or the scope is not known.
    """
    chosen = pattern_named(pattern)
    entry(SCOPES, scope, "scope")
    fixed = chosen.density
    if density is not None and not 0 < density <= 1:
        raise RecipeError(f"density is {density}; give the share of weights that stay, above 0 and at most 1, e.g. 0.1")
    if fixed is not None and density not in (None, fixed):
        raise RecipeError(f"density is {density}, but pattern {pattern} keeps {fixed:g}; leave density out")
    if fixed is not None and scope != "layer":
        raise RecipeError(f"scope is {scope!r}, but pattern {pattern} keeps as many everywhere; leave scope at 'layer'")
    return fixed or density or 0.1, chosen


def check_pattern(layers: Sequence[LayerWeight], pattern: Pattern) -> None:
    """Refuse a pattern that does not divide every layer.

    Raises:
        RecipeError: It does not; names those layers.
    """
    unfit = [w.name for w in layers if not pattern.fits(tuple(w.by_output(torch.empty(w.shape, device="meta")).shape))]
    if unfit:
        raise RecipeError(
            f"pattern {pattern.name!r} does not divide the outputs or inputs of {', '.join(unfit)}; leave them dense with "
            f"exclude={tuple(unfit)!r}, or choose another pattern"
        )


def alive_share(layers: Sequence[LayerWeight], weights: Mapping[str, Tensor], pattern: Pattern) -> float:
    """The share of weights whose unit is not all zero."""
    units = [_units(layer, weights[layer.name], weights[layer.name], pattern) for layer in layers]
    return sum(u.alive * u.size for u in units) / sum(u.weights for u in units)


def _units(layer: LayerWeight, weight: Tensor, scores: Tensor, pattern: Pattern) -> Units:
    rows = layer.by_output(weight)
    held = pattern.units(rows)
    alive = (held != 0).any(1)
    summed = pattern.units(layer.by_output(scores)).double().mean(1)
    squares = held.double().square().mean(1)
    ranked = torch.where(alive, summed, torch.full_like(summed, -torch.inf))
    return Units(ranked, squares, held.shape[1], int(alive.sum()), tuple(rows.shape), sum(layer.shape))


# Scopes.


def per_layer(layers: Sequence[Units], total: int) -> list[int]:
    """The same share of every layer."""
    return _divided([float(u.weights) for u in layers], layers, total)


def erdos_renyi_kernel(layers: Sequence[Units], total: int) -> list[int]:
    """Shares in proportion to the sum over the product of a weight's dimensions (ERK; Evci et al. 2020, arXiv:1911.11134).

    Small layers keep more, down to the smallest, which may stay whole.
    """
    return _divided([float(u.sides) for u in layers], layers, total)


def over_all(layers: Sequence[Units], total: int) -> list[int]:
    """The highest scores of the whole network, wherever they are."""
    return _ranked([u.scores for u in layers], layers, total)


def lamp(layers: Sequence[Units], total: int) -> list[int]:
    """The highest LAMP scores of the whole network: ``w ** 2`` over the sum of the squares that are no smaller in its layer.

    It decides how many (Lee et al. 2021, arXiv:2010.07611); the criterion decides which.
    """
    ranks = []
    for u in layers:
        ordered, order = u.squares.sort(stable=True)
        above = ordered.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(torch.float64).tiny)
        ranks.append(torch.empty_like(ordered).scatter(0, order, ordered / above))
    return _ranked(ranks, layers, total)


SCOPES: dict[str, Scope] = {"layer": per_layer, "global": over_all, "erk": erdos_renyi_kernel, "lamp": lamp}


def _ranked(ranks: Sequence[Tensor], layers: Sequence[Units], total: int) -> list[int]:
    """Units of each layer among the highest of all that hold ``total`` weights; the best of each layer always is."""
    held = []
    for rank, u in zip(ranks, layers, strict=True):
        rank = torch.where(u.scores > -torch.inf, rank, torch.full_like(rank, -torch.inf))
        held.append(rank.masked_fill(highest(rank, 1), torch.inf) if u.alive else rank)
    sizes = torch.cat([torch.full((len(r),), u.size, device=r.device) for r, u in zip(held, layers, strict=True)])
    order = torch.cat(held).sort(descending=True, stable=True).indices
    ends = sizes[order].cumsum(0)
    chosen = torch.zeros_like(sizes, dtype=torch.bool)
    chosen[order[2 * ends - sizes[order] <= 2 * total]] = True  # up to half a unit more or less
    return [int(c.sum()) for c in chosen.split([len(r) for r in held])]


def _divided(shares: Sequence[float], layers: Sequence[Units], total: int) -> list[int]:
    """Units of each layer, in proportion to ``shares``, at least one and at most those alive, holding ``total`` weights."""

    def wanted(scale: float) -> list[float]:
        pairs = zip(shares, layers, strict=True)
        return [min(u.alive, max(min(u.alive, 1), scale * share / u.size)) for share, u in pairs]

    low, high = 0.0, max(u.weights / share for share, u in zip(shares, layers, strict=True))
    for _ in range(100):
        middle = (low + high) / 2
        held = sum(w * u.size for w, u in zip(wanted(middle), layers, strict=True))
        low, high = (middle, high) if held < total else (low, middle)
    exact = wanted(high)
    counts = [int(w) for w in exact]
    left = total - sum(c * u.size for c, u in zip(counts, layers, strict=True))
    for i in sorted(range(len(layers)), key=lambda i: counts[i] - exact[i]):  # largest remainder first
        if counts[i] < layers[i].alive and 2 * left >= layers[i].size:
            counts[i] += 1
            left -= layers[i].size
    return counts
