"""What convolutions read, window by window; a transposed one reads its input with zeros between the positions and around."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

Pads = tuple[tuple[int, int], ...]  # in front of and behind every position dimension


def unfolded(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """A view ``(samples, channels, positions..., kernel...)`` of an input that is padded already."""
    for i, (k, step, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + i, d * (k - 1) + 1, step)
    apart: Any = (..., *(slice(None, None, d) for d in dilation))
    return x[apart]


def spread(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The input of a transposed convolution with zeros between its positions, so that windows can step over it one by one."""
    if max(stride) == 1:
        return x
    wide = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)))
    every: Any = (..., *(slice(None, None, s) for s in stride))
    wide[every] = x
    return wide


def pads_of_spread(kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], more: Sequence[int]) -> Pads:
    """What a transposed convolution pads its spread input with; ``more`` is its output padding."""
    sizes = zip(kernel, dilation, padding, more, strict=True)
    return tuple((d * (k - 1) - p, d * (k - 1) - p + m) for k, d, p, m in sizes)


def padded(x: Tensor, pads: Pads) -> Tensor:
    """With zeros around; less than none cut positions off."""
    return F.pad(x, [n for pair in reversed(pads) for n in pair])
