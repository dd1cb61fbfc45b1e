"""Against numpy and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax

from penjing.quant.apart import decibels, divergence, noise_share


def outputs(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 2)])
def test_divergence(shape: tuple[int, ...]) -> None:
    a, b = outputs(0, *shape), outputs(1, *shape)
    expected = rel_entr(softmax(a.numpy(), 1), np.exp(log_softmax(b.numpy(), 1))).sum(1).mean()
    assert divergence([[a[:4]], [a[4:]]], [[b[:4]], [b[4:]]]) == pytest.approx(expected)
    assert divergence([[a]], [[a + 7.0]]) == pytest.approx(0, abs=1e-12)  # the same probabilities
    assert divergence([[a]], [[a]]) == 0


def test_noise_share() -> None:
    a, b = outputs(0, 4, 3), outputs(1, 4, 3)
    expected = ((a - b).numpy() ** 2).sum() / (a.numpy() ** 2).sum()
    assert noise_share([[a[:1], a[1:]]], [[b[:1], b[1:]]]) == pytest.approx(expected)


@pytest.mark.parametrize("apart", [divergence, noise_share])
def test_nan_is_as_far_as_can_be(apart: object) -> None:
    a = outputs(0, 4, 3)
    found = apart([[a]], [[a * math.nan]])  # type: ignore[operator]
    assert found == math.inf
    assert decibels(found) == -math.inf


def test_decibels() -> None:
    assert decibels(0.01) == pytest.approx(20)
    assert decibels(0.0) == math.inf
