"""What each runtime does with integers, as data. A new runtime is a new profile here and one file in ``export/``.

An operation is *weighted* (convolution, linear: int8 weights), *integer* (has an int8 kernel of its own), *fused* (runs inside
the operation before it), or *passing* (moves or picks elements, so its output has its input's grid). All others are float.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from penjing.errors import RecipeError, entry
from penjing.graph.layers import CONVOLUTIONS, LINEAR, TRANSPOSED
from penjing.processor import overflows

aten = torch.ops.aten

WEIGHTED: dict[Any, int] = {  # operation -> which dim of its weight holds the output channels
    **dict.fromkeys(CONVOLUTIONS, 0),
    **dict.fromkeys(TRANSPOSED, 1),
    LINEAR: 0,
}
PRODUCTS = frozenset({aten.matmul.default, aten.bmm.default})  # of two values
PASSING = frozenset(
    {
        aten.max_pool1d.default,
        aten.max_pool2d.default,
        aten.max_pool3d.default,
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
JOINED = frozenset({aten.cat.default, aten.stack.default, aten.roll.default})  # what ONNX writes as concatenations
ADDS = frozenset({aten.add.Tensor})
POOLS = frozenset({aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim})
CLIPS = frozenset({aten.relu.default, aten.relu6.default, aten.hardtanh.default})


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime's profile.

    Attributes:
        runtime: The name of the runtime that loads the file.
        weighted: Layers with an int8 kernel, and which dim of their weight holds the output channels.
        integer: Other operations that run in int8 when their inputs and output have grids.
        fused: Activations that run inside the weighted or integer operation before them.
        signed_values: The grid of values that go below zero, a name in ``GRIDS``; those that don't, and those that are
            concatenated, have an affine one.
        ends_convolution: Whether the output of every int8 convolution needs a grid.
        shared_concat: Whether concatenated values must have one grid.
        dense_concat: Whether concatenations run in integers whose parts several concatenations read, as in DenseNet.
        channels_first: Whether norms over channels are best written without turning channels last.
        depthwise: Whether convolutions of one input channel a group run in int8.
        norms: Whether norms that fold into nothing, as between a concatenation and a ReLU, run in int8 as convolutions.
        pooled: Whether convolutions that read maps of one position, as in squeeze-excite, run in int8; a linear head does.
        first: Whether the first layer runs in int8.
        transposed_groups: Whether it has int8 transposed convolutions in groups.
        tailed_groups: Whether it is right in int8 over groups of channels that do not fill tiles, see ``has_tailed_groups``.
        weight_bits: The most bits of a weight that cannot overflow.
        lanes: Channels that its int8 kernels take at a time; other widths are padded and cost as much.
        needs: What the CPU must have for the file to be exact and fast.
    """

    name: str
    runtime: str
    weighted: Mapping[Any, int] = field(default_factory=lambda: dict(WEIGHTED))
    integer: frozenset[Any]
    fused: frozenset[Any] = CLIPS
    signed_values: str = "affine"
    ends_convolution: bool
    shared_concat: bool
    dense_concat: bool = True
    channels_first: bool = False
    depthwise: bool = True
    norms: bool = True
    pooled: bool = True
    first: bool = True
    transposed_groups: bool = True
    tailed_groups: bool = True
    weight_bits: int = 8
    lanes: int = 16
    needs: str

    def __post_init__(self) -> None:
        if unknown := set(self.weighted) - set(WEIGHTED):
            raise RecipeError(
                f"target {self.name} calls {sorted(map(str, unknown))} weighted; choose among the keys of WEIGHTED"
            )
        if both := self.integer & (self.fused | set(self.weighted) | PASSING):
            raise RecipeError(f"target {self.name} has {sorted(map(str, both))} in two roles; an operation has one")
        if not 2 <= self.weight_bits <= 8:
            raise RecipeError(f"target {self.name} has weight_bits {self.weight_bits}; give 2 to 8")


TILE = 64  # 8-bit numbers in a row of an AMX tile
WITHOUT_VNNI = "-avx2"  # what the names of those profiles end in
VNNI = "x86 with VNNI (AVX512-VNNI or AVX-VNNI), or ARM with dot products"
OLDER = "x86 with AVX2 and no VNNI: pairs of 8-bit products overflow 16 bits there, so weights have 7"

ONNXRUNTIME = Target(
    name="onnxruntime",
    runtime="onnxruntime",
    weighted=dict.fromkeys(CONVOLUTIONS | {LINEAR}, 0),  # it has no int8 transposed convolution
    integer=ADDS | POOLS | {aten.mul.Tensor, aten.cat.default, aten.sigmoid.default},
    ends_convolution=True,
    shared_concat=True,  # with grids of their own, values are requantized one by one before they are copied
    needs=VNNI,
)
OPENVINO = Target(
    name="openvino",
    runtime="openvino",
    # What lies between layers runs in the float that a convolution gives; grids there are extra work: 20 % on MobileNetV3.
    integer=frozenset(),
    signed_values="symmetric",  # a zero point other than 0 costs its convolutions a correction: 10 % on MobileNetV2
    ends_convolution=False,
    shared_concat=True,
    channels_first=True,
    transposed_groups=False,
    tailed_groups=False,  # what it gives with AMX (2026.4) has nothing to do with the answer
    needs=VNNI,
)
TARGETS = {
    t.name: t
    for base in (ONNXRUNTIME, OPENVINO)
    for t in (base, replace(base, name=base.name + WITHOUT_VNNI, weight_bits=7, needs=OLDER))
}


def has_tailed_groups(weight: Sequence[int], groups: int) -> bool:
    """Whether a convolution of one position, of a weight of that shape, has groups of more channels than a tile and a rest."""
    return groups > 1 and all(n == 1 for n in weight[2:]) and weight[1] > TILE and weight[1] % TILE != 0


SWITCHES = ("dense_concat", "norms", "depthwise", "pooled", "first")  # of a profile, that its variants turn off


def variants(target: Target) -> dict[str, Target]:
    """Other placements that are right as well, each with one thing changed; which is fastest depends on network and machine."""
    between = {"additions": ADDS, "concatenations": {aten.cat.default}, "products": {aten.mul.Tensor}, "pools": POOLS}
    found = {}
    for name, operations in between.items():
        if target.integer & operations:
            found[f"{name} in float"] = replace(target, integer=target.integer - operations)
        else:
            found[f"{name} in integers"] = replace(target, integer=target.integer | operations)
    found["norms in float"] = replace(target, norms=False, dense_concat=False)  # then nothing reads those as integers
    found["depthwise convolutions in float"] = replace(target, depthwise=False)
    found["convolutions of one position in float"] = replace(target, pooled=False)
    found["the first layer in float"] = replace(target, first=False)
    return found


def joined(target: Target, others: Sequence[Target]) -> Target:
    """The target with the changes of several of its variants."""
    integer = target.integer
    for other in others:
        integer = (integer - (target.integer - other.integer)) | (other.integer - target.integer)
    settings = {name: all(getattr(t, name) for t in (target, *others)) for name in SWITCHES}
    return replace(target, integer=integer, **settings)  # type: ignore[arg-type]  # all of them are switches


def target_named(name: str) -> Target:
    """The profile of a runtime: where the processor here has no VNNI, the flavor with weights of 7 bits.

    A file is judged where it is made, so it must be right there; weights of 7 bits are right everywhere.

    Raises:
        RecipeError: There is none of that name.
    """
    found = entry(TARGETS, name, "target")
    return TARGETS.get(name + WITHOUT_VNNI, found) if overflows() else found
