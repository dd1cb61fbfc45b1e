"""Optimal brain surgeon for single weights, layer by layer: what a weight costs, and how the others make up for it.

The layer's error on its own inputs is ``tr(dW H dW')`` with ``H`` the second moments of what it reads (Hassibi & Stork 1993;
Frantar & Alistarh 2022, arXiv:2208.11580; 2023, arXiv:2301.00774). No labels are needed.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from penjing.score.layer_weights import LayerWeight
from penjing.score.weight_evidence import WeightEvidence, WeightScores, precise

DAMPING = 0.01  # added to the diagonal of H, as a share of its mean


def obs(evidence: WeightEvidence) -> WeightScores:
    """``w ** 2 / [H^-1]_pp``: how much the layer's squared error grows when the weight goes and the others are refitted.

    Of a weight that has zeros already, only the others count as there is. Inputs without labels will do.

    Raises:
        DataError: There is no data, it is empty, or a layer reads what is not finite.
        ModelError: A layer is not a module, or is never called.
    """
    return {layer.name: _scores(layer, evidence.weights[layer.name], evidence.moments[layer.name]) for layer in evidence.layers}


def refitted(evidence: WeightEvidence, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that, zero where ``masks`` are False, give each layer's outputs with the least squared error.

    Exact for the mask, row by row: ``min |W X - V X|^2`` over the ``V`` that the mask allows, with ``H`` damped.
    """
    moments = evidence.moments
    return {
        layer.name: _refitted(layer, evidence.weights[layer.name], masks[layer.name], moments[layer.name])
        for layer in evidence.layers
    }


def _scores(layer: LayerWeight, weight: Tensor, moments: Tensor) -> Tensor:
    rows = layer.by_output(weight).double()  # (O, I, K)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(moments)))
    diagonal = inverse.diagonal(dim1=1, dim2=2).repeat_interleave(len(rows) // len(inverse), 0)
    return layer.as_stored(rows.square() / diagonal.view(rows.shape)).to(precise(weight).dtype)


def _refitted(layer: LayerWeight, weight: Tensor, mask: Tensor, moments: Tensor) -> Tensor:
    rows, kept = layer.by_output(weight), layer.by_output(mask)
    shape, h = rows.shape, _damped(moments)
    old, stays = rows.double().flatten(1), kept.flatten(1)
    each = len(old) // len(h)
    inverses = torch.cholesky_inverse(torch.linalg.cholesky(h))
    new = torch.zeros_like(old)
    for o in range(len(old)):
        group = o // each
        few = 2 * int(stays[o].sum()) <= stays.shape[1]
        new[o] = _from_kept(old[o], stays[o], h[group]) if few else _from_dropped(old[o], stays[o], inverses[group])
    # In the weight's own precision, and with zeros that are exact, since they are the mask.
    return torch.where(mask, layer.as_stored(new.view(shape)).to(weight.dtype), torch.zeros_like(weight))


def _from_kept(old: Tensor, stays: Tensor, h: Tensor) -> Tensor:
    """Solve for the kept weights: ``H_SS v_S = (H w)_S``."""
    at = stays.nonzero()[:, 0]
    new = torch.zeros_like(old)
    if len(at):
        factor = torch.linalg.cholesky(h[at[:, None], at])
        new[at] = torch.cholesky_solve((h[at] @ old)[:, None], factor)[:, 0]
    return new


def _from_dropped(old: Tensor, stays: Tensor, inverse: Tensor) -> Tensor:
    """Solve for the multipliers of the dropped weights: ``v = w - G_:D (G_DD)^-1 w_D`` with ``G = H^-1``."""
    at = (~stays).nonzero()[:, 0]
    if not len(at):
        return old
    factor = torch.linalg.cholesky(inverse[at[:, None], at])
    return old - inverse[:, at] @ torch.cholesky_solve(old[at][:, None], factor)[:, 0]


def _damped(moments: Tensor) -> Tensor:
    """``H``: positive definite, also where inputs are always zero."""
    mean = moments.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    return moments + DAMPING * torch.diag_embed(mean[:, None].expand(moments.shape[:2]))
