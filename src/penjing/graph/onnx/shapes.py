"""What ONNX does to shapes and orders: of tensors with torch, of sizes that are plain numbers in Python."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from penjing.graph.onnx.values import DTYPES, Call, Value, as_tensor, each, is_numbers, product, tensors

_FAR = 2**31 - 1  # exporters write "to the end" as this or more


def axes_of(call: Call, given: Value, rank: int) -> list[int] | None:
    """The axes of a node, from its attribute or its input, all >= 0; None where it names none."""
    axes = call.get("axes") if given is None else call.numbers(given, "axes")
    return None if axes is None else [a + rank if a < 0 else a for a in axes]


def reshape(call: Call, x: Value, shape: Value = None) -> Value:
    """``0`` copies a size, ``-1`` is what is left; a symbolic batch may stand anywhere."""
    asked = call.get("shape") if shape is None else call.numbers(shape, "sizes")
    if is_numbers(x):
        flat = x if isinstance(x, list) else [x]
        return flat[0] if not asked else flat if len(asked) == 1 else as_tensor(flat).reshape(asked)
    if call.get("allowzero", 0):
        return x.reshape(asked)
    return x.reshape([x.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(asked)])


def flatten(call: Call, x: Tensor) -> Tensor:
    """Everything before an axis as rows, everything from it on as columns."""
    axis = call.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    if axis == 1 and x.ndim > 1:
        return x.flatten(1)
    return x.reshape(product(x.shape[:axis]), product(x.shape[axis:]))


def squeeze(call: Call, x: Value, axes: Value = None) -> Value:
    """Dimensions of 1 taken out, all where none are named."""
    if is_numbers(x):
        return x[0] if isinstance(x, list) else x
    dims = axes_of(call, axes, x.ndim)
    return x.squeeze() if dims is None else x.squeeze(dims)


def unsqueeze(call: Call, x: Value, axes: Value = None) -> Value:
    """Dimensions of 1 put in."""
    given = call.get("axes") if axes is None else call.numbers(axes, "axes")
    if is_numbers(x):
        if not isinstance(x, list) and len(given) == 1:
            return [x]
        x = as_tensor(x)
    for axis in sorted(a + x.ndim + len(given) if a < 0 else a for a in given):
        x = x.unsqueeze(axis)
    return x


def transpose(call: Call, x: Value) -> Tensor:
    """Dimensions in another order, reversed where none is given."""
    value = as_tensor(x)
    return value.permute(call.get("perm", list(reversed(range(value.ndim)))))


def concat(call: Call, *parts: Value) -> Value:
    """Along an axis; sizes stay numbers."""
    if all(isinstance(p, list) for p in parts):
        return [n for p in parts for n in p]
    return torch.cat(tensors(*parts), call.get("axis", 1))


def split(call: Call, x: Value, sizes: Value = None) -> Value:
    """Into parts of given sizes, or as many equal ones as there are outputs."""
    if is_numbers(x):
        return [p.tolist() for p in split(call, as_tensor(x), sizes)]
    axis = call.get("axis", 0)
    given = call.get("split") if sizes is None else call.numbers(sizes, "sizes")
    if given is None:
        parts = call.get("num_outputs", call.written)
        return torch.split(x, -(-x.shape[axis] // parts), axis)
    return torch.split(x, given, axis)


def cut(call: Call, x: Value, starts: Value = None, ends: Value = None, axes: Value = None, steps: Value = None) -> Value:
    """Slices; those that run backwards too."""
    first, last = (call.get(n) if v is None else call.numbers(v, n) for n, v in (("starts", starts), ("ends", ends)))
    rank = 1 if is_numbers(x) else x.ndim
    dims = axes_of(call, axes, rank) or list(range(len(first)))
    strides = [1] * len(first) if steps is None else call.numbers(steps, "steps")
    for dim, start, end, step in zip(dims, first, last, strides, strict=True):
        x = x[start:end:step] if is_numbers(x) else _along(x, dim, start, end, step)
    return x


def _along(x: Tensor, dim: int, start: Any, end: Any, step: int) -> Tensor:
    before = (slice(None),) * dim
    if step > 0:
        stop = None if isinstance(end, int) and end >= _FAR else end
        return x[(*before, slice(start, stop, step))]
    places = range(x.shape[dim])[start:end:step]
    if not places:
        return x.narrow(dim, 0, 0)
    return x[(*before, slice(places[-1], places[0] + 1, -step))].flip(dim)


def gather(call: Call, x: Value, index: Value) -> Value:
    """Slices of ``x`` at the places that ``index`` names."""
    if is_numbers(x):
        places = call.numbers(index, "places in sizes")
        found = [x[i] for i in places]
        return found if isinstance(index, list) else found[0]
    axis = call.get("axis", 0)
    if isinstance(index, list):
        index = torch.tensor(index, device=x.device)
    if not isinstance(index, Tensor):
        return x.select(axis, index)
    axis += x.ndim if axis < 0 else 0
    index = torch.where(index < 0, index + x.shape[axis], index)
    if index.ndim == 1:
        return x.index_select(axis, index)
    return x.index_select(axis, index.flatten()).reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def pad(call: Call, x: Tensor, pads: Value = None, value: Value = None, axes: Value = None) -> Tensor:
    """Around any dimension: a constant, or what the edges show."""
    given = call.get("pads") or call.get("paddings") if pads is None else call.numbers(pads, "pads")
    fill = call.get("value", 0.0) if value is None else call.numbers(value, "value")[0]
    named = axes_of(call, axes, x.ndim)
    dims = list(range(x.ndim)) if named is None else named
    amounts = [(0, 0)] * x.ndim
    for i, dim in enumerate(dims):
        amounts[dim] = (given[i], given[i + len(dims)])
    mode = call.get("mode", "constant")
    if mode == "constant":
        return F.pad(x, [n for pair in reversed(amounts) for n in pair], value=fill)
    if mode not in _SHOWN:
        raise call.refuse(f"its mode is {mode!r}; constant, reflect, edge and wrap can be read")
    if 3 <= x.ndim <= 5 and not any(a or b for a, b in amounts[:2]) and mode != "wrap" and min(map(min, amounts)) >= 0:
        return F.pad(x, [n for pair in reversed(amounts[2:]) for n in pair], mode=_SHOWN[mode])
    for dim, (before, after) in enumerate(amounts):
        if before or after:
            x = x.index_select(dim, _shown(mode, x.shape[dim], before, after).to(x.device))
    return x


_SHOWN = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _shown(mode: str, size: int, before: int, after: int) -> Tensor:
    """Which elements padding shows along one dimension, in order."""
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    return (size - 1) - ((size - 1) - places.abs()).abs()


def expand(call: Call, x: Value, shape: Value) -> Value:
    """Copies along dimensions of 1; unlike torch's, a size of 1 takes what the input has."""
    asked = call.numbers(shape, "sizes")
    value = as_tensor(x)
    rank = max(value.ndim, len(asked))
    own, asked = [1] * (rank - value.ndim) + list(value.shape), [1] * (rank - len(asked)) + asked
    return value.expand([n if isinstance(a, int) and a == 1 else a for a, n in zip(asked, own, strict=True)])


