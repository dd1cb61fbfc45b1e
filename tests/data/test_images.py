import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from penjing.data import ImageBatches, LabelledImages
from penjing.data.images import shifted_and_mirrored
from penjing.errors import DataError, PenjingError


def told_apart(n: int, size: int = 6) -> LabelledImages:
    """Images whose brightest pixel is their label."""
    images = torch.randint(0, 100, (n, 1, size, size), dtype=torch.uint8)
    images[:, 0, size // 2, size // 2] = torch.arange(100, 100 + n, dtype=torch.uint8)
    return LabelledImages(images, torch.arange(n))


@given(st.integers(1, 20), st.integers(1, 25))
def test_batches_hold_every_image_once_in_order(n: int, size: int) -> None:
    data = told_apart(n)
    batches = list(ImageBatches(data, size, mean=0.25, std=0.5))
    assert len(batches) == len(ImageBatches(data, size))
    assert all(len(y) == size for _, y in batches[:-1])
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), (data.images.double() / 255 - 0.25) / 0.5, rtol=0, atol=1e-6)
    assert torch.equal(y, data.labels)


def test_labels_follow_their_images_when_augmented() -> None:
    batches = ImageBatches(told_apart(40), 7, mean=0, std=1, augment=True)
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    assert torch.equal((x.flatten(1).amax(1) * 255).round().long() - 100, y)
    assert sorted(y.tolist()) == list(range(40))
    assert y.tolist() != list(range(40))


def test_an_epoch_follows_from_seed_and_number_alone() -> None:
    def walked(seed: int, epoch: int) -> Tensor:
        batches = ImageBatches(told_apart(20), 8, augment=True, seed=seed)
        batches.set_epoch(epoch)
        return torch.cat([x for x, _ in batches])

    torch.manual_seed(1)
    first = walked(0, 3)
    torch.manual_seed(1)  # the images; the walk must not hang on it, which the next line's draws would show
    data = told_apart(20)
    torch.rand(7)
    again = ImageBatches(data, 8, augment=True, seed=0, epoch=3)
    assert torch.equal(torch.cat([x for x, _ in again]), first)
    assert torch.equal(torch.cat([x for x, _ in again]), first)
    for seed, epoch in ((0, 4), (1, 3)):
        torch.manual_seed(1)
        assert not torch.equal(walked(seed, epoch), first)


def test_a_walk_draws_nothing_from_the_global_generator() -> None:
    batches = ImageBatches(told_apart(5), 2, augment=True)
    before = torch.get_rng_state()
    list(batches)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_every_image_is_shifted_and_mirrored_as_a_whole(shift: int) -> None:
    x = torch.rand(60, 2, 5, 7) + 1
    found = shifted_and_mirrored(x, shift, torch.Generator().manual_seed(0))
    padded = F.pad(x, (shift,) * 4, value=x.min().item())
    seen = set()
    for i, image in enumerate(found):
        matches = {
            (dy, dx, mirrored)
            for dy in range(2 * shift + 1)
            for dx in range(2 * shift + 1)
            for mirrored in (False, True)
            if torch.equal(image.flip(2) if mirrored else image, padded[i, :, dy : dy + 5, dx : dx + 7])
        }
        assert len(matches) == 1
        seen |= matches
    assert {mirrored for *_, mirrored in seen} == {False, True}
    assert {dy for dy, *_ in seen} == {dx for _, dx, _ in seen} == set(range(2 * shift + 1))


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([2, 0])])
def test_a_part_keeps_images_and_labels_together(index: slice | Tensor) -> None:
    data = told_apart(4)
    part = data[index]
    assert len(part) == 2
    assert torch.equal(part.images.flatten(1).amax(1).long() - 100, part.labels)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2)),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 1)),
    ],
)
def test_what_are_not_labelled_images_is_refused(images: Tensor, labels: Tensor) -> None:
    with pytest.raises(DataError, match="give"):
        LabelledImages(images, labels)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_nothing_is_refused(size: int) -> None:
    with pytest.raises(PenjingError, match="batch_size"):
        len(ImageBatches(told_apart(3), size))


def test_batches_that_say_that_they_are_fixed_are() -> None:
    for augment in (False, True):
        batches = ImageBatches(told_apart(12), 4, augment=augment)
        walks = []
        for epoch in (0, 1):
            batches.set_epoch(epoch)
            walks.append(torch.cat([x for x, _ in batches]))
        assert torch.equal(*walks) == batches.fixed == (not augment)


def test_no_images_are_no_batches() -> None:
    none = LabelledImages(torch.zeros(0, 1, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    assert list(ImageBatches(none, 4)) == []
