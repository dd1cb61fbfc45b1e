"""The oracle: the pruned network equals the original with the removed channels' contribution zeroed at the consumers.

The reference never cuts anything: it runs the exported graph of the original in float64 and masks, where a weight sums
over channels, the indices that the plan drops. It shares no code with the surgery.
"""

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from penjing.errors import ModelError, NotEquivalent
from penjing.graph import capture, find_channels
from penjing.plan import ChannelPlan

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative to the largest value of the output


class Masked(fx.Interpreter):
    """Run a graph with the ``keep`` indices of some weights as they are and all others zeroed."""

    def __init__(self, module: fx.GraphModule, keep: Mapping[str, Mapping[int, tuple[int, ...]]]) -> None:
        super().__init__(module)
        self.keep = keep

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:
        value: Tensor = super().get_attr(target, args, kwargs)
        for dim, index in self.keep.get(str(target), {}).items():
            mask = torch.zeros(value.shape[dim], dtype=value.dtype, device=value.device)
            mask[list(index)] = 1
            value = value * mask.view([-1 if d == dim else 1 for d in range(value.ndim)])
        return value


def verify_pruned(model: nn.Module, small: nn.Module, plan: ChannelPlan, example: tuple[Tensor, ...]) -> float:
    """Compare the two on random inputs of the example's shapes.

    Returns:
        The largest difference, relative to the largest value of the output.

    Raises:
        NotEquivalent: They differ, or the smaller one does not run; names the first value that differs.
    """
    graph, cut = capture(model, example), _captured(small, example)
    reads = find_channels(graph).reads
    consumers = {n: {d: i for d, i in dims.items() if (n, d) in reads} for n, dims in plan.keep.items()}
    generator = torch.Generator().manual_seed(0)
    drawn = tuple(torch.randn(x.shape, generator=generator).to(x.device) if x.is_floating_point() else x for x in graph.example)
    for dtype, tolerance in TOLERANCE.items():
        reference, pruned = Masked(graph.module.to(dtype), consumers), fx.Interpreter(cut.to(dtype))
        try:
            # The example is for models that take no random numbers, such as the logarithm of a positive image.
            for inputs in (_typed(drawn, dtype), _typed(graph.example, dtype)):
                expected, found = _outputs(reference, inputs), _outputs(pruned, inputs)
                if all(_is_finite(x) for x in expected):
                    break
            else:
                raise NotEquivalent(
                    "the model gives NaN or infinity on random inputs and on the example, so nothing can be proved"
                )
        except RuntimeError as e:  # a dtype is written into the model: compare in the one it was made for
            if dtype == torch.float32:
                raise NotEquivalent(f"the pruned model does not run: {e}; {_CURE}") from e
            continue
        error = max(map(_relative, found, expected), default=0.0) if len(found) == len(expected) else math.inf
        if error > tolerance:
            where = _first_difference(reference, pruned, plan, inputs, tolerance)
            raise NotEquivalent(
                f"the pruned model differs from the original by {error:.1e} (relative), first in {where}; {_CURE}"
            )
        return error
    raise AssertionError("unreachable: float32 either returns or raises")


def _typed(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def _outputs(interpreter: fx.Interpreter, inputs: tuple[Tensor, ...]) -> list[Any]:
    with torch.no_grad():
        return tree_leaves(interpreter.run(*inputs))


def _is_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())


_CURE = "its forward handles channels in a way that was not understood; leave these layers whole with exclude=[...]"


def _captured(small: nn.Module, example: tuple[Tensor, ...]) -> fx.GraphModule:
    try:
        return capture(small, example).module
    except ModelError as e:
        raise NotEquivalent(f"the pruned model does not run, its forward has sizes written into it; {_CURE} ({e})") from e


def _relative(a: Any, b: Any) -> float:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return 0.0 if type(a) is type(b) and a == b else math.inf
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    a, b = a.detach().double(), b.detach().double()
    error = float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
    return math.inf if math.isnan(error) else error


def _first_difference(
    reference: fx.Interpreter, found: fx.Interpreter, plan: ChannelPlan, inputs: tuple[Tensor, ...], tolerance: float
) -> str:
    """The first weighted operation whose kept outputs differ."""
    pairs = zip(_weighted(reference, inputs), _weighted(found, inputs), strict=False)
    for (name, expected), (_, value) in pairs:
        index = plan.keep.get(name, {}).get(0)
        if index is not None and expected.ndim > 1 and expected.shape[1] > max(index):
            expected = expected.index_select(1, torch.tensor(index, device=expected.device))
        if _relative(value, expected) > tolerance:
            return name
    return "the output"


def _weighted(interpreter: fx.Interpreter, inputs: tuple[Tensor, ...]) -> list[tuple[str, Tensor]]:
    """Each value that is computed from a parameter, with the parameter's name, in order."""
    interpreter.garbage_collect_values = False
    with torch.no_grad():
        interpreter.run(*inputs)
    weighted = []
    for node in interpreter.graph.nodes:
        names = [str(i.target) for i in node.all_input_nodes if i.op == "get_attr"]
        value = interpreter.env.get(node)
        value = value[0] if isinstance(value, tuple) and node.target is not operator.getitem else value
        if names and isinstance(value, Tensor):
            weighted.append((names[0], value))
    return weighted
