"""Everything in float64, and at a bearable speed: what the proof runs under."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten


class Double(TorchDispatchMode):
    """While it is on, all that is computed is float64, whatever precision is asked for. Gradients do not flow.

    Convolutions in several groups are summed tap by tap: torch's own take minutes in float64 where this takes a second.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is aten.convolution.default and args[8] > 1 and args[0].dtype == torch.float64 and not args[6]:
            x, weight, bias, stride, padding, dilation, _, _, groups = args
            return grouped_convolution(x, weight, bias, stride, padding, dilation, groups)
        kwargs = {k: torch.float64 if v in _SHORTER else v for k, v in (kwargs or {}).items()}
        return tree_map_only(Tensor, _widened, func(*args, **kwargs))


_SHORTER = (torch.float32, torch.float16, torch.bfloat16)


def _widened(x: Tensor) -> Tensor:
    return x.double() if x.dtype in _SHORTER else x


def grouped_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """``torch.convolution`` of any rank: ``x`` is ``(N, I, ...)``, ``weight`` is ``(O, I / groups, ...)``."""
    rank = weight.ndim - 2
    stride, padding, dilation = (list(v) * rank if len(v) == 1 else list(v) for v in (stride, padding, dilation))
    x = F.pad(x, [p for n in reversed(padding) for p in (n, n)])
    kernel = weight.shape[2:]
    sizes = [(x.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(rank)]
    taps = weight.view(groups, -1, *weight.shape[1:])
    out = x.new_zeros(len(x), groups, taps.shape[1], math.prod(sizes))
    for i, tap in enumerate(itertools.product(*(range(k) for k in kernel))):
        at = tuple(slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, dilation, sizes, stride, strict=True))
        seen = x[(slice(None), slice(None), *at)].reshape(len(x), groups, -1, math.prod(sizes))
        out += _times(taps.flatten(3)[..., i], seen)
    out = out.view(len(x), -1, *sizes)
    return out if bias is None else out + bias.view(-1, *[1] * rank)


def _times(weight: Tensor, x: Tensor) -> Tensor:
    """Of every group ``(O, I) @ (I, positions)``."""
    return weight * x if weight.shape[-1] == 1 else weight @ x