def tile(call: Call, x: Value, repeats: Value) -> Tensor:
    """Copies one after another."""
    return as_tensor(x).repeat(call.numbers(repeats, "repeats"))


def shape_of(call: Call, x: Value) -> list[Any]:
    """Sizes as numbers, symbolic ones where they are free."""
    if is_numbers(x):
        return [len(x)] if isinstance(x, list) else []
    return list(x.shape)[call.get("start", 0) : call.get("end")]


def size_of(_call: Call, x: Value) -> Any:
    """Number of elements."""
    return product(x.shape) if isinstance(x, Tensor) else len(x) if isinstance(x, list) else 1


def filled(call: Call, shape: Value) -> Value:
    """``ConstantOfShape``: one value everywhere."""
    sizes, value = call.numbers(shape, "sizes"), call.get("value", torch.zeros(1))
    whole = not value.is_floating_point()
    if whole and len(sizes) == 1 and isinstance(sizes[0], int) and sizes[0] <= 16:
        return [value.item()] * sizes[0]
    return torch.full(sizes, value.item(), dtype=value.dtype)


def counted(call: Call, start: Value, limit: Value, delta: Value) -> Value:
    """``Range``."""
    first, last, step = (call.numbers(v, "bounds")[0] for v in (start, limit, delta))
    if all(isinstance(n, int) for n in (first, last, step)):
        return list(range(first, last, step))
    return torch.arange(first, last, step)


def cast(call: Call, x: Value) -> Value:
    """Another type; of numbers, that of Python."""
    dtype = DTYPES.get(call.get("to"))
    if dtype is None:
        raise call.refuse(f"torch has no counterpart of its type {call.get('to')}")
    if isinstance(x, Tensor):
        return x if x.dtype == dtype else x.to(dtype)
    if dtype == torch.bool:
        return each(bool, x)
    return each(torch.sym_float if dtype.is_floating_point else torch.sym_int, x)


SHAPES: dict[str, Callable[..., Any]] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "Concat": concat,
    "Split": split,
    "Slice": cut,
    "Gather": gather,
    "Pad": pad,
    "Expand": expand,
    "Tile": tile,
    "Shape": shape_of,
    "Size": size_of,
    "ConstantOfShape": filled,
    "Range": counted,
    "Cast": cast,
}
