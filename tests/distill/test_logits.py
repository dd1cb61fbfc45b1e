import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from penjing.distill import imitate, kl, weighted, with_labels
from penjing.errors import RecipeError


def softened(logits: Tensor, temperature: float) -> np.ndarray:
    """Classes last, in float64, by the definition of softmax."""
    z = np.moveaxis(logits.double().numpy(), 1, -1) / temperature
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(output: Tensor, taught: Tensor, temperature: float) -> float:
    ours, theirs = softened(output, temperature), softened(taught, temperature)
    return float((theirs * np.log(theirs / ours)).sum(-1).mean() * temperature**2)


def logits(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 1000), st.floats(0.5, 20), st.sampled_from([(1, 2), (5, 10), (2, 3, 4), (2, 3, 4, 5)]))
def test_kl_by_hand(seed: int, temperature: float, shape: tuple[int, ...]) -> None:
    output, taught = logits(seed, *shape), logits(seed + 1, *shape)
    np.testing.assert_allclose(kl(temperature)(output, taught, None).item(), by_hand(output, taught, temperature), rtol=1e-9)


@given(st.integers(0, 1000), st.floats(-50, 50))
def test_kl_is_zero_for_the_same_classes_and_positive_for_others(seed: int, offset: float) -> None:
    output, taught = logits(seed, 4, 7), logits(seed + 1, 4, 7)
    assert kl()(output + offset, output, None).abs() < 1e-9  # softmax does not see a constant
    assert kl()(output, taught, None) > 1e-3


def test_kl_teaches_the_student_alone_and_stays_finite() -> None:
    output, taught = logits(0, 4, 7).float().requires_grad_(), (logits(1, 4, 7) * 1e4).float()
    value = kl(1.0)(output, taught, None)
    value.backward()
    assert value.isfinite()
    expected = (output.detach().softmax(1) - taught.softmax(1)) / 4  # the derivative by hand, at temperature 1
    torch.testing.assert_close(output.grad, expected)


def test_the_square_of_the_temperature_keeps_gradients_of_one_size() -> None:
    sizes = []
    for temperature in (10.0, 100.0):
        output = logits(0, 4, 7).requires_grad_()
        kl(temperature)(output, logits(1, 4, 7), None).backward()
        assert output.grad is not None
        sizes.append(output.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
@pytest.mark.parametrize("loss", [kl, imitate])
def test_a_temperature_that_is_not_positive_is_refused(loss: type, temperature: float) -> None:
    with pytest.raises(RecipeError, match="temperature is"):
        loss(temperature)


def test_labels_alone() -> None:
    output, target = logits(0, 4, 7), torch.tensor([0, 1, 2, 6])
    assert with_labels(F.cross_entropy)(output, None, target) == F.cross_entropy(output, target)


def test_terms_add_up_by_weight() -> None:
    output, taught, target = logits(0, 4, 7), logits(1, 4, 7), torch.tensor([0, 1, 2, 6])
    value = weighted((0.7, kl(2.0)), (0.3, with_labels(F.cross_entropy)), (0, kl(8.0)))(output, taught, target)
    expected = 0.7 * by_hand(output, taught, 2.0) + 0.3 * F.cross_entropy(output, target).item()
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert weighted((2, kl(2.0)))(output, taught, target).item() == pytest.approx(2 * by_hand(output, taught, 2.0), rel=1e-9)


def test_no_terms_are_refused() -> None:
    with pytest.raises(RecipeError):
        weighted()(logits(0, 4, 7), logits(1, 4, 7), None)


def test_imitation_follows_classes_where_targets_are_classes() -> None:
    output, taught = logits(0, 4, 7), logits(1, 4, 7)
    assert imitate(2.0)(output, taught, torch.tensor([0, 1, 2, 6])).item() == pytest.approx(by_hand(output, taught, 2.0))
    maps, taught_maps = logits(0, 2, 3, 4, 5), logits(1, 2, 3, 4, 5)
    found = imitate(2.0)(maps, taught_maps, torch.zeros(2, 4, 5, dtype=torch.int64))
    assert found.item() == pytest.approx(by_hand(maps, taught_maps, 2.0))


@pytest.mark.parametrize("target", [torch.zeros(4, 7), torch.zeros(4, 7, dtype=torch.int64), None, torch.zeros(4)])
def test_imitation_follows_values_elsewhere(target: Tensor | None) -> None:
    output, taught = logits(0, 4, 7), logits(1, 4, 7)
    expected = np.square(output.numpy() - taught.numpy()).mean()
    assert imitate()(output, taught, target).item() == pytest.approx(expected)
    several = imitate()({"a": output, "b": [taught]}, {"a": taught, "b": [2 * taught]}, target)
    assert several.item() == pytest.approx(expected + np.square(taught.numpy()).mean())
