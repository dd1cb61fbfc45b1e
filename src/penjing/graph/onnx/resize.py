"""ONNX's Resize and Upsample: with torch's own interpolation where the two agree, else place by place along each dimension."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from penjing.graph.onnx.values import Call, Value

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}

# (place in the output, size of the input, size of the output, scale) -> place in the input
_PLACES: dict[str, Callable[[int, int, int, float], float]] = {
    "half_pixel": lambda i, _n, _m, s: (i + 0.5) / s - 0.5,
    "pytorch_half_pixel": lambda i, _n, m, s: (i + 0.5) / s - 0.5 if m > 1 else 0.0,
    "half_pixel_symmetric": lambda i, n, m, s: n / 2 * (1 - m / (s * n)) + (i + 0.5) / s - 0.5,
    "align_corners": lambda i, n, m, _s: i * (n - 1) / (m - 1) if m > 1 else 0.0,
    "asymmetric": lambda i, _n, _m, s: i / s,
}
_NEAREST: dict[str, Callable[[float], float]] = {
    "round_prefer_floor": lambda x: math.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: math.floor(x + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}


def resize(call: Call, x: Tensor, _region: Value = None, scales: Value = None, sizes: Value = None) -> Tensor:
    """``Resize``, by scales or to sizes."""
    if call.opset < 11:
        return upsample(call, x, _region)  # its second input is the scales
    for name, plain in (("antialias", 0), ("exclude_outside", 0), ("keep_aspect_ratio_policy", "stretch")):
        if call.get(name, plain) != plain:
            raise call.refuse(f"{name} is {call.get(name)!r}, and {plain!r} can be read; export it so")
    where, mode = call.get("coordinate_transformation_mode", "half_pixel"), call.get("mode", "nearest")
    if where not in _PLACES:
        raise call.refuse(f"its coordinates are {where!r}; {', '.join(_PLACES)} can be read")
    if mode not in ("nearest", "linear", "cubic"):
        raise call.refuse(f"its mode is {mode!r}; nearest, linear and cubic can be read")
    axes = [a % x.ndim for a in call.get("axes") or range(x.ndim)]
    by = [1.0] * x.ndim
    to = list(x.shape)
    for i, axis in enumerate(axes):
        if sizes is not None:
            asked = call.numbers(sizes, "sizes")[i]
            if asked == x.shape[axis] or (axis == 0 and asked == 1):  # a batch of 1, fixed by who exported it
                continue
            to[axis], by[axis] = asked, asked / x.shape[axis]
        elif scales is not None:
            by[axis] = call.numbers(scales, "scales")[i]
            to[axis] = _scaled(x.shape[axis], by[axis])
    return _interpolated(call, x, to, by, where)


def upsample(call: Call, x: Tensor, scales: Value = None) -> Tensor:
    """``Upsample``, and ``Resize`` of opset 10: from the corner, the nearest by rounding down."""
    by = call.get("scales") if scales is None else call.numbers(scales, "scales")
    if by is None:
        by = [1.0, 1.0, call.get("height_scale"), call.get("width_scale")]
    old = Call(call.op, call.name, call.opset, 1, {"mode": call.get("mode", "nearest"), "nearest_mode": "floor"})
    to = [_scaled(n, s) for n, s in zip(x.shape, by, strict=True)]
    return _interpolated(old, x, to, by, "asymmetric")


def _scaled(size: Any, by: float) -> Any:
    """A size times a scale, rounded down; in float32, where a scale of 1.3 makes 13 of 10 and not 12."""
    if by == 1:
        return size
    return math.floor(float(np.float32(size) * np.float32(by))) if isinstance(size, int) else math.floor(size * by)


def _interpolated(call: Call, x: Tensor, to: list[Any], by: list[Any], where: str) -> Tensor:
    moving = [d for d, s in enumerate(by) if s != 1]
    mode, nearest = call.get("mode", "nearest"), call.get("nearest_mode", "round_prefer_floor")
    spatial = all(d > 1 for d in moving) and 3 <= x.ndim <= 5
    if spatial and _agrees(call, x, to, by, where, nearest if mode == "nearest" else mode):
        if mode == "nearest":
            return F.interpolate(x, to[2:], mode="nearest")
        named = _LINEAR[x.ndim - 2] if mode == "linear" else "bicubic"
        return F.interpolate(x, to[2:], mode=named, align_corners=where == "align_corners")
    if mode == "cubic":
        raise call.refuse("its cubic interpolation is not torch's, half_pixel or align_corners over sizes; use linear")
    for d in moving:
        places = [_PLACES[where](i, x.shape[d], to[d], by[d]) for i in range(to[d])]
        x = _between(x, d, places) if mode == "linear" else _picked(x, d, [_NEAREST[nearest](p) for p in places])
    return x


def _agrees(call: Call, x: Tensor, to: list[Any], by: list[Any], where: str, how: str) -> bool:
    """Whether torch computes the same to a size: it takes its scale from the sizes, and knows three ways."""
    sizes = list(zip(x.shape, to, by, strict=True))[2:]
    if any(s != 1 and abs(m - n * s) > 1e-6 for n, m, s in sizes) and where != "align_corners":
        return False
    if how == "cubic":
        return x.ndim == 4 and where in ("half_pixel", "align_corners") and call.get("cubic_coeff_a", -0.75) == -0.75
    if how == "linear":
        return where in ("half_pixel", "align_corners") or (where == "pytorch_half_pixel" and all(m > 1 for m in to[2:]))
    return how == "floor" and where == "asymmetric"


def _picked(x: Tensor, dim: int, places: Sequence[float]) -> Tensor:
    top = x.shape[dim] - 1
    return x.index_select(dim, torch.tensor([min(max(int(p), 0), top) for p in places], device=x.device))


def _between(x: Tensor, dim: int, places: list[float]) -> Tensor:
    """Each place from its two neighbors, as near as they are."""
    low = [math.floor(p) for p in places]
    share = torch.tensor([p - f for p, f in zip(places, low, strict=True)], dtype=x.dtype, device=x.device)
    share = share.reshape([-1, *[1] * (x.ndim - 1 - dim)])
    return _picked(x, dim, low) * (1 - share) + _picked(x, dim, [f + 1 for f in low]) * share


RESIZES: dict[str, Callable[..., Any]] = {"Resize": resize, "Upsample": upsample}
