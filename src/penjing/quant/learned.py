"""Grids that are trained: steps by LSQ, steps and offsets by LSQ+, clipping bounds by PACT; and back to fixed ones.

``learn_steps`` makes parameters of a quantized network's grids, which start from where calibration put them; ``fit`` trains
them with the weights; ``settle`` makes buffers of them again. What a learned network computes is what the settled one computes
with torch's fake-quantize operations, bit for bit.

torch has learnable ones too. Their gradients follow from the rounded integers, so that a value up to half a step outside the
range counts as inside, where the papers' formulas cut at the ends of the range; they know float32 alone; and on a CPU they take
five times as long. So the operations here are our own. Values may be bfloat16, as under autocast: the arithmetic is float32,
and float64 where values are.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from penjing.errors import ModelError, entry
from penjing.quant.editable import set_tensor
from penjing.quant.fold import replace_by
from penjing.quant.grids import TINY, Grid
from penjing.quant.insert import FIXED, SLICES, WHOLE, layers, read_weight, tensor
from penjing.quant.targets import WEIGHTED

aten = torch.ops.aten


def lsq(x: Tensor, scale: Tensor, zero: Tensor, axis: int | None, low: int, high: int, factor: float) -> Tensor:
    """Fake-quantize with a learned scale (Esser et al. 2020, arXiv:1902.08153).

    Args:
        scale: Any but 0; its magnitude is meant. A scalar, or with ``axis`` one for each index of that dim.
        zero: The zero point, of the same shape; without a fraction.
        factor: What the gradients of ``scale`` and ``zero`` are multiplied by.

    Returns:
        float32, or float64 where ``x`` is.
    """
    shape = [] if axis is None else [-1 if d == axis else 1 for d in range(x.ndim)]
    y: Tensor = _Scaled.apply(x, positive(scale).view(shape), zero.view(shape), low, high, factor)  # type: ignore[no-untyped-call]
    return y


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int, factor: float) -> Tensor:
        y = _nearest(x, scale, zero, low, high)
        ctx.save_for_backward(x, y, scale, zero)
        ctx.limits, ctx.factor = (low, high), factor
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, y, scale, zero = ctx.saved_tensors
        low, high = ((end - zero) * scale for end in ctx.limits)
        through = _inside(gradient, x.to(y.dtype), low, high)
        clipped = gradient - through
        # Inside, dy/dscale = round(x / scale) - x / scale = (y - x) / scale; outside it is the last integer, y / scale.
        pull = (y - x).mul_(through).addcmul_(clipped, y).sum_to_size(scale.shape) / scale
        shift = -scale * clipped.sum_to_size(zero.shape) if ctx.needs_input_grad[2] else None
        return through.to(x.dtype), ctx.factor * pull, None if shift is None else ctx.factor * shift, None, None, None


def zero_of(offset: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """The zero point of LSQ+ (Bhalgat et al. 2020, arXiv:2004.09576): ``-offset / scale``, rounded so that 0 is on the grid.

    The gradient passes through the rounding, and through the limits, so that an offset beyond them can come back.
    """
    real = -offset / positive(scale)
    return real.detach().round().clamp(low, high) + (real - real.detach())  # the sum is exact: what is added is 0


def pact(x: Tensor, bound: Tensor, low: int, high: int) -> Tensor:
    """Clip to 0 and a learned bound, and fake-quantize with a step that follows from it (Choi et al. 2018, arXiv:1805.06085).

    The gradient of the bound is 1 where ``x >= bound`` and 0 elsewhere. float32, or float64 where ``x`` is.
    """
    y: Tensor = _Bounded.apply(x, positive(bound), low, high)  # type: ignore[no-untyped-call]
    return y


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, bound)
        return _nearest(x, *_bounded_grid(bound, low, high), low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, bound = ctx.saved_tensors
        value = x.to(gradient.dtype)
        through = _inside(gradient, value, torch.zeros_like(bound), bound)
        above = gradient - _inside(gradient, value, torch.full_like(bound, -math.inf), bound)
        return through.to(x.dtype), above.sum().to(bound.dtype), None, None


def _bounded_grid(bound: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    return bound / (high - low), torch.full_like(bound, low, dtype=torch.int32)


def _nearest(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """What torch's fake-quantize gives, to the bit: it multiplies by the inverse, rounds half to even, and then shifts."""
    value = x if x.dtype == torch.float64 else x.float()
    return (value * (1 / scale)).round_().add_(zero).clamp_(low, high).sub_(zero).mul_(scale)


