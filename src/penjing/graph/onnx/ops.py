"""What each ONNX operator computes, as one table of functions: ``(call, inputs...) -> output``, or a list of outputs.

Elementwise operations, activations, norms and reductions are here; windows, shapes and resizing have files of their own.
Inputs are tensors, or plain numbers where ONNX computes sizes (see ``values``); inputs left out are None.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from penjing.graph.onnx.resize import RESIZES
from penjing.graph.onnx.shapes import SHAPES, axes_of
from penjing.graph.onnx.values import Call, Value, as_tensor, each, is_numbers, quotient, tensors
from penjing.graph.onnx.windows import WINDOWS

Operation = Callable[..., Any]


def _of_two(function: Operation, numbers: Operation | None = None) -> Operation:
    """An operation on two values that broadcast: tensors, numbers, or one of each."""

    def apply(_call: Call, a: Value, b: Value) -> Value:
        if is_numbers(a) and is_numbers(b):
            return each(numbers or function, a, b)
        if isinstance(a, list) or isinstance(b, list):
            a, b = tensors(a, b)
        return function(a, b)

    return apply


def _of_one(function: Operation, numbers: Operation | None = None) -> Operation:
    """An operation on every element; of numbers where it is also given for them."""

    def apply(_call: Call, x: Value) -> Value:
        return each(numbers, x) if is_numbers(x) and numbers is not None else function(as_tensor(x))

    return apply


def _of_many(function: Operation, numbers: Operation) -> Operation:
    """An operation on two values, over any number of them."""

    def both(a: Value, b: Value) -> Value:
        return each(numbers, a, b) if is_numbers(a) and is_numbers(b) else function(*tensors(a, b))

    return lambda _call, *values: functools.reduce(both, values)


def _divided(a: Any, b: Any) -> Any:
    whole = all(not v.is_floating_point() if isinstance(v, Tensor) else isinstance(v, int) for v in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def _power(a: Any, b: Any) -> Any:
    out = a**b
    return out.to(a.dtype) if isinstance(a, Tensor) and out.dtype != a.dtype else out


def _mean(_call: Call, *values: Value) -> Tensor:
    """Of several values, element by element."""
    total: Tensor = functools.reduce(operator.add, values)
    return total / len(values)


def _either(_call: Call, condition: Value, a: Value, b: Value) -> Value:
    """``Where``."""
    if all(is_numbers(v) for v in (condition, a, b)):
        return each(lambda c, p, q: p if c else q, condition, a, b)
    condition, a, b = tensors(condition, a, b)
    kind = torch.promote_types(a.dtype, b.dtype)
    return torch.where(condition, a.to(kind), b.to(kind))


def _clip(call: Call, x: Value, low: Value = None, high: Value = None) -> Value:
    low, high = (b[0] if isinstance(b, list) else b for b in (call.get("min", low), call.get("max", high)))
    if is_numbers(x):
        return each(lambda n: max(n if high is None else min(n, high), n if low is None else low), x)
    if low == 0 and high == 6 and not isinstance(low, Tensor):
        return F.relu6(x)
    for bound, apply in ((low, torch.clamp_min), (high, torch.clamp_max)):
        if isinstance(bound, Tensor):
            x = apply(x, bound)
    bounds = [None if isinstance(b, Tensor) else b for b in (low, high)]
    return x if bounds == [None, None] else torch.clamp(x, *bounds)


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _selu(call: Call, x: Tensor) -> Tensor:
    alpha, gamma = call.get("alpha", 1.67326319217681884765625), call.get("gamma", 1.05070102214813232421875)
    found: Tensor = gamma * F.elu(x, alpha)
    return found


def _prelu(_call: Call, x: Tensor, slope: Value) -> Tensor:
    return torch.where(x >= 0, x, x * slope)


def _softmax(function: Operation) -> Operation:
    """Over one axis; before opset 13 over all from that axis on."""

    def apply(call: Call, x: Tensor) -> Tensor:
        axis = call.get("axis", -1 if call.opset >= 13 else 1)
        axis += x.ndim if axis < 0 else 0
        result: Tensor
        if call.opset >= 13 or axis == x.ndim - 1:
            result = function(x, axis)
        else:
            result = function(x.flatten(axis), axis).reshape(x.shape)
        return result

    return apply


def _gemm(call: Call, a: Tensor, b: Tensor, c: Value = None) -> Tensor:
    """Matrix product with transpositions, factors and something added; one with constant weights is a layer."""
    left, right = (m.t() if call.get(f"trans{n}", 0) else m for n, m in (("A", a), ("B", b)))
    out = torch.matmul(left, right)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    out = out if alpha == 1 else out * alpha
    return out if c is None else out + (c if beta == 1 else c * beta)


def _batch_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """With weights that are computed; one with constant weights is a layer."""
    if call.get("training_mode", 0):
        raise call.refuse("it is in training mode; export the network after model.eval()")
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, call.get("epsilon", 1e-5))


def _instance_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.instance_norm(x, None, None, scale, shift, True, 0.0, call.get("epsilon", 1e-5))


def _group_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    groups = call.get("num_groups")
    if scale.shape[0] != x.shape[1]:  # before opset 21: one a group
        size = x.shape[1] // groups
        scale, shift = scale.repeat_interleave(size), shift.repeat_interleave(size)
    return F.group_norm(x, groups, scale, shift, call.get("epsilon", 1e-5))


def _layer_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Any:
    """Over all dimensions from an axis on; the mean and the inverse deviation too, where they are used."""
    axis, eps = call.get("axis", -1), call.get("epsilon", 1e-5)
    shape = x.shape[axis:]
    if scale.shape == shape:
        out = F.layer_norm(x, shape, scale, shift, eps)
    else:
        out = F.layer_norm(x, shape, None, None, eps) * scale
        out = out if shift is None else out + shift
    if call.outputs == 1:
        return out
    dims = list(range(axis % x.ndim, x.ndim))
    return [out, x.mean(dims, True), (x.var(dims, False, keepdim=True) + eps).rsqrt()]


def _dropout(call: Call, x: Tensor, _ratio: Value = None, training: Value = None) -> Any:
    """Nothing, since the network was written to be used; one that is trained further has it as a layer."""
    if training is not None and training is not False:
        raise call.refuse("it is in training mode; export the network after model.eval()")
    return x if call.outputs == 1 else [x, torch.ones_like(x, dtype=torch.bool)]


def _reduced(function: Operation, numbers: Operation | None = None) -> Operation:
    """A reduction ``function(x, dims, keepdim)`` over axes from an attribute or an input, all where none are named."""

    def apply(call: Call, x: Value, axes: Value = None) -> Value:
        keep = bool(call.get("keepdims", 1))
        if isinstance(x, list) and numbers is not None:
            return [numbers(x)] if keep else numbers(x)
        value = as_tensor(x)
        dims = axes_of(call, axes, value.ndim)
        if not dims and call.get("noop_with_empty_axes", 0):
            return value
        return function(value, dims or list(range(value.ndim)), keep)

    return apply


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keep)
    return x


def _running_sum(call: Call, x: Tensor, axis: Value) -> Tensor:
    """``CumSum``: from the front or the back, each with itself or without."""
    dim = call.numbers(axis, "axis")[0]
    x = x.flip(dim) if call.get("reverse", 0) else x
    total = x.cumsum(dim, dtype=x.dtype)
    total = total - x if call.get("exclusive", 0) else total
    return total.flip(dim) if call.get("reverse", 0) else total


def _largest(function: Operation) -> Operation:
    """``ArgMax`` and ``ArgMin``."""

    def apply(call: Call, x: Tensor) -> Tensor:
        axis, keep = call.get("axis", 0), bool(call.get("keepdims", 1))
        if not call.get("select_last_index", 0):
            first: Tensor = function(x, axis, keep)
            return first
        last: Tensor = x.shape[axis] - 1 - function(x.flip(axis), axis, keep)
        return last

    return apply


def _same(_call: Call, x: Value) -> Value:
    return x


_PLAIN: dict[str, Operation] = {
    "Add": _of_two(operator.add),
    "Sub": _of_two(operator.sub),
    "Mul": _of_two(operator.mul),
    "Div": _of_two(_divided, quotient),
    "Pow": _of_two(_power),
    "Equal": _of_two(operator.eq),
    "Greater": _of_two(operator.gt),
    "GreaterOrEqual": _of_two(operator.ge),
    "Less": _of_two(operator.lt),
    "LessOrEqual": _of_two(operator.le),
    "And": _of_two(operator.and_),
    "Or": _of_two(operator.or_),
    "Not": _of_one(torch.logical_not, operator.not_),
    "MatMul": lambda _call, a, b: torch.matmul(a, b),
    "Einsum": lambda call, *xs: torch.einsum(call.get("equation"), *xs),
    "Min": _of_many(torch.minimum, min),
    "Max": _of_many(torch.maximum, max),
    "Sum": _of_many(operator.add, operator.add),
    "Mean": _mean,
    "Where": _either,
    "Identity": _same,
    "Abs": _of_one(torch.abs, abs),
    "Ceil": _of_one(torch.ceil, math.ceil),
    "Cos": _of_one(torch.cos),
    "Erf": _of_one(torch.erf),
    "Exp": _of_one(torch.exp),
    "Floor": _of_one(torch.floor, math.floor),
    "Log": _of_one(torch.log),
    "Neg": _of_one(torch.neg, operator.neg),
    "Reciprocal": _of_one(torch.reciprocal, lambda n: 1 / n),
    "Round": _of_one(torch.round, round),
    "Sign": _of_one(torch.sign),
    "Sin": _of_one(torch.sin),
    "Sqrt": _of_one(torch.sqrt, lambda n: n**0.5),
}
_ACTIVATIONS: dict[str, Operation] = {
    "Celu": lambda call, x: F.celu(x, call.get("alpha", 1.0)),
    "Clip": _clip,
    "Elu": lambda call, x: F.elu(x, call.get("alpha", 1.0)),
    "Gelu": lambda call, x: F.gelu(x, approximate=call.get("approximate", "none")),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _of_one(F.hardswish),
    "LeakyRelu": lambda call, x: F.leaky_relu(x, call.get("alpha", 0.01)),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Mish": _of_one(F.mish),
    "PRelu": _prelu,
    "Relu": _of_one(torch.relu, lambda n: max(n, 0)),
    "Selu": _selu,
    "Sigmoid": _of_one(torch.sigmoid),
    "Softmax": _softmax(torch.softmax),
    "Softplus": _of_one(F.softplus),
    "Softsign": _of_one(F.softsign),
    "Tanh": _of_one(torch.tanh),
}
_NORMS: dict[str, Operation] = {
    "BatchNormalization": _batch_norm,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
}
_REDUCTIONS: dict[str, Operation] = {
    "ArgMax": _largest(torch.argmax),
    "ArgMin": _largest(torch.argmin),
    "CumSum": _running_sum,
    "ReduceL1": _reduced(lambda x, dims, keep: x.abs().sum(dims, keep)),
    "ReduceL2": _reduced(lambda x, dims, keep: x.square().sum(dims, keep).sqrt()),
    "ReduceMax": _reduced(torch.amax, max),
    "ReduceMean": _reduced(torch.mean),
    "ReduceMin": _reduced(torch.amin, min),
    "ReduceProd": _reduced(_product, math.prod),
    "ReduceSum": _reduced(torch.sum, sum),
    "ReduceSumSquare": _reduced(lambda x, dims, keep: x.square().sum(dims, keep)),
}

OPERATIONS: dict[str, Operation] = {**_PLAIN, **_ACTIVATIONS, **_NORMS, **_REDUCTIONS, **WINDOWS, **SHAPES, **RESIZES}
