"""Mixup (Zhang et al. 2018, arXiv:1710.09412): new samples from few, which teach a student most (arXiv:2106.05237)."""

from typing import Any

import torch
from torch import Tensor


def mixed(inputs: tuple[Tensor, ...], target: Any, most: float) -> tuple[tuple[Tensor, ...], Any]:
    """Mix into every sample up to the share ``most`` of another one of its batch.

    Targets that are floats are mixed alike; others stay those of the sample itself, which has the larger share while
    ``most`` is at most 0.5.
    """
    batch = inputs[0].shape[0]
    share = torch.rand(batch, device=inputs[0].device) * most
    other = torch.randperm(batch, device=inputs[0].device)

    def mix(x: Any) -> Any:
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.ndim and x.shape[0] == batch):
            return x
        s = share.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        return torch.lerp(x, x[other], s)

    return tuple(mix(x) for x in inputs), mix(target)
