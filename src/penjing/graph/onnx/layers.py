"""Torch's own layers for ONNX nodes with constant weights, so that a network that was read can be cut, trained and printed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penjing.graph.onnx.values import Call, Value, as_tensor
from penjing.graph.onnx.windows import cropped, padded, window_of

_CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of inputs of any rank, which the file does not tell."""

    def _check_input_dim(self, input: Tensor) -> None:
        del input


@dataclass(frozen=True)
class Layer:
    """A layer without its weights, and what they are.

    Attributes:
        weights: Parameters and buffers by name; a layer without shift has None there.
        before: ``(call, x) -> x``, run on the input first.
        after: ``(call, y, x) -> y``, run on the output.
    """

    module: nn.Module
    weights: dict[str, Tensor | None]
    before: Callable[[Call, Tensor], Tensor] | None = None
    after: Callable[[Call, Tensor, Tensor], Tensor] | None = None


def _blank(make: Callable[..., nn.Module], *sizes: Any) -> nn.Module:
    """A layer whose weights have no values, which costs no time and draws no random numbers."""
    with torch.device("meta"):
        return make(*sizes)


class Padded:
    """The paddings of a convolution that its layer cannot add: uneven ones, and those that depend on the input."""

    def __init__(self, kernel: Sequence[int], *, grows: bool = False) -> None:
        self.kernel, self.grows = tuple(kernel), grows

    def before(self, call: Call, x: Tensor) -> Tensor:
        """The input with zeros around it."""
        return padded(call, self.kernel, x)

    def after(self, call: Call, full: Tensor, x: Tensor) -> Tensor:
        """The output of a transposed convolution without its edges."""
        return cropped(call, self.kernel, full, x, grows=self.grows)


def _conv(call: Call, weight: Tensor, bias: Tensor | None = None) -> Layer:
    window, groups = window_of(call, weight.shape[2:]), call.get("group", 1)
    sizes = weight.shape[1] * groups, weight.shape[0]
    make = _CONV[weight.ndim - 2]
    module = _blank(make, *sizes, window.kernel, window.stride, window.even or 0, window.dilation, groups, bias is not None)
    before = None if window.even is not None else Padded(window.kernel).before
    return Layer(module, {"weight": weight, "bias": bias}, before)


def _conv_transpose(call: Call, weight: Tensor, bias: Tensor | None = None) -> Layer:
    window, groups = window_of(call, weight.shape[2:]), call.get("group", 1)
    even = None if "output_shape" in call.attributes else window.even
    extra = call.get("output_padding", [0] * len(window.kernel))
    sizes = weight.shape[0], weight.shape[1] * groups
    make = _TRANSPOSED[weight.ndim - 2]
    if even is None or call.get("auto_pad", "NOTSET").startswith("SAME"):
        module = _blank(make, *sizes, window.kernel, window.stride, 0, extra, groups, bias is not None, window.dilation)
        return Layer(module, {"weight": weight, "bias": bias}, after=Padded(window.kernel, grows=bias is None).after)
    module = _blank(make, *sizes, window.kernel, window.stride, even, extra, groups, bias is not None, window.dilation)
    return Layer(module, {"weight": weight, "bias": bias})


def _linear(weight: Tensor, bias: Tensor | None) -> Layer:
    return Layer(_blank(nn.Linear, weight.shape[1], weight.shape[0], bias is not None), {"weight": weight, "bias": bias})


def _matmul(_call: Call, weight: Tensor) -> Layer | None:
    return _linear(weight.t(), None) if weight.ndim == 2 else None


def _gemm(call: Call, weight: Tensor, added: Value = None) -> Layer | None:
    bias = None if added is None else as_tensor(added)
    out = weight.shape[0 if call.get("transB", 0) else 1]
    if call.get("transA", 0) or (bias is not None and (bias.numel() not in (1, out) or bias.shape[:-1].numel() != 1)):
        return None
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    rows = weight if call.get("transB", 0) else weight.t()
    shift = None if bias is None else (bias if beta == 1 else bias * beta).flatten().expand(out)
    return _linear(rows if alpha == 1 else rows * alpha, shift)


def _batch_norm(call: Call, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Layer:
    if call.get("training_mode", 0):
        raise call.refuse("it is in training mode; export the network after model.eval()")
    module = _blank(BatchNorm, scale.shape[0], call.get("epsilon", 1e-5), round(1 - call.get("momentum", 0.9), 7))
    counted = torch.zeros((), dtype=torch.int64)
    statistics = {"running_mean": mean, "running_var": variance, "num_batches_tracked": counted}
    return Layer(module, {"weight": scale, "bias": shift, **statistics})


def _prelu(_call: Call, value: Value) -> Layer | None:
    slope = as_tensor(value)
    if slope.numel() > 1 and (slope.ndim < 2 or slope.numel() not in slope.shape[:2] or slope.shape[-1] != 1):
        return None  # one slope a place, or along a dimension that is not that of the channels
    return Layer(_blank(nn.PReLU, slope.numel()), {"weight": slope.flatten()})


def _dropout(call: Call, ratio: Value = None, training: Value = None) -> Layer | None:
    share = call.get("ratio", 0.5) if ratio is None else ratio
    return None if training or call.outputs > 1 else Layer(nn.Dropout(share), {})


# (call, its inputs without the first) -> the layer; None where the node is none, and runs as a function
LAYERS: dict[str, Callable[..., Layer | None]] = {
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "PRelu": _prelu,
}
