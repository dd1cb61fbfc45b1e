"""The references that a cut is held against.

Both run the user's own module at its full size: they neither look at the exported graph nor at what the labelling says
about consumers, so they share nothing with what they judge. One has zeros where a layer sums over the channels that the
plan drops; that is no statement about networks that take means or maxima over channels. The other has NaN for whatever the
plan drops, and operations that pass over NaN.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from penjing.graph import Channels, Graph, Group, capture, find_channels
from penjing.plan import ChannelPlan
from penjing.prune.decide import allowed_widths
from tests.nets import AWKWARD, CUTTABLE, IMAGE, MIXING, REWRITTEN, SHAPES, UNWILLING, Make, Shapes


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """The same model in eval mode with every weight and statistic at random, so that nothing is hidden by a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in _tensors(model).items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            fan = max(1, value[0].numel() if value.ndim > 1 else 4)
            drawn = drawn.abs() + 0.5 if "var" in name else 0.3 + drawn * (2 / fan) ** 0.5
            value.data.copy_(drawn)
    return model.eval()


def inputs(shapes: Shapes, batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Random inputs, the same at every call."""
    generator = torch.Generator().manual_seed(batch)
    return tuple(torch.randn(batch, *s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)


def kept_count(channels: int, ratio: float, round_to: int, *, blocks: int = 1, floor: float = 0.0) -> int:
    """How many of ``channels`` stay: of the widths allowed the nearest to ``channels * (1 - ratio)``, or the wider of two."""
    widths = allowed_widths(channels, round_to, blocks=blocks, floor=floor)
    return min(widths, key=lambda width: abs(channels - width - ratio * channels))


def choose_widths(channels: Channels, ratio: float, *, round_to: int = 1, floor: float = 0.1) -> dict[str, int]:
    """How many channels of each group stay when every group loses the same share."""

    def kept(group: Group) -> int:
        blocks = 1 if group.blocks is None else len(group.blocks)
        return kept_count(group.channels, ratio, round_to, blocks=blocks, floor=floor)

    return {g.name: kept(g) for g in channels.groups}


def chosen(channels: Channels, ratio: float | None = 0.5, round_to: int = 1, seed: int = 0) -> ChannelPlan:
    """A plan that drops channels of every group by lot: what is cut must not matter to whether the cut is right.

    ``ratio`` too is drawn for each group when it is None.
    """
    generator = torch.Generator().manual_seed(seed)
    gone: dict[tuple[str, int], set[int]] = {}
    for group in channels.groups:
        rows = torch.arange(group.channels)[None] if group.blocks is None else group.blocks
        share = float(torch.rand((), generator=generator)) if ratio is None else ratio
        kept = kept_count(group.channels, share, round_to, blocks=len(rows)) // len(rows)
        lots = torch.cat([row[torch.randperm(len(row), generator=generator)[kept:]] for row in rows])
        for axis in group.axes:
            gone.setdefault((axis.name, axis.dim), set()).update(axis.index[lots].flatten().tolist())
    keep: dict[str, dict[int, tuple[int, ...]]] = {}
    for (name, dim), lost in gone.items():
        if lost:
            keep.setdefault(name, {})[dim] = tuple(i for i in range(channels.shapes[name][dim]) if i not in lost)
    return ChannelPlan(keep)


NETS: dict[str, Make] = {
    **CUTTABLE, **MIXING, **AWKWARD, **UNWILLING, **{f"{name}, rewritten": make for name, make in REWRITTEN.items()},
}  # fmt: skip


# Those that compute in one precision whatever they are given, and how far two of their outputs may be apart.
IN_THEIR_OWN_PRECISION = {"float_inside": 1e-5, "autocast_inside": 0.05}


@functools.cache
def read_of(name: str) -> tuple[nn.Module, Graph, Channels]:
    """A network of ``tests/nets.py`` at random, and what is read of it; once a session, since that is what takes time."""
    dtype = torch.float32 if name in IN_THEIR_OWN_PRECISION else torch.float64
    model = randomized(NETS[name]()).to(dtype)
    graph = capture(model, inputs(SHAPES.get(name, IMAGE), dtype=dtype))
    return model, graph, find_channels(graph)


def channels_of(name: str) -> Channels:
    """What a network of ``tests/nets.py`` is found to have."""
    return read_of(name)[2]


def first_layer(model: nn.Module) -> str:
    """The name of the weight that reads the input."""
    names = [name for name, p in model.named_parameters() if p.ndim > 1]
    return "a.weight" if "a.weight" in names else names[0]


def zeroed(model: nn.Module, plan: ChannelPlan) -> nn.Module:
    """The reference: a copy of ``model`` whose layers read nothing from the channels that ``plan`` drops."""
    reference = copy.deepcopy(model)
    for name, module in reference.named_modules(remove_duplicate=False):
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or not isinstance(weight, nn.Parameter):
            continue
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        if not transposed and getattr(module, "groups", 1) > 1 == weight.shape[1]:  # depthwise: it sums over no channels
            continue
        reads = 0 if transposed else 1
        kept = plan.keep.get(f"{name}.weight", {}).get(reads)
        if kept is not None:
            gone = [i for i in range(weight.shape[reads]) if i not in set(kept)]
            weight.data.index_fill_(reads, torch.tensor(gone, dtype=torch.int64), 0)
    return reference


def shifted(model: nn.Module, plan: ChannelPlan) -> ChannelPlan:
    """As many channels as ``plan`` keeps, but each the neighbour of one it keeps."""
    shapes = {name: value.shape for name, value in _tensors(model).items()}
    return ChannelPlan(
        {
            name: {d: tuple(sorted((i + 1) % shapes[name][d] for i in index)) for d, index in dims.items()}
            for name, dims in plan.keep.items()
        }
    )


def difference(found: Any, expected: Any) -> float:
    """The largest difference of two outputs of one structure, relative to the largest value; infinite when shapes differ."""
    pairs = list(zip(tree_leaves(found), tree_leaves(expected), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    assert all(a.isfinite().all() and b.isfinite().all() for a, b in pairs)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def absent(model: nn.Module, plan: ChannelPlan) -> Callable[..., Any]:
    """The reference for networks that mix channels in any way: what ``plan`` drops is NaN, and mixes pass over NaN."""
    reference = copy.deepcopy(model)
    for name, value in _tensors(reference).items():
        for dim, kept in plan.keep.get(name, {}).items():
            gone = [i for i in range(value.shape[dim]) if i not in set(kept)]
            value.data.index_fill_(dim, torch.tensor(gone, dtype=torch.int64), torch.nan)

    def run(*x: Tensor) -> Any:
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # so that attention is made of operations that are known here
        try:
            with torch.no_grad(), PassOver():
                return reference(*x)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)

    return run


class PassOver(TorchDispatchMode):
    """While it is on, whatever sums, averages or compares elements takes those that are not NaN; of none it makes NaN."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        known = _PASSING.get(func.overloadpacket.__name__)
        return (known or func)(*args, **(kwargs or {}))


def _there(x: Tensor) -> Tensor:
    return x.nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    out = torch.ops.aten.convolution(_there(x), _there(weight), None, *settings)
    groups = settings[5]
    transposed = settings[3]
    rows = weight.view(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1) if transposed else weight
    gone = rows.flatten(1).isnan().all(1)
    shift = torch.zeros(len(gone), dtype=out.dtype) if bias is None else bias
    column = (-1, *[1] * (out.ndim - 2))
    return torch.where(gone.view(column), torch.nan, out + shift.view(column))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of matrices or batches of them."""
    gone = a.isnan().all(-1)[..., :, None] | b.isnan().all(-2)[..., None, :]
    return torch.where(gone, torch.nan, _there(a) @ _there(b))


def _vector_product(a: Tensor, b: Tensor) -> Tensor:
    return _product(a, b[:, None])[:, 0]


def _product_sum(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return bias + _product(a, b)


def _sum(x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    dim = list(range(x.ndim)) if dim is None or dim == [] else dim
    return torch.where(_all_nan(x, dim, keepdim), torch.nan, x.nansum(dim, keepdim)).to(x.dtype)


def _all_nan(x: Tensor, dim: Any, keepdim: bool) -> Tensor:
    return x.isnan().to(x.dtype).amin(dim, keepdim).bool()


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    return x.nanmean(dim, keepdim)


def _var(x: Tensor, dim: Any = None, correction: float = 1, keepdim: bool = False, **_: Any) -> Tensor:
    count = (~x.isnan()).to(x.dtype).sum(dim, keepdim)
    squares = (x - x.nanmean(dim, True)).square()
    return _sum(squares, dim, keepdim) / (count - (1 if correction is None else correction))


def _std(*args: Any, **kwargs: Any) -> Tensor:
    return _var(*args, **kwargs).sqrt()


def _var_mean(x: Tensor, dim: Any = None, correction: float = 1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _var(x, dim, correction, keepdim), _mean(x, dim, keepdim)


def _extreme(lowest: float, func: Any) -> Any:
    def extreme(x: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
        filled = torch.where(x.isnan(), lowest, x)
        if dim is None:
            return func(filled)
        out = func(filled, dim, keepdim)
        gone = _all_nan(x, dim, keepdim)
        return torch.where(gone, torch.nan, out) if isinstance(out, Tensor) else (torch.where(gone, torch.nan, out[0]), out[1])

    return extreme


def _norm(x: Tensor, order: float = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    assert order in (1, 2)
    return _sum(x.abs() ** order, dim, keepdim) ** (1 / order)


def _softmax(x: Tensor, dim: int, *_: Any) -> Tensor:
    shares = torch.softmax(torch.where(x.isnan(), -torch.inf, x), dim)
    return torch.where(x.isnan(), torch.nan, shares)


def _log_softmax(x: Tensor, dim: int, *_: Any) -> Tensor:
    return _softmax(x, dim).log()


def _normalized(x: Tensor, dims: list[int], eps: float) -> Tensor:
    centered = x - x.nanmean(dims, keepdim=True)
    return centered * (centered.square().nanmean(dims, keepdim=True) + eps).rsqrt()


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, None, None]:
    return _scaled(_normalized(x, list(range(-len(shape), 0)), eps), weight, bias), None, None


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, _hw: int, groups: int, eps: float
) -> tuple[Tensor, None, None]:
    out = _normalized(x.reshape(n, groups, -1), [2], eps).view(x.shape)
    column = (c, *[1] * (x.ndim - 2))
    weight, bias = (None if p is None else p.view(column) for p in (weight, bias))
    return _scaled(out, weight, bias), None, None


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, *settings: Any
) -> tuple[Tensor, None, None]:
    column = (-1, *[1] * (x.ndim - 2))
    training, eps = settings[0], settings[-1]
    if training or mean is None or var is None:
        out = _normalized(x, [d for d in range(x.ndim) if d != 1], eps)
    else:
        out = (x - mean.view(column)) * (var.view(column) + eps).rsqrt()
    weight, bias = (None if p is None else p.view(column) for p in (weight, bias))
    return _scaled(out, weight, bias), None, None


def _batch_norm_without_statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, _momentum: float, eps: float
) -> tuple[Tensor, None, None]:
    return _batch_norm(x, weight, bias, None, None, training, eps)


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **settings: Any) -> tuple[Tensor, None]:
    scale, mask = settings.get("scale") or q.shape[-1] ** -0.5, settings.get("attn_mask")
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = _product(q, k.transpose(-1, -2)) * scale
    return _product(_softmax(scores if mask is None else scores + mask, -1), v), None


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, None]:
    return v * g / _norm(v, 2, [d for d in range(v.ndim) if d != dim], True), None


_PASSING: dict[str, Callable[..., Any]] = {
    "convolution": _convolution,
    "mm": _product,
    "bmm": _product,
    "mv": _vector_product,
    "dot": lambda a, b: _sum(a * b),
    "vdot": lambda a, b: _sum(a * b),
    "addmm": _product_sum,
    "baddbmm": _product_sum,
    "sum": _sum,
    "mean": _mean,
    "var": _var,
    "std": _std,
    "var_mean": _var_mean,
    "std_mean": lambda *args, **settings: ((found := _var_mean(*args, **settings))[0].sqrt(), found[1]),
    "logsumexp": _extreme(-torch.inf, torch.logsumexp),
    "amax": _extreme(-torch.inf, torch.amax),
    "amin": _extreme(torch.inf, torch.amin),
    "max": _extreme(-torch.inf, torch.max),
    "min": _extreme(torch.inf, torch.min),
    "linalg_vector_norm": _norm,
    "norm": _norm,
    "_softmax": _softmax,
    "_log_softmax": _log_softmax,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": lambda x, w, b, m, v, _momentum, eps: _batch_norm(x, w, b, m, v, False, eps),
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_weight_norm_interface": _weight_norm,
}
