"""What each runtime does with integers, as data. A new runtime is a new profile here and one file in ``export/``.

An operation is *weighted* (convolution, linear: int8 weights), *integer* (has an int8 kernel of its own), *fused* (runs inside
the operation before it), or *passing* (moves or picks elements, so its output has its input's grid). All others are float.
"""

from dataclasses import dataclass
from typing import Any

import torch

from penjing.errors import entry

aten = torch.ops.aten

WEIGHTED: dict[Any, int] = {  # operation -> which dim of its weight holds the output channels
    aten.conv1d.default: 0,
    aten.conv2d.default: 0,
    aten.conv3d.default: 0,
    **{getattr(aten, f"conv{n}d").padding: 0 for n in (1, 2, 3)},  # padding="same"
    aten.conv_transpose2d.input: 1,
    aten.linear.default: 0,
}
CONVOLUTIONS = frozenset(WEIGHTED) - {aten.linear.default}
PASSING = frozenset(
    {
        aten.max_pool2d.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.contiguous.default,
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.permute.default,
        aten.transpose.int,
        aten.clone.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.pixel_shuffle.default,
        aten.pixel_unshuffle.default,
        aten.slice.Tensor,
        aten.dropout.default,
    }
)
ADDS = frozenset({aten.add.Tensor})
POOLS = frozenset({aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim})
CLIPS = frozenset({aten.relu.default, aten.relu6.default, aten.hardtanh.default})


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime's profile."""

    name: str
    integer: frozenset[Any]  # operations that run in int8 when their inputs and output have grids
    fused: frozenset[Any] = CLIPS  # activations that run inside the weighted or integer operation before them
    shared_concat: bool  # concatenated values must have one grid
    lanes: int = 16  # channels that its int8 kernels take at a time; other widths are padded and cost as much


ONNXRUNTIME = Target(
    name="onnxruntime",
    integer=ADDS | POOLS | {aten.mul.Tensor, aten.cat.default, aten.sigmoid.default},
    shared_concat=False,
)
OPENVINO = Target(
    name="openvino",
    integer=ADDS | POOLS | {aten.mul.Tensor, aten.cat.default},
    shared_concat=True,
)
TARGETS = {t.name: t for t in (ONNXRUNTIME, OPENVINO)}


def target_named(name: str) -> Target:
    """The profile of a runtime.

    Raises:
        RecipeError: There is none of that name.
    """
    return entry(TARGETS, name, "target")
