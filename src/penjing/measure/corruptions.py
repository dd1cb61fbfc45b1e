"""Images as a camera spoils them, at five severities: the kinds of Hendrycks and Dietterich 2019 (arXiv:1903.12261).

Their strengths are for pixels between 0 and 1. Here inputs come as the network wants them, on any scale, so strengths are in
units of each image's own standard deviation, channel by channel: what is done to an image depends neither on how it was
normalized (``corrupt(a x + b)`` is ``a corrupt(x) + b`` for positive ``a`` of each channel) nor on the batch it comes in.
Nothing leaves the range of the image's own channel, as a sensor saturates, so that a quantized input does not overflow.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from penjing.errors import DataError, RecipeError

Corruption = Callable[[Tensor, int, Generator], Tensor]  # (images (N, C, H, W), severity 1..5, on the CPU) -> same shape
Strengths = tuple[float, float, float, float, float]  # by severity


def gaussian_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add normal noise."""
    strength = _strength(images, severity, (0.05, 0.1, 0.2, 0.3, 0.45))  # standard deviations
    size = images[0].numel()
    whole = -(-size // 16) * 16  # torch draws 16 at a time, and those at the end once more, which would depend on the batch
    noise = torch.randn(len(images), whole, generator=generator)[:, :size].reshape(images.shape).to(images)
    return _clipped(images + strength * _spread(images) * noise, images)


def impulse_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Salt and pepper: set a share of the values to the least or the greatest of their image and channel."""
    share = _strength(images, severity, (0.01, 0.03, 0.06, 0.1, 0.17))
    drawn = torch.rand(len(images), 2, *images.shape[1:], generator=generator)  # image by image, whatever the batch
    hit, salt = (drawn < torch.tensor([share, 0.5]).view(2, 1, 1, 1)).to(images.device).unbind(1)
    low, high = _range(images)
    return torch.where(hit, torch.where(salt, high, low), images)


def gaussian_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:  # noqa: ARG001 - the type's signature
    """Blur with a normal kernel whose width is a share of the image's shorter side."""
    share = _strength(images, severity, (0.0125, 0.02, 0.025, 0.03, 0.04))
    sigma = share * min(images.shape[2:])
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    n, c, h, w = images.shape
    padded = F.pad(images, (radius,) * 4, mode="replicate").reshape(n * c, 1, h + 2 * radius, w + 2 * radius)
    blurred = F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return _clipped(blurred.view(images.shape), images)


def brightness(images: Tensor, severity: int, generator: Generator) -> Tensor:  # noqa: ARG001 - the type's signature
    """Raise every value."""
    strength = _strength(images, severity, (0.1, 0.2, 0.3, 0.45, 0.6))  # standard deviations
    return _clipped(images + strength * _spread(images), images)


def contrast(images: Tensor, severity: int, generator: Generator) -> Tensor:  # noqa: ARG001 - the type's signature
    """Draw every value towards the mean."""
    rest = _strength(images, severity, (0.85, 0.7, 0.6, 0.5, 0.4))
    mean = images.mean((2, 3), keepdim=True)
    return mean + rest * (images - mean)


def pixelate(images: Tensor, severity: int, generator: Generator) -> Tensor:  # noqa: ARG001 - the type's signature
    """Replace the pixels of each cell of a coarser grid by their mean."""
    share = _strength(images, severity, (0.9, 0.75, 0.6, 0.5, 0.35))  # cells for each pixel of a side
    rows, columns = (_cells(size, math.ceil(share * size)).to(images) for size in images.shape[2:])
    return _clipped(rows @ images @ columns, images)


def occlusion(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Cover one rectangle of each image, anywhere in it, with the mean (after DeVries and Taylor 2017, arXiv:1708.04552)."""
    share = _strength(images, severity, (0.15, 0.25, 0.35, 0.45, 0.55))  # of each side
    covered = []
    drawn = torch.rand(len(images), 2, generator=generator)  # image by image, whatever the batch
    for size, place in zip(images.shape[2:], drawn.unbind(1), strict=True):
        length = max(1, round(share * size))
        start = (place[:, None] * (size - length + 1)).floor()
        offset = torch.arange(size) - start
        covered.append(((offset >= 0) & (offset < length)).to(images.device))
    hidden = (covered[0][:, :, None] & covered[1][:, None, :])[:, None]
    return torch.where(hidden, images.mean((2, 3), keepdim=True), images)


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian noise": gaussian_noise,
    "impulse noise": impulse_noise,
    "gaussian blur": gaussian_blur,
    "brightness": brightness,
    "contrast": contrast,
    "pixelate": pixelate,
    "occlusion": occlusion,
}


def _strength(images: Tensor, severity: int, strengths: Strengths) -> float:
    """The strength of a severity, after a look at the images.

    Raises:
        DataError: The images are not floats of shape ``(N, C, H, W)``.
        RecipeError: There is no such severity.
    """
    if images.ndim != 4 or not images.numel() or not images.is_floating_point():
        raise DataError(f"images are {images.dtype} of shape {tuple(images.shape)}; corruptions take floats (N, C, H, W)")
    if severity not in range(1, len(strengths) + 1):
        raise RecipeError(f"severity is {severity}; give one of 1 to {len(strengths)}")
    return strengths[severity - 1]


def _cells(size: int, count: int) -> Tensor:
    """The symmetric matrix ``(size, size)`` that averages neighbours over ``count`` cells."""
    cell = torch.arange(size) * count // size
    same = (cell[:, None] == cell).double()
    return same / same.sum(0)


def _spread(images: Tensor) -> Tensor:
    """Standard deviation of each channel of each image, ``(N, C, 1, 1)``; zero for a flat one."""
    return images.std((2, 3), correction=0, keepdim=True)


def _range(images: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each channel of each image, ``(N, C, 1, 1)``."""
    return images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)


def _clipped(changed: Tensor, images: Tensor) -> Tensor:
    """What changed, brought back into the range of the original."""
    return torch.clamp(changed, *_range(images))
