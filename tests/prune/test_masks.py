import math

import pytest
import torch
from torch import Tensor

from penjing.errors import RecipeError
from penjing.prune.masks import SCOPES, choose_masks
from penjing.prune.patterns import pattern_named
from penjing.score.layer_weights import LayerWeight

LAYERS = (LayerWeight("stem", (8, 4, 3, 3)), LayerWeight("wide", (32, 32, 3, 3)), LayerWeight("head", (8, 32)))
UNSTRUCTURED = pattern_named("unstructured")


def weights(*, equal: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {w.name: torch.ones(w.shape) if equal else torch.randn(w.shape) * (i + 1) for i, w in enumerate(LAYERS)}


def masks(
    density: float, scope: str, pattern: str = "unstructured", held: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    held = weights() if held is None else held
    scores = {name: w.abs() for name, w in held.items()}
    return choose_masks(LAYERS, held, scores, density, pattern=pattern_named(pattern), scope=scope)


def kept(chosen: dict[str, Tensor]) -> int:
    return sum(int(m.sum()) for m in chosen.values())


TOTAL = sum(math.prod(w.shape) for w in LAYERS)


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("density", [0.001, 0.01, 1 / 3, 0.1, 0.5, 0.77, 0.9999, 1.0])
def test_the_share_is_exact(density: float, scope: str, equal: bool) -> None:
    chosen = masks(density, scope, held=weights(equal=equal))
    assert kept(chosen) == round(density * TOTAL)
    assert all(m.any() for m in chosen.values())


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("pattern", "unit"), [("kernel", 9), ("block:4x1", 4), ("block:1x4", 4), ("block:8x4", 32)])
def test_blocks_are_exact_up_to_one(scope: str, pattern: str, unit: int) -> None:
    for density in (0.1, 0.3, 0.5):
        chosen = masks(density, scope, pattern)
        assert abs(kept(chosen) - density * TOTAL) <= unit
        shaped = pattern_named(pattern)
        for layer in LAYERS:
            units = shaped.units(layer.by_output(chosen[layer.name]))
            assert (units.all(1) | ~units.any(1)).all()


def test_every_layer_has_its_share() -> None:
    chosen = masks(0.2, "layer")
    assert all(abs(int(m.sum()) - 0.2 * m.numel()) <= 1 for m in chosen.values())


def test_the_whole_network_is_ranked_at_once() -> None:
    held = weights()
    chosen = masks(0.2, "global")
    edge = torch.cat([w.abs().flatten() for w in held.values()]).topk(round(0.2 * TOTAL)).values[-1]
    assert all(torch.equal(chosen[name], w.abs() >= edge) for name, w in held.items())


def test_erk_keeps_small_layers_whole() -> None:
    chosen = masks(0.1, "erk")
    ratio = {w.name: sum(w.shape) / math.prod(w.shape) for w in LAYERS}
    density = {name: float(m.float().mean()) for name, m in chosen.items()}
    assert density["stem"] / density["wide"] == pytest.approx(ratio["stem"] / ratio["wide"], rel=0.03)
    assert masks(0.4, "erk")["head"].all()  # its share would be over 1


def test_lamp_by_hand() -> None:
    """Squares 1, 4, 9 and 1, 1: scores 1/14, 4/13, 1 and, of equals the first is the smaller, 1/2, 1."""
    layers = (LayerWeight("a", (1, 3)), LayerWeight("b", (2, 1)))
    held = {"a": torch.tensor([[1.0, 2, 3]]), "b": torch.tensor([[1.0], [1]])}
    chosen = choose_masks(layers, held, held, 0.6, pattern=UNSTRUCTURED, scope="lamp")
    assert [m.flatten().tolist() for m in chosen.values()] == [[False, False, True], [True, True]]


def test_zeros_are_never_kept() -> None:
    held = weights()
    for w in held.values():
        w[:, 1] = 0
    there = sum(int(w.count_nonzero()) for w in held.values())
    for scope in SCOPES:
        scores = {name: torch.where(w == 0, torch.full_like(w, 9.0), w.abs()) for name, w in held.items()}
        chosen = choose_masks(LAYERS, held, scores, 0.5, pattern=UNSTRUCTURED, scope=scope)
        assert kept(chosen) == round(0.5 * TOTAL)
        assert not any((m & (held[name] == 0)).any() for name, m in chosen.items())
        assert kept(choose_masks(LAYERS, held, scores, 1.0, pattern=UNSTRUCTURED, scope=scope)) == there


def test_what_would_empty_a_layer_is_refused() -> None:
    with pytest.raises(RecipeError, match="give at least"):
        masks(1e-4, "layer")


def test_grouped_and_transposed_weights_are_seen_by_output() -> None:
    grouped = LayerWeight("g", (4, 3, 2), transposed=True, groups=2)  # I = 4, O / groups = 3, K = 2
    weight = torch.arange(24.0).view(grouped.shape)
    rows = grouped.by_output(weight)
    assert rows.shape == (6, 2, 2)
    assert rows[0].tolist() == weight[:2, 0].tolist()
    assert rows[3].tolist() == weight[2:, 0].tolist()
    assert torch.equal(grouped.as_stored(rows), weight)
