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
from penjing.prune.rewrite import Sizes, drop_assertions

TOLERANCE = 1e-9  # in float64, relative to the largest value of the output
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
    reference = Masked(doubled(graph.module), channels, plan.keep)
    error, ran, inputs = compared(reference, small, graph.example)
    if error > TOLERANCE:
        where = _first_difference(reference, ran, Sizes(channels, plan), inputs)
        raise NotEquivalent(f"the pruned model differs from the original by {error:.1e} (relative), first in {where}; {_CURE}")
    return error


def doubled(module: fx.GraphModule) -> fx.GraphModule:
    """A copy in float64, for a reference to run."""
    with without_torchs_own_noise():
        copied = copy.deepcopy(module).double()
    drop_assertions(copied.graph)
    return copied


def compared(
    reference: fx.Interpreter, small: nn.Module, example: tuple[Tensor, ...]
) -> tuple[float, nn.Module, tuple[Tensor, ...]]:
    """Run both in float64, on random inputs, or on the example where these lead to nothing.

    Args:
        reference: Runs what ``small`` is to compute, of a module that is ``doubled``.

    Returns:
        The largest difference, relative to the largest value of the output; the copy of ``small`` that ran; the inputs.

    Raises:
        NotEquivalent: The smaller one does not run, or the reference gives nothing to compare it with.
    """
    inputs, expected = _expected(reference, example)
    ran = copy.deepcopy(small).double().eval()
    found = _pruned_outputs(ran, inputs)
    error = max(map(_relative, found, expected), default=0.0) if len(found) == len(expected) else math.inf
    return error, ran, inputs


def _expected(reference: fx.Interpreter, example: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], list[Any]]:
    """The first inputs that the reference gives finite values for, and these."""
    generator = torch.Generator().manual_seed(0)
    drawn = tuple(torch.randn(x.shape, generator=generator).to(x.device) if x.is_floating_point() else x for x in example)
    reason = ""
    for given in (drawn, example):  # the latter for what takes no random numbers, as the logarithm of a positive image
        inputs = tuple(x.double() if x.is_floating_point() else x for x in given)
        try:
            expected = _outputs(reference.run, inputs)
        except (RuntimeError, IndexError) as e:
            reason = f"does not run ({e})"
            continue
        if all(_is_finite(x) for x in expected):
            return inputs, expected
        reason = "gives NaN or infinity"
    raise NotEquivalent(
        f"nothing can be proved, since the original {reason}, on random inputs and on the example; give another example"
    )


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


def _first_difference(reference: fx.Interpreter, pruned: nn.Module, sizes: Sizes, inputs: tuple[Tensor, ...]) -> str:
    """The first parameter of which an operation whose kept outputs differ is computed."""
    try:
        found = fx.Interpreter(capture(pruned, inputs).module)
        pairs = zip(_weighted(reference, inputs), _weighted(found, inputs), strict=False)
    except (ModelError, RuntimeError):  # it cannot be read: where it differs stays unknown
        return "the output"
    for (name, node, expected), (_, _, value) in pairs:
        for dim in range(expected.ndim):
            kept = sizes.kept(node, dim)
            expected = expected if kept is None else expected.index_select(dim, kept.nonzero()[:, 0].to(expected.device))
        # What still has other sizes was cut in blocks of different places, and cannot be laid beside the other so.
        if value.shape == expected.shape and _relative(value, expected) > TOLERANCE:
            return name
    return "the output"


def _weighted(interpreter: fx.Interpreter, inputs: tuple[Tensor, ...]) -> list[tuple[str, fx.Node, Tensor]]:
    """Each value that is computed from a parameter, with the parameter's name and the node, in order."""
    interpreter.garbage_collect_values = False
    with torch.no_grad():
        interpreter.run(*inputs)
    weighted = []
    for node in interpreter.graph.nodes:
        names = [str(i.target) for i in node.all_input_nodes if i.op == "get_attr"]
        value = interpreter.env.get(node)
        value = value[0] if isinstance(value, tuple) else value
        if names and isinstance(value, Tensor):
            weighted.append((names[0], node, value))
    return weighted
