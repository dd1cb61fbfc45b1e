"""New samples from those of a batch: mixup (arXiv:1710.09412), cutmix (arXiv:1905.04899), and labels that are mixed alike."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from penjing.task import ignored

Mix = Callable[..., Any]  # what is done to a tensor whose dimension 0 is the batch; leaves all else alone


def mixup(batch: int, most: float, device: torch.device) -> Mix:
    """Mix into every sample up to the share ``most`` of another one; such samples teach a student most (arXiv:2106.05237)."""
    share, other = torch.rand(batch, device=device) * most, torch.randperm(batch, device=device)

    def mix(x: Any, *, labels: bool = False) -> Any:
        del labels  # which are mixed alike
        if not _floats(x, batch):
            return x
        return torch.lerp(x, x[other], share.to(x.dtype).view(-1, *[1] * (x.ndim - 1)))

    return mix


def cutmix(batch: int, sizes: tuple[int, ...], device: torch.device) -> Mix:
    """Paste one box of another sample into each; the box is the same for the whole batch, its volume's share uniform.

    Args:
        sizes: Those of the input's positions, of any rank, at least one. Tensors of the same positions are cut alike; of
            others, and where ``labels`` is true, the share of the box is mixed.
    """
    other = torch.randperm(batch, device=device)
    side = float(torch.rand(())) ** (1 / len(sizes))
    box, volume, whole = [], 1, 1
    for size in sizes:
        length = round(side * size)
        start = int(torch.randint(0, size - length + 1, ()))
        box.append(slice(start, start + length))
        volume, whole = volume * length, whole * size

    def mix(x: Any, *, labels: bool = False) -> Any:
        fits = isinstance(x, Tensor) and x.ndim > len(sizes) and x.shape[0] == batch and not labels
        if fits and tuple(x.shape[-len(sizes) :]) == sizes:
            mixed = x.clone()
            where: tuple[Any, ...] = (..., *box)
            mixed[where] = x[other][where]
            return mixed
        return torch.lerp(x, x[other], volume / whole) if _floats(x, batch) else x

    return mix


def soft(target: Any, classes: int, smoothing: float, *, as_a_mean: bool = False) -> Any:
    """Class numbers ``(N, ...)`` as probabilities ``(N, classes, ...)``, ``smoothing`` of which is spread over all classes.

    Rethinking Inception, arXiv:1512.00567. Targets that are no class numbers stay as they are; numbers that mean "ignore this"
    (below 0, or 255) get no probability at all.

    Args:
        as_a_mean: Whether all others get so much more for it that the mean over all positions is the one over those that
            count, as cross-entropy takes it of class numbers.
    """
    if not isinstance(target, Tensor) or target.is_floating_point():
        return target
    out = ignored(target, classes)
    sure = F.one_hot(target.masked_fill(out, 0).long(), classes).movedim(-1, 1).float()
    weight = out.numel() / (~out).sum().clamp_min(1) if as_a_mean else 1.0
    return weight * (sure * (1 - smoothing) + smoothing / classes).masked_fill(out.unsqueeze(1), 0)


def _floats(x: Any, batch: int) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 0 and x.shape[0] == batch
