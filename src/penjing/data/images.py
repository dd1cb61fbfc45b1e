"""Labelled 8-bit images in memory, and batches of them as the networks want them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from penjing.errors import DataError


@dataclass(frozen=True)
class LabelledImages:
    """``images`` uint8 ``(N, C, H, W)`` and ``labels`` int64 ``(N,)``."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(f"images are {self.images.dtype} of shape {tuple(self.images.shape)}; give uint8 (N, C, H, W)")
        if self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"{len(self.images)} images but labels of shape {tuple(self.labels.shape)}; give one label an image"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Tensor) -> "LabelledImages":
        return LabelledImages(self.images[index], self.labels[index])


@dataclass
class ImageBatches:
    """Walk ``data`` in batches of ``(images float32 normalized, labels)``.

    With ``augment``, every image is shifted by up to ``shift`` pixels and mirrored half the time, and the order is new
    in every epoch; both follow from ``seed`` and ``epoch`` alone, so that an interrupted run can be continued exactly.
    """

    data: LabelledImages
    batch_size: int
    mean: float = 0.5
    std: float = 0.5
    augment: bool = False
    shift: int = 2  # pixels
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise DataError(f"batch_size is {self.batch_size}; give at least 1")

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    @property
    def fixed(self) -> bool:
        """Whether every walk gives the same batches, so that what a teacher says of them can be remembered."""
        return not self.augment

    def set_epoch(self, epoch: int) -> None:
        """Choose order and augmentation of the next walk; ``fit`` calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        n = len(self.data)
        order = torch.randperm(n, generator=generator) if self.augment else torch.arange(n)
        for picked in torch.split(order, self.batch_size) if n else ():
            x = (self.data.images[picked].float() / 255 - self.mean) / self.std
            if self.augment:
                x = shifted_and_mirrored(x, self.shift, generator)
            yield x, self.data.labels[picked]


def shifted_and_mirrored(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Shift each image of ``(N, C, H, W)`` by up to ``shift`` pixels, filling with its darkest value; mirror half of them."""
    n, c, h, w = x.shape
    padded = F.pad(x, (shift,) * 4, value=x.min().item())
    dy, dx = torch.randint(0, 2 * shift + 1, (2, n, 1), generator=generator)
    rows, cols = dy + torch.arange(h), dx + torch.arange(w)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    cols = torch.where(mirrored, cols.flip(1), cols)
    image = torch.arange(n)
    return padded[
        image[:, None, None, None], torch.arange(c)[None, :, None, None], rows[:, None, :, None], cols[:, None, None, :]
    ]
