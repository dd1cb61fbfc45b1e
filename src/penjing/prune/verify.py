"""The oracle: the pruned network equals the original in which the removed channels take no part.

The reference never cuts anything (``prune/masked.py``): it runs the exported graph of the original in float64. The pruned
network runs as it is, in its own Python code, so the two share nothing but the labels of what is dropped.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from penjing.errors import ModelError, NotEquivalent
from penjing.graph import Channels, Graph, capture, find_channels
from penjing.graph.quiet import without_torchs_own_noise
from penjing.plan import ChannelPlan
from penjing.prune.double import Double
from penjing.prune.masked import Masked

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative to the largest value of the output
_CURE = (
    "its forward handles channels in a way that was not understood, or the plan is not one that was made for it; "
    "leave these layers whole with exclude=[...]"
)


def verify_pruned(model: nn.Module, small: nn.Module, plan: ChannelPlan, example: tuple[Tensor, ...]) -> float:
    """Compare the two on random inputs of the example's shapes.

    Returns:
        The largest difference, relative to the largest value of the output.

    Raises:
        NotEquivalent: They differ, or the smaller one does not run; names the first value that differs.
    """
    graph = capture(model, example)
    return verify_against(graph, find_channels(graph), small, plan)


def verify_against(graph: Graph, channels: Channels, small: nn.Module, plan: ChannelPlan) -> float:
    """``verify_pruned`` for a model that was read already."""
    generator = torch.Generator().manual_seed(0)
    drawn = tuple(torch.randn(x.shape, generator=generator).to(x.device) if x.is_floating_point() else x for x in graph.example)
    for dtype, tolerance in TOLERANCE.items():
        reference = Masked(_copied(graph.module).to(dtype), channels, plan.keep)
        pruned = copy.deepcopy(small).to(dtype).eval()
        try:
            # The example is for models that take no random numbers, such as the logarithm of a positive image.
            for inputs in (_typed(drawn, dtype), _typed(graph.example, dtype)):
                expected = _outputs(reference.run, inputs)
                if all(_is_finite(x) for x in expected):
                    break
            else:
                raise NotEquivalent(
                    "the model gives NaN or infinity on random inputs and on the example, so nothing can be proved"
                )
        except RuntimeError as e:  # a dtype is written into the model: compare in the one it was made for
            if dtype == torch.float32:
                raise NotEquivalent(f"the original does not run on random inputs: {e}") from e
            continue
        found = _pruned_outputs(pruned, inputs)
        error = max(map(_relative, found, expected), default=0.0) if len(found) == len(expected) else math.inf
        if error > tolerance:
            where = _first_difference(reference, pruned, plan, inputs, tolerance)
            raise NotEquivalent(
                f"the pruned model differs from the original by {error:.1e} (relative), first in {where}; {_CURE}"
            )
        return error
    raise AssertionError("unreachable: float32 either returns or raises")


def _copied(module: fx.GraphModule) -> fx.GraphModule:
    with without_torchs_own_noise():
        return copy.deepcopy(module)


def _typed(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def _outputs(run: Any, inputs: tuple[Tensor, ...]) -> list[Any]:
    with torch.no_grad(), Double():
        return tree_leaves(run(*inputs))


def _pruned_outputs(pruned: nn.Module, inputs: tuple[Tensor, ...]) -> list[Any]:
    try:
        return _outputs(pruned, inputs)
    except Exception as e:  # whatever the user's forward raises, it was not made for these sizes
        raise NotEquivalent(f"the pruned model does not run, its forward has sizes written into it; {_CURE} ({e})") from e


def _is_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())


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
    reference: fx.Interpreter, pruned: nn.Module, plan: ChannelPlan, inputs: tuple[Tensor, ...], tolerance: float
) -> str:
    """The first weighted operation whose kept outputs differ."""
    try:
        found = fx.Interpreter(capture(pruned, inputs).module)
        pairs = zip(_weighted(reference, inputs), _weighted(found, inputs), strict=False)
    except (ModelError, RuntimeError):  # it cannot be read: where it differs stays unknown
        return "the output"
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
        value = value[0] if isinstance(value, tuple) else value
        if names and isinstance(value, Tensor):
            weighted.append((names[0], value))
    return weighted
