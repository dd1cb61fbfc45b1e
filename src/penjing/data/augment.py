"""Changes to batches of images that leave their meaning, by kornia (``penjing[augment]``)."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from penjing.errors import DataError, entry

Make = Callable[[Any, tuple[int, int]], nn.Module]  # (kornia.augmentation, height and width) -> what changes a batch

AUGMENTATIONS: dict[str, Make] = {
    "flip": lambda kornia, _size: kornia.RandomHorizontalFlip(p=0.5),
    "crop": lambda kornia, size: kornia.RandomCrop(size, padding=max(1, size[0] // 8)),
    "rotate": lambda kornia, _size: kornia.RandomRotation(15.0, p=0.5),
    "scale": lambda kornia, size: kornia.RandomResizedCrop(size, scale=(0.5, 1.0)),
    "erase": lambda kornia, _size: kornia.RandomErasing(p=0.5, scale=(0.02, 0.2)),
    "blur": lambda kornia, _size: kornia.RandomGaussianBlur((3, 3), (0.1, 1.0), p=0.3),
}


def augmentation(names: Sequence[str], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """What ``fit(..., augment=)`` takes: the changes one after another, each image with chances of its own.

    They work on normalized images as well; anything else of kornia's can be given to ``fit`` as it is.

    Args:
        names: Of ``AUGMENTATIONS``: flip, crop, rotate, scale, erase, blur.
        size: Height and width of the images.

    Raises:
        DataError: kornia is not installed, or no name is given.
        RecipeError: A name is not known.
    """
    if not names:
        raise DataError(f"no augmentation is named; give some of {', '.join(AUGMENTATIONS)}")
    makers = [entry(AUGMENTATIONS, name, "augmentation") for name in names]
    try:
        import kornia.augmentation as kornia
    except ImportError as e:
        raise DataError("augmentation needs kornia; install it with: pip install 'penjing[augment]'") from e
    return nn.Sequential(*(make(kornia, size) for make in makers))
