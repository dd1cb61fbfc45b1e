"""What each operation does to channel labels: one short rule each, in one table.

A rule is ``(ledger, node, *args, **kwargs) -> labels of the output``; values are label tensors (or ``Sheets`` of them),
parameters are ``Weight``. An operation that is not here freezes the channels that reach it.
"""

from typing import Any

import torch

from penjing.graph import contraction, reduction, structure
from penjing.graph.meeting import elementwise, prelu
from penjing.graph.structure import per_sheet
from penjing.graph.walk import Rule

aten = torch.ops.aten


def overloads(*names: str) -> list[Any]:
    """Every overload of the named aten operations that this torch has."""
    packets = [getattr(aten, n) for n in names if hasattr(aten, n)]
    return [getattr(p, o) for p in packets for o in p.overloads()]


_TURNING = overloads(
    "permute", "transpose", "t", "movedim", "squeeze", "unsqueeze", "expand", "clone", "contiguous", "alias", "detach",
    "lift_fresh_copy", "swapaxes", "numpy_T", "mT", "adjoint",
)  # fmt: skip
_ELEMENTWISE = overloads(
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "sigmoid", "tanh", "hardtanh",
    "hardsigmoid", "hardswish", "log_sigmoid", "exp", "log", "sqrt", "rsqrt", "square", "abs", "neg", "sign", "erf", "sin",
    "cos", "reciprocal", "clamp", "clip", "clamp_min", "clamp_max", "pow", "add", "sub", "rsub", "mul", "div", "maximum",
    "minimum", "where", "dropout", "feature_dropout", "_to_copy", "to", "softsign", "hardshrink", "softshrink",
    "threshold", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "floor", "ceil", "round",
    "addcmul", "addcdiv", "rrelu", "hardtanh_", "alpha_dropout", "feature_alpha_dropout", "glu_jvp", "bitwise_not",
    "bitwise_and", "bitwise_or", "nan_to_num", "erfc", "expm1", "log1p", "log2", "log10", "tan", "atan", "sinh", "cosh",
    "trunc", "frac", "remainder", "fmod", "floor_divide", "true_divide", "multiply", "subtract", "lerp", "xlogy", "copysign",
    "atan2", "isnan", "isinf", "isfinite", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "masked_fill",
    "float_power", "logaddexp", "hypot", "relu_", "bernoulli", "new_zeros_like", "asin", "acos", "asinh", "acosh",
    "atanh", "sinc",
)  # fmt: skip
_POOLING = overloads(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "reflection_pad1d",
    "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "lp_pool1d",
    "lp_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa", "upsample_linear1d",
)  # fmt: skip
_REDUCTIONS = overloads("sum", "mean", "amax", "amin", "logsumexp", "nansum", "prod")

RULES: dict[Any, Rule] = {
    **dict.fromkeys(_TURNING, per_sheet(structure.moved, ragged=True)),
    **dict.fromkeys(
        overloads("pixel_unshuffle", "repeat", "repeat_interleave", "tile", "unfold", "diagonal"), per_sheet(structure.moved)
    ),
    **dict.fromkeys(overloads("cat", "concat", "concatenate", "stack"), structure.gathered),
    **dict.fromkeys(
        overloads("view", "_unsafe_view", "reshape", "flatten", "unflatten", "view_as", "reshape_as"),
        per_sheet(structure.reshaped, ragged=True),
    ),
    **dict.fromkeys(overloads("expand_as"), structure.expanded_as),
    **dict.fromkeys(overloads("type_as"), structure.retyped),
    **dict.fromkeys(overloads("split", "split_with_sizes", "chunk"), per_sheet(structure.parted, ragged=True)),
    **dict.fromkeys(overloads("unbind"), per_sheet(structure.taken_apart, ragged=True)),
    **dict.fromkeys(overloads("slice", "select", "narrow"), per_sheet(structure.picked, ragged=True)),
    **dict.fromkeys(overloads("index_select"), per_sheet(structure.chosen)),
    **dict.fromkeys(overloads("index"), per_sheet(structure.indexed)),
    **dict.fromkeys(overloads("flip", "roll"), per_sheet(structure.turned)),
    **dict.fromkeys(overloads("channel_shuffle", "native_channel_shuffle"), per_sheet(structure.shuffled)),
    **dict.fromkeys(overloads("pixel_shuffle"), per_sheet(structure.spread)),
    **dict.fromkeys(overloads("constant_pad_nd", "pad"), per_sheet(structure.padded)),
    **dict.fromkeys(overloads("im2col"), structure.unfolded),
    **dict.fromkeys(overloads("col2im"), structure.folded),
    **dict.fromkeys([*_ELEMENTWISE, aten.max.other, aten.min.other], elementwise),
    **dict.fromkeys(overloads("prelu"), prelu),
    **dict.fromkeys(overloads("glu"), per_sheet(structure.gated)),
    **dict.fromkeys(_POOLING, per_sheet(reduction.pooling)),
    **dict.fromkeys(overloads("max_unpool2d", "max_unpool3d"), per_sheet(reduction.unpooling)),
    **dict.fromkeys(overloads("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), per_sheet(reduction.sampled)),
    **dict.fromkeys(_REDUCTIONS, reduction.reduction),
    **dict.fromkeys(overloads("var", "std"), reduction.deviation),
    **dict.fromkeys(overloads("linalg_vector_norm", "norm"), reduction.vector_norm),
    **dict.fromkeys(overloads("std_mean", "var_mean"), reduction.moments),
    **dict.fromkeys(overloads("_weight_norm"), reduction.weight_norm),
    **dict.fromkeys([aten.max.dim, aten.min.dim], reduction.extremes),
    **dict.fromkeys(
        overloads("softmax", "_softmax", "log_softmax", "_log_softmax"), per_sheet(reduction.softmax, ragged=True)
    ),
    **dict.fromkeys(overloads("conv1d", "conv2d", "conv3d"), contraction.convolution),
    **dict.fromkeys(overloads("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), contraction.transposed_convolution),
    **dict.fromkeys(overloads("linear"), contraction.linear),
    **dict.fromkeys(overloads("matmul", "mm", "bmm"), contraction.matrix_product),
    **dict.fromkeys(overloads("mv", "dot", "vdot"), contraction.vector_product),
    **dict.fromkeys(overloads("addmm", "baddbmm"), contraction.product_sum),
    **dict.fromkeys(overloads("scaled_dot_product_attention"), contraction.attention),
    **dict.fromkeys(overloads("embedding"), contraction.embedding),
    **dict.fromkeys(overloads("batch_norm", "_native_batch_norm_legit_no_training"), reduction.batch_norm),
    **dict.fromkeys(overloads("instance_norm"), reduction.instance_norm),
    **dict.fromkeys(overloads("group_norm"), reduction.group_norm),
    **dict.fromkeys(overloads("layer_norm", "rms_norm"), reduction.layer_norm),
}  # fmt: skip
