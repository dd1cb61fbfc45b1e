import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Generator, Tensor

from penjing.data import fashion_batches, fashion_sample
from penjing.errors import DataError, RecipeError
from penjing.measure import CORRUPTIONS, Corruption

EACH = pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=CORRUPTIONS)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def photos() -> Tensor:
    images, _ = next(iter(fashion_batches(fashion_sample().confirm[:64], 64)))
    return images


@EACH
@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)),
    severity=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    flat=st.booleans(),
)
def test_any_shape_stays_itself_and_in_its_range(
    corrupt: Corruption, shape: tuple[int, ...], severity: int, dtype: torch.dtype, flat: bool
) -> None:
    images = torch.randn(shape, generator=seeded(1), dtype=dtype) * (not flat)
    kept = images.clone()
    found = corrupt(images, severity, seeded())
    assert (found.shape, found.dtype) == (images.shape, dtype)
    assert torch.equal(images, kept)
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    assert ((low - 1e-5 <= found) & (found <= high + 1e-5)).all()  # NaN would fail, too


@EACH
def test_damage_rises_with_severity(corrupt: Corruption) -> None:
    images = photos()
    far = [(corrupt(images, s, seeded()) - images).square().mean().sqrt().item() for s in range(1, 6)]
    assert far[0] > 0.01
    assert (np.diff(far) > 0.01).all()


@EACH
def test_no_scale_matters(corrupt: Corruption) -> None:
    images = torch.rand(4, 3, 12, 10, generator=seeded(1), dtype=torch.float64)
    scale, shift = torch.tensor([255, 0.1, 3.0]).view(3, 1, 1).double(), torch.tensor([-5, 40, 0.5]).view(3, 1, 1).double()
    found = corrupt(images * scale + shift, 3, seeded())
    torch.testing.assert_close(found, corrupt(images, 3, seeded()) * scale + shift)


@EACH
def test_what_happens_to_an_image_does_not_depend_on_its_neighbours(corrupt: Corruption) -> None:
    images = torch.rand(2, 1, 9, 9, generator=seeded(1))
    others = torch.stack([images[0], 50 * images[1]])
    assert torch.equal(corrupt(images, 3, seeded())[0], corrupt(others, 3, seeded())[0])


@EACH
def test_the_generator_alone_decides(corrupt: Corruption) -> None:
    images = photos()
    assert torch.equal(corrupt(images, 4, seeded(7)), corrupt(images, 4, seeded(7)))
    random = corrupt in (CORRUPTIONS["gaussian noise"], CORRUPTIONS["impulse noise"], CORRUPTIONS["occlusion"])
    assert torch.equal(corrupt(images, 4, seeded(7)), corrupt(images, 4, seeded(8))) != random


@EACH
@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 4), torch.zeros(0, 1, 4, 4)], ids=str
)
def test_what_is_no_float_image_is_refused(corrupt: Corruption, images: Tensor) -> None:
    with pytest.raises(DataError, match=r"corruptions take floats \(N, C, H, W\)"):
        corrupt(images, 1, seeded())


@EACH
@pytest.mark.parametrize("severity", [0, 6])
def test_severities_are_one_to_five(corrupt: Corruption, severity: int) -> None:
    with pytest.raises(RecipeError, match=f"severity is {severity}"):
        corrupt(torch.zeros(1, 1, 4, 4), severity, seeded())


def test_noise_has_the_standard_deviation_it_says() -> None:
    images = torch.zeros(1, 1, 200, 200)
    images[..., :100] = 1000.0  # a standard deviation of 500, and half of the noise clipped
    error = CORRUPTIONS["gaussian noise"](images, 5, seeded()) - images
    assert error.square().mean().item() ** 0.5 == pytest.approx(0.45 * 500 / 2**0.5, rel=0.03)


def test_impulses_hit_the_share_they_say() -> None:
    images = torch.linspace(-3, 5, 40_000).view(1, 1, 200, 200)
    found = CORRUPTIONS["impulse noise"](images, 5, seeded())
    hit = found != images
    assert hit.float().mean().item() == pytest.approx(0.17, abs=0.01)
    assert set(found[hit].tolist()) == {-3.0, 5.0}
    assert (found[hit] == 5).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_blur_is_scipys() -> None:
    images = torch.rand(1, 2, 60, 70, generator=seeded(1), dtype=torch.float64)
    sigma = 0.04 * 60
    expected = [gaussian_filter(x.numpy(), sigma, mode="nearest", radius=int(np.ceil(3 * sigma))) for x in images[0]]
    torch.testing.assert_close(CORRUPTIONS["gaussian blur"](images, 5, seeded())[0], torch.from_numpy(np.stack(expected)))


def test_pixels_become_the_means_of_blocks() -> None:
    images = torch.rand(1, 1, 8, 8, generator=seeded(1))
    found = CORRUPTIONS["pixelate"](images, 4, seeded())  # half of each side: blocks of 2 x 2
    means = images.view(4, 2, 4, 2).mean((1, 3))
    torch.testing.assert_close(found[0, 0], means.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_contrast_and_brightness_by_hand() -> None:
    images = torch.tensor([0.0, 2.0, 4.0, 6.0]).view(1, 1, 2, 2)  # mean 3, standard deviation sqrt(5)
    assert CORRUPTIONS["contrast"](images, 5, seeded()).flatten().tolist() == pytest.approx([1.8, 2.6, 3.4, 4.2])
    raised = [0.6 * 5**0.5, 2 + 0.6 * 5**0.5, 4 + 0.6 * 5**0.5, 6]
    assert CORRUPTIONS["brightness"](images, 5, seeded()).flatten().tolist() == pytest.approx(raised)


def test_one_rectangle_is_covered_and_it_moves() -> None:
    images = torch.arange(400.0).view(1, 1, 20, 20).repeat(50, 1, 1, 1)
    hidden = (CORRUPTIONS["occlusion"](images, 5, seeded()) == 199.5)[:, 0]
    assert (hidden.sum((1, 2)) == 11 * 11).all()
    assert (hidden.any(1).sum(1) == 11).all()
    assert len({tuple(x.flatten().tolist()) for x in hidden}) > 20


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_it_does_not_depend_on_the_batch(name: str) -> None:
    images, corrupt = torch.rand(32, 1, 9, 9), CORRUPTIONS[name]
    whole, parts = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    split = [corrupt(x, 3, parts) for x in images.split(10)]
    assert torch.equal(corrupt(images, 3, whole), torch.cat(split))