def _inside(gradient: Tensor, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The gradient where ``low < x < high``, else 0."""
    if low.ndim:
        return torch.where((x > low) & (x < high), gradient, 0)
    passed: Tensor = aten.hardtanh_backward.default(gradient, x, float(low), float(high))  # six times as fast
    return passed


def positive(scale: Tensor) -> Tensor:
    """The magnitude of a trained number that must stay above 0."""
    return scale.abs().clamp_min(TINY)


def has_grids(module: fx.GraphModule) -> bool:
    """Whether a network is quantized already, with grids that are fixed or learned."""
    return any(n.target in FIXED | {lsq, pact} for n in module.graph.nodes)


def learn_steps(module: fx.GraphModule, how: str = "lsq") -> fx.GraphModule:
    """A copy of what ``quantize`` gave whose grids are parameters, to be trained with the weights; they start where they are.

    The weights' scales are learned by LSQ, zero points stay. Its gradients are divided by ``sqrt(n * (high - zero))``, ``n``
    being the elements that share the scale, of one sample where it is a value.

    Args:
        how: What is learned of values. ``"lsq"``: scales. ``"lsq+"``: scales and offsets. ``"pact"``: the bound of those that
            are never negative, scales of the others.

    Raises:
        RecipeError: ``how`` is none of these.
        ModelError: The network has no grids.
    """
    learn = entry(WAYS, how, "way to learn steps")
    module = settle(module)
    fakes = [n for n in module.graph.nodes if n.target in FIXED]
    if not fakes:
        raise ModelError("the network has no grids whose steps could be learned; give what quantize returned")
    for node in fakes:
        (learn if read_weight(node) is None else _learn_scale)(module, node)
    return _tidied(module)


def _learn_scale(module: fx.GraphModule, node: fx.Node) -> None:
    _, scale, zero = node.args[:3]
    path = _trained(module, scale, "scale", tensor(module, scale))
    axis = node.args[3] if node.target is SLICES else None
    with module.graph.inserting_before(node):
        steps = module.graph.get_attr(path)
        _replace(node, lsq, (node.args[0], steps, zero, axis, *_limits(node), _factor(module, node)))


def _learn_offset(module: fx.GraphModule, node: fx.Node) -> None:
    source, scale, zero = node.args[:3]
    limits = _limits(node)
    factor = _factor(module, node)
    # Both before they become parameters: the offset follows from the scale.
    offset = -tensor(module, zero) * tensor(module, scale).detach()
    paths = _trained(module, scale, "scale", tensor(module, scale)), _trained(module, scale, "offset", offset)
    with module.graph.inserting_before(node):
        steps, shift = (module.graph.get_attr(path) for path in paths)
        whole = module.graph.call_function(zero_of, (shift, steps, *limits))
        _replace(node, lsq, (source, steps, whole, None, *limits, factor))


def _learn_bound(module: fx.GraphModule, node: fx.Node) -> None:
    source, scale, zero = node.args[:3]
    low, high = _limits(node)
    if int(tensor(module, zero)) != low:
        _learn_scale(module, node)
        return
    path = _trained(module, scale, "bound", tensor(module, scale) * (high - low))
    with module.graph.inserting_before(node):
        _replace(node, pact, (source, module.graph.get_attr(path), low, high))


WAYS: dict[str, Callable[[fx.GraphModule, fx.Node], None]] = {
    "lsq": _learn_scale,
    "lsq+": _learn_offset,
    "pact": _learn_bound,
}


def settle(module: fx.GraphModule) -> fx.GraphModule:
    """A copy whose learned grids are fixed: positive scales, whole zero points; what the export writes.

    It computes the same, bit for bit. Without learned grids it is a copy.
    """
    module = copy.deepcopy(module)
    learned = [n for n in module.graph.nodes if n.target in (lsq, pact)]
    found = {n: _settled(module, n) for n in learned}  # all of them first: some share parameters
    for node, (prefix, scale, zero) in found.items():
        axis = (node.args[3],) if node.target is lsq and node.args[3] is not None else ()
        held = []
        with module.graph.inserting_before(node):
            for leaf, value in (("scale", scale), ("zero_point", zero)):
                set_tensor(module, f"{prefix}.{leaf}", value)
                held.append(module.graph.get_attr(f"{prefix}.{leaf}"))
            _replace(node, SLICES if axis else WHOLE, (node.args[0], *held, *axis, *_limits(node)))
    return _tidied(module)


@torch.no_grad()
def _settled(module: fx.GraphModule, node: fx.Node) -> tuple[str, Tensor, Tensor]:
    """Where the grid of a learned node is kept, its scale and its zero point."""
    trained = node.args[1]
    assert isinstance(trained, fx.Node)
    prefix, value = str(trained.target).rpartition(".")[0], positive(tensor(module, trained)).float()
    if node.target is pact:
        return prefix, *_bounded_grid(value, *_limits(node))
    zero = node.args[2]
    assert isinstance(zero, fx.Node)
    if zero.target is zero_of:
        return prefix, value, zero_of(tensor(module, zero.args[0]), value, *_limits(zero)).int()
    return prefix, value, tensor(module, zero)


def trained_steps(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that ``learn_steps`` made; none of a network that it did not make."""
    if not isinstance(module, fx.GraphModule):
        return []
    readers = {(n, a) for n in module.graph.nodes if n.target in (lsq, zero_of, pact) for a in n.args[:3]}
    held = [tensor(module, a) for _, a in readers if isinstance(a, fx.Node) and a.op == "get_attr"]
    wanted = {id(t) for t in held}
    return [p for name, p in module.named_parameters() if id(p) in wanted and name.startswith("grids.")]


@dataclass(frozen=True)
class WeightGrid:
    """The grid of a weight, which training may be changing."""

    module: fx.GraphModule
    scale: fx.Node  # what reads the scale
    first: Grid

    def now(self) -> Grid:
        """The grid as it is."""
        scale = positive(tensor(self.module, self.scale).detach())
        return replace(self.first, scale=scale.view(self.first.scale.shape))


def weight_grids(module: nn.Module) -> dict[str, WeightGrid]:
    """``{parameter name: its grid}`` of all weights that have one, learned or fixed."""
    if not isinstance(module, fx.GraphModule):
        return {}
    nodes = {n.name: n for n in module.graph.nodes if n.target in WEIGHTED}
    found = {}
    for layer in layers(settle(module)):
        fake = nodes[layer.node.name].args[1]
        assert isinstance(fake, fx.Node)
        if fake.target is aten.view.default:
            fake = fake.args[0]
        assert isinstance(fake, fx.Node)
        scale = fake.args[1]
        assert isinstance(scale, fx.Node)
        found[layer.weight] = WeightGrid(module, scale, layer.grid)
    return found


def rounded_weights(module: nn.Module) -> list[str]:
    """Names of the weights that were rounded: all of their values lie on their grid, so that their zeros are integers."""
    parameters = dict(module.named_parameters())
    values = {name: (parameters[name].detach(), grid.now()) for name, grid in weight_grids(module).items()}
    return [name for name, (weight, grid) in values.items() if torch.equal(grid.nearest(weight), weight)]


def _limits(node: fx.Node) -> tuple[int, int]:
    """The least and the greatest integer of any node here that has them."""
    low, high = node.args[4:6] if node.target is lsq else node.args[-2:]
    assert isinstance(low, int)
    assert isinstance(high, int)
    return low, high


def _factor(module: fx.GraphModule, node: fx.Node) -> float:
    """LSQ's scale of the gradient, which makes steps move about as fast as weights."""
    source, scale, zero = node.args[:3]
    assert isinstance(source, fx.Node)
    weight = read_weight(node)
    if weight is not None:
        count = tensor(module, weight).numel() // tensor(module, scale).numel()
    else:
        count = math.prod(n for n in source.meta["val"].shape[1:] if isinstance(n, int))
    top = max(1, _limits(node)[1] - int(tensor(module, zero).float().mean()))
    return 1 / math.sqrt(max(1, count) * top)


def _trained(module: fx.GraphModule, scale: object, leaf: str, value: Tensor) -> str:
    """Make a parameter beside the scale, unless a value that shares the grid made it already; its path."""
    assert isinstance(scale, fx.Node)
    path = f"{str(scale.target).rpartition('.')[0]}.{leaf}"
    if path not in dict(module.named_parameters()):
        set_tensor(module, path, nn.Parameter(value.detach().clone().float()))
    return path


def _replace(node: fx.Node, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    new = node.graph.call_function(target, args)
    new.meta = copy.copy(node.meta)
    replace_by(node, new)


def _tidied(module: fx.GraphModule) -> fx.GraphModule:
    """Without the nodes and the grids' tensors that nothing reads any more."""
    module.graph.eliminate_dead_code()
    read = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    held = [name for name, _ in (*module.named_parameters(), *module.named_buffers()) if name.startswith("grids.")]
    for name in set(held) - read:
        owner, _, leaf = name.rpartition(".")
        delattr(module.get_submodule(owner), leaf)
    module.graph.lint()
    module.recompile()
    return module
