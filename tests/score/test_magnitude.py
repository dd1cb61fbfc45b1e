import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from penjing.graph import Axis, Group
from penjing.score import l2_norm

GROUP = Group(
    (
        Axis("conv.weight", 0, torch.tensor([[0], [1], [2], [3]])),
        Axis("conv.bias", 0, torch.tensor([[0], [1], [2], [3]])),
        Axis("bn.running_var", 0, torch.tensor([[0], [1], [2], [3]])),
        Axis("head.weight", 1, torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])),
    )
)


def weights(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "head.weight": (5, 8)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def by_hand(given: dict[str, torch.Tensor]) -> np.ndarray:
    conv = (given["conv.weight"].double().numpy() ** 2).sum((1, 2, 3))
    head = (given["head.weight"].double().numpy() ** 2).sum(0).reshape(4, 2).sum(1)
    return np.sqrt(conv / conv.mean() + head / head.mean())


@given(st.integers(0, 1000))
def test_the_norm_by_hand(seed: int) -> None:
    np.testing.assert_allclose(l2_norm(GROUP, weights(seed)).numpy(), by_hand(weights(seed)), rtol=1e-12)


def test_parameters_with_gradients_in_half_precision() -> None:
    given = {name: torch.nn.Parameter(w) for name, w in weights(dtype=torch.bfloat16).items()}
    score = l2_norm(GROUP, given)
    assert not score.requires_grad
    np.testing.assert_allclose(score.numpy(), by_hand({n: w.detach() for n, w in given.items()}), rtol=1e-12)


@given(st.sampled_from(["conv.weight", "head.weight"]), st.floats(1e-6, 1e6))
def test_the_scale_of_a_layer_says_nothing(name: str, factor: float) -> None:
    given = weights()
    expected = l2_norm(GROUP, given)
    torch.testing.assert_close(l2_norm(GROUP, {**given, name: given[name] * factor}), expected)


def test_what_has_one_dimension_says_nothing() -> None:
    given = weights()
    assert torch.equal(l2_norm(GROUP, {**given, "conv.bias": torch.full((4,), 1e9)}), l2_norm(GROUP, given))


def test_a_channel_that_does_nothing_is_the_first_to_go() -> None:
    given = weights()
    given["conv.weight"][2] = 0
    given["head.weight"][:, 4:6] = 0
    score = l2_norm(GROUP, given)
    assert score.argmin() == 2
    assert score[2] == 0


def test_a_layer_of_zeros_has_finite_scores() -> None:
    score = l2_norm(GROUP, {name: torch.zeros_like(w) for name, w in weights().items()})
    assert torch.equal(score, torch.zeros(4, dtype=torch.float64))
