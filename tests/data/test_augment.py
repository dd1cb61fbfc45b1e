import pytest
import torch

from penjing.data import AUGMENTATIONS, augmentation
from penjing.errors import DataError, RecipeError


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_changes_images_by_torchs_chance_and_keeps_their_shape(name: str) -> None:
    x = torch.randn(16, 3, 12, 12)
    change = augmentation([name], (12, 12))
    torch.manual_seed(0)
    first = change(x)
    torch.manual_seed(0)
    assert torch.equal(change(x), first)
    torch.manual_seed(1)
    assert not torch.equal(change(x), first)
    assert first.shape == x.shape
    assert not torch.equal(first, x)


def test_they_come_one_after_another() -> None:
    x = torch.randn(8, 1, 10, 10)
    torch.manual_seed(0)
    found = augmentation(["flip", "erase"], (10, 10))(x)
    torch.manual_seed(0)
    assert torch.equal(augmentation(["erase"], (10, 10))(augmentation(["flip"], (10, 10))(x)), found)


def test_mistakes_are_told() -> None:
    with pytest.raises(RecipeError, match="did you mean 'flip'"):
        augmentation(["flp"], (8, 8))
    with pytest.raises(DataError, match="no augmentation is named"):
        augmentation([], (8, 8))
