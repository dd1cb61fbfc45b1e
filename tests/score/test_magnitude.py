import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from penjing.graph import capture
from penjing.score import Criterion, Evidence, bn_scale, l1_norm, l2_norm

Weights = dict[str, torch.Tensor]
SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "bn.weight": (4,), "head.weight": (5, 8)}


class Net(nn.Module):
    """Four channels; each takes two columns of the head's weight with it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.relu(self.bn(self.conv(x))).flatten(1))
        return out


@functools.cache
def read() -> Evidence:
    return Evidence.of(capture(Net(), torch.zeros(2, 3, 3, 4)))


def weights(seed: int = 0, dtype: torch.dtype = torch.float64) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in SHAPES.items()}


def scored(criterion: Criterion, given: Weights) -> torch.Tensor:
    """What the only group of the network scores with these weights."""
    held = dict(read().graph.module.named_parameters())
    for name, value in given.items():
        held[name].data = value.clone()
    (score,) = criterion(read()).values()
    return score


def by_hand(given: Weights, power: int) -> np.ndarray:
    conv = (given["conv.weight"].abs().double().numpy() ** power).sum((1, 2, 3))
    head = (given["head.weight"].abs().double().numpy() ** power).sum(0).reshape(4, 2).sum(1)
    return (conv / conv.mean() + head / head.mean()) ** (1 / power)


@given(st.integers(0, 1000))
def test_the_norms_by_hand(seed: int) -> None:
    np.testing.assert_allclose(scored(l2_norm, weights(seed)).numpy(), by_hand(weights(seed), 2), rtol=1e-12)
    np.testing.assert_allclose(scored(l1_norm, weights(seed)).numpy(), by_hand(weights(seed), 1), rtol=1e-12)


def test_half_precision_is_summed_in_double() -> None:
    given = weights(dtype=torch.bfloat16)
    score = scored(l2_norm, given)
    assert not score.requires_grad
    np.testing.assert_allclose(score.numpy(), by_hand(given, 2), rtol=1e-12)


@pytest.mark.parametrize("criterion", [l1_norm, l2_norm])
@given(name=st.sampled_from(["conv.weight", "head.weight"]), factor=st.floats(1e-6, 1e6))
def test_the_scale_of_a_layer_says_nothing(criterion: Criterion, name: str, factor: float) -> None:
    given = weights()
    expected = scored(criterion, given)
    torch.testing.assert_close(scored(criterion, {**given, name: given[name] * factor}), expected)


@pytest.mark.parametrize("criterion", [l1_norm, l2_norm])
def test_what_has_one_dimension_says_nothing_to_norms(criterion: Criterion) -> None:
    given = weights()
    assert torch.equal(scored(criterion, {**given, "conv.bias": torch.full((4,), 1e9).double()}), scored(criterion, given))


@pytest.mark.parametrize("criterion", [l1_norm, l2_norm])
def test_a_layer_of_zeros_has_finite_scores(criterion: Criterion) -> None:
    score = scored(criterion, {name: torch.zeros_like(w) for name, w in weights().items()})
    assert torch.equal(score, torch.zeros(4, dtype=torch.float64))


def test_the_scale_of_the_norm_by_hand() -> None:
    given = weights()
    np.testing.assert_array_equal(scored(bn_scale, given).numpy(), given["bn.weight"].abs().numpy())


class Stream(nn.Module):
    """Channels that pass two norms, and others that pass none."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, affine=affine)
        self.b, self.m = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, affine=affine)
        self.c, self.head = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.n(self.a(x))
        out: torch.Tensor = self.head(torch.relu(self.c(torch.relu(y + self.m(self.b(y))))))
        return out


def test_scales_of_several_norms_are_averaged_and_channels_without_one_fall_back_to_norms() -> None:
    net = Stream()
    nn.init.normal_(net.n.weight)
    nn.init.normal_(net.m.weight)
    evidence = Evidence.of(capture(net, torch.zeros(2, 3, 4, 4)))
    stream, inner = evidence.channels.groups
    scores = bn_scale(evidence)
    torch.testing.assert_close(scores[stream.name], (net.n.weight.abs() + net.m.weight.abs()).detach().double() / 2)
    norm = l2_norm(evidence)[inner.name]
    torch.testing.assert_close(scores[inner.name], norm / norm.mean())


def test_norms_without_a_scale_fall_back_to_norms() -> None:
    evidence = Evidence.of(capture(Stream(affine=False), torch.zeros(2, 3, 4, 4)))
    for name, score in bn_scale(evidence).items():
        norm = l2_norm(evidence)[name]
        torch.testing.assert_close(score, norm / norm.mean())
