"""The reference that a cut is held against.

It is the user's own module with zeros where a layer sums over the channels that the plan drops: it neither looks at the
exported graph nor at what the labelling says about consumers, so it shares nothing with what it judges.
"""

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penjing.graph import Channels, capture, find_channels
from penjing.plan import ChannelPlan
from penjing.prune.decide import kept_count
from tests.nets import AWKWARD, CUTTABLE, IMAGE, SHAPES, UNWILLING, Shapes


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


def chosen(channels: Channels, ratio: float = 0.5, round_to: int = 1, seed: int = 0) -> ChannelPlan:
    """A plan that drops channels of every group by lot: what is cut must not matter to whether the cut is right."""
    generator = torch.Generator().manual_seed(seed)
    gone: dict[tuple[str, int], set[int]] = {}
    for group in channels.groups:
        lots = torch.randperm(group.channels, generator=generator)[kept_count(group.channels, ratio, round_to) :]
        for axis in group.axes:
            gone.setdefault((axis.name, axis.dim), set()).update(axis.index[lots].flatten().tolist())
    keep: dict[str, dict[int, tuple[int, ...]]] = {}
    for (name, dim), lost in gone.items():
        if lost:
            keep.setdefault(name, {})[dim] = tuple(i for i in range(channels.shapes[name][dim]) if i not in lost)
    return ChannelPlan(keep)


@functools.cache
def channels_of(name: str) -> Channels:
    """What a network of ``tests/nets.py`` is found to have; read once a session, since that is what takes time."""
    return find_channels(capture({**CUTTABLE, **AWKWARD, **UNWILLING}[name](), inputs(SHAPES.get(name, IMAGE))))


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
