"""What ONNX computes in windows: convolutions and pools of any rank, with its paddings, which torch knows only in part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from penjing.graph.onnx.values import Call

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Any]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_GLOBAL_AVERAGE: dict[int, Callable[..., Any]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_GLOBAL_MAX: dict[int, Callable[..., Any]] = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


@dataclass(frozen=True)
class Window:
    """How a window moves, a number a spatial dimension.

    Attributes:
        pads: ``(before, after)`` a dimension; None where they depend on the size of the input.
        upper: Where they do: whether the odd one comes after.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | None
    upper: bool = True

    @property
    def reach(self) -> tuple[int, ...]:
        """How many elements a window spans."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def even(self) -> tuple[int, ...] | None:
        """The padding as torch's layers take it; None where before and after differ or depend on the input."""
        if self.pads is None or any(a != b or a < 0 for a, b in self.pads):
            return None
        return tuple(a for a, _ in self.pads)

    def amounts(self, sizes: Sequence[Any]) -> list[tuple[Any, Any]]:
        """How much is padded before and after each dimension of these sizes."""
        if self.pads is not None:
            return list(self.pads)
        totals = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(sizes, self.stride, self.reach, strict=True)]
        return [(t // 2, t - t // 2) if self.upper else (t - t // 2, t // 2) for t in totals]


def window_of(call: Call, kernel: Sequence[int]) -> Window:
    """The window of a convolution or pool.

    Raises:
        ModelError: The kernel has a rank that torch does not have, or the node's attributes do not fit it.
    """
    rank = len(kernel)
    if rank not in _CONV:
        raise call.refuse(f"its kernel has {rank} dimensions, and 1 to 3 can be read")
    ones = [1] * rank
    stride, dilation = call.get("strides", ones), call.get("dilations", ones)
    pads, auto = call.get("pads", [0] * 2 * rank), call.get("auto_pad", "NOTSET")
    if len(stride) != rank or len(dilation) != rank or len(pads) != 2 * rank:
        raise call.refuse(f"strides {stride}, dilations {dilation} and pads {pads} do not fit the kernel {list(kernel)}")
    if auto == "VALID":
        pads = [0] * 2 * rank
    window = Window(tuple(kernel), tuple(stride), tuple(dilation), tuple(zip(pads[:rank], pads[rank:], strict=True)))
    if not auto.startswith("SAME"):
        return window
    fixed = window.stride == tuple(ones)  # then the size of the input does not matter
    same = Window(window.kernel, window.stride, window.dilation, None, auto == "SAME_UPPER")
    known = tuple(same.amounts(window.reach)) if fixed else None
    return Window(window.kernel, window.stride, window.dilation, known, same.upper)


def around(x: Tensor, amounts: Sequence[tuple[Any, Any]], value: float = 0.0) -> Tensor:
    """``x`` with ``(before, after)`` added to its last dimensions, or taken off where negative."""
    flat = [n for pair in reversed(amounts) for n in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def padded(call: Call, kernel: Sequence[int], x: Tensor) -> Tensor:
    """The input of a convolution with the zeros around it that the layer does not add by itself."""
    return around(x, window_of(call, kernel).amounts(x.shape[2:]))


def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution with a weight that is computed; one with a constant weight is a layer."""
    window = window_of(call, weight.shape[2:])
    x, padding = (x, window.even) if window.even is not None else (padded(call, window.kernel, x), 0)
    groups = call.get("group", 1)
    return _CONV[weight.ndim - 2](x, weight, bias, window.stride, padding, window.dilation, groups)


def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Transposed convolution with a weight that is computed."""
    window = window_of(call, weight.shape[2:])
    extra = call.get("output_padding", [0] * len(window.kernel))
    groups = call.get("group", 1)
    full = _TRANSPOSED[weight.ndim - 2](x, weight, bias, window.stride, 0, extra, groups, window.dilation)
    return cropped(call, window.kernel, full, x, grows=bias is None)


def cropped(call: Call, kernel: Sequence[int], full: Tensor, x: Tensor, *, grows: bool) -> Tensor:
    """What is left of an unpadded transposed convolution of ``x`` once its paddings are taken off.

    Args:
        grows: Whether what is asked for beyond what it gives is zero: where there is no bias.

    Raises:
        ModelError: More is asked for than it gives.
    """
    window, asked = window_of(call, kernel), call.get("output_shape")
    if asked is None and not call.get("auto_pad", "NOTSET").startswith("SAME"):
        return around(full, [(-a, -b) for a, b in window.amounts(x.shape[2:])])
    sizes = asked[-len(kernel) :] if asked is not None else [n * s for n, s in zip(x.shape[2:], window.stride, strict=True)]
    totals = [n - size for n, size in zip(full.shape[2:], sizes, strict=True)]
    if not grows and any(t < 0 for t in totals):
        raise call.refuse(f"an output of {list(sizes)} is larger than the {list(full.shape[2:])} it gives; set output_padding")
    after = call.get("auto_pad") != "SAME_UPPER"
    return around(full, [(-(t - t // 2), -(t // 2)) if after else (-(t // 2), -(t - t // 2)) for t in totals])


def _counts(window: Window, sizes: Sequence[Any], amounts: Sequence[tuple[Any, Any]], ceil: bool) -> list[Any]:
    """How many windows there are along each dimension: with ``ceil`` also a last one that reaches over the edge."""
    counts = []
    for n, (a, b), s, r in zip(sizes, amounts, window.stride, window.reach, strict=True):
        room = n + a + b - r
        count = (-(-room // s) if ceil else room // s) + 1
        counts.append(count - 1 if ceil and (count - 1) * s >= n + a else count)
    return counts


def _filled(window: Window, x: Tensor, ceil: bool, value: float) -> Tensor:
    """``x`` padded so that exactly the windows that ONNX counts fit into it."""
    sizes = x.shape[2:]
    amounts = window.amounts(sizes)
    counts = _counts(window, sizes, amounts, ceil)
    rows = zip(sizes, amounts, counts, window.stride, window.reach, strict=True)
    return around(x, [(a, (c - 1) * s + r - n - a) for n, (a, _), c, s, r in rows], value)


def _is_native(window: Window) -> bool:
    """Whether torch's pools can add the padding themselves."""
    return window.even is not None and all(2 * p <= k for p, k in zip(window.even, window.kernel, strict=True))


def max_pool(call: Call, x: Tensor) -> Tensor:
    """Largest value of each window."""
    if call.outputs > 1:
        raise call.refuse("its second output, the places of the largest values, is used; export the network without unpooling")
    window, ceil = window_of(call, call.get("kernel_shape")), bool(call.get("ceil_mode", 0))
    pool = _MAX[len(window.kernel)]
    if _is_native(window):
        largest: Tensor = pool(x, window.kernel, window.stride, window.even, window.dilation, ceil)
        return largest
    lowest = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    largest = pool(_filled(window, x, ceil, lowest), window.kernel, window.stride, 0, window.dilation)
    return largest


def average_pool(call: Call, x: Tensor) -> Tensor:
    """Mean of each window, of what lies inside the input or, on request, inside its padding."""
    window, ceil = window_of(call, call.get("kernel_shape")), bool(call.get("ceil_mode", 0))
    include = bool(call.get("count_include_pad", 0))
    if any(d > 1 for d in window.dilation):
        raise call.refuse(f"its dilations are {list(window.dilation)}, which torch's pools do not have; use a convolution")
    pool = _AVERAGE[len(window.kernel)]
    if _is_native(window):
        mean: Tensor = pool(x, window.kernel, window.stride, window.even, ceil, include)
        return mean
    ones = x.new_ones((1, 1, *x.shape[2:]))
    if include:
        ones = F.pad(ones, [n for pair in reversed(window.amounts(x.shape[2:])) for n in pair], value=1.0)
        rest = Window(window.kernel, window.stride, window.dilation, ((0, 0),) * len(window.kernel))
        share = pool(_filled(rest, ones, ceil, 0.0), window.kernel, window.stride)
    else:
        share = pool(_filled(window, ones, ceil, 0.0), window.kernel, window.stride)
    mean = pool(_filled(window, x, ceil, 0.0), window.kernel, window.stride) / share
    return mean


def global_average_pool(_call: Call, x: Tensor) -> Tensor:
    """Mean over all positions, which stay as dimensions of 1."""
    rank = x.ndim - 2
    mean: Tensor = _GLOBAL_AVERAGE[rank](x, 1) if rank in _GLOBAL_AVERAGE else x.mean(list(range(2, x.ndim)), keepdim=True)
    return mean


def global_max_pool(_call: Call, x: Tensor) -> Tensor:
    """Largest value over all positions, which stay as dimensions of 1."""
    rank = x.ndim - 2
    largest: Tensor = _GLOBAL_MAX[rank](x, 1) if rank in _GLOBAL_MAX else x.amax(list(range(2, x.ndim)), keepdim=True)
    return largest


def local_response_norm(call: Call, x: Tensor) -> Tensor:
    """Every value divided by a power of the squares of the channels around it (Krizhevsky et al. 2012)."""
    size, alpha, beta, bias = call.get("size"), call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    if size % 2:
        return F.local_response_norm(x, size, alpha, beta, bias)
    squares = around(x * x, [((size - 1) // 2, size // 2), *[(0, 0)] * (x.ndim - 2)])
    near = squares.unfold(1, size, 1).sum(-1)
    found: Tensor = x / (near * (alpha / size) + bias) ** beta
    return found


def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Blocks of channels spread over squares of positions."""
    b, (n, c, h, w) = call.get("blocksize"), x.shape
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, b)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Squares of positions as blocks of channels."""
    b, (n, c, h, w) = call.get("blocksize"), x.shape
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, b)
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


WINDOWS: dict[str, Callable[..., Any]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "LRN": local_response_norm,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
