"""Cross-layer equalization: even out the channel ranges of weights without changing the function (arXiv:1906.04721).

Dividing what a layer gives by ``s`` and multiplying what the next makes of it by ``s`` changes nothing, as long as what lies
between lets positive factors through. It helps where one scale serves a whole weight; biases it makes too large can then be
absorbed into the next layer (section 4.1.3 there).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from penjing.quant.editable import Editable, argument, editable
from penjing.quant.fold import moved_from

aten = torch.ops.aten
SWEEPS = 100  # over all pairs of layers, at most
ENOUGH = 1e-3  # a sweep that changes no factor by more than this share is the last

_POINTWISE = frozenset({aten.relu.default, aten.leaky_relu.default, aten.prelu.default})
BOUNDED = frozenset({aten.relu6.default, aten.hardtanh.default, aten.clamp.default})
_LOCAL = {  # operation -> over how many of the last dims it works, each channel by itself
    **{getattr(aten, f"max_pool{n}d").default: n for n in (1, 2, 3)},
    **{getattr(aten, f"avg_pool{n}d").default: n for n in (1, 2, 3)},
    **{getattr(aten, f"adaptive_avg_pool{n}d").default: n for n in (1, 2, 3)},
    aten.upsample_nearest2d.vec: 2,
    aten.upsample_bilinear2d.vec: 2,
}
_MOVES = frozenset({aten.permute.default, aten.transpose.int})
_RESHAPES = frozenset({aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.unsqueeze.default})


@dataclass
class Place:
    """Where the channels of a layer's output are by the time they come to a value.

    Attributes:
        dim: The dim of the value they lie along.
        repeats: How many neighbors along it belong to one channel.
        clips: Clips on the way that pass for ReLUs.
        shifts: Whether a positive constant added to a channel comes through as it is, as long as the channel stays positive.
    """

    value: fx.Node
    dim: int
    repeats: int = 1
    clips: list[fx.Node] = field(default_factory=list)
    shifts: bool = True


@dataclass
class _Pair:
    first: Editable
    second: Editable
    place: Place

    def factors(self) -> Tensor:
        """``s`` of each channel between the layers: ``sqrt(r1 * r2) / r2``; 1 where either range is zero."""
        one, two = self.ranges()
        found = (one / two).sqrt()
        # A channel with small weights may have a large bias, and the one scale of all values would have to span it.
        biases = self.first.bias.abs()
        found = torch.maximum(found, biases / biases.max()) if biases.any() else found
        return torch.where((one > 0) & (two > 0), found, found.new_ones(()))

    def ranges(self) -> tuple[Tensor, Tensor]:
        """The largest magnitude of the weights that give each channel, and of those that take it."""
        one, two = self.first, self.second
        gives = one.rows(one.weight, one.output).abs().amax(1)
        takes = two.rows(two.weight, two.input).abs().amax(1)
        return gives, takes.view(-1, self.place.repeats).amax(1)

    def scale(self, factors: Tensor) -> None:
        one, two = self.first, self.second
        one.weight = one.weight / one.along(factors, one.output)
        one.bias = one.bias / factors
        two.weight = two.weight * two.along(factors.repeat_interleave(self.place.repeats), two.input)


def equalize(module: fx.GraphModule, *, seen: Mapping[str, float] | None = None) -> dict[str, str]:
    """Rescale the channels between layers until each has weights as large on one side as on the other, in place.

    Between two layers there may be ReLU, leaky ReLU and PReLU, pooling, resizing, flattening and permuting, each with one
    reader. A clip (ReLU6) lets no factor through; where calibration shows that it never clipped, it becomes a ReLU.

    Args:
        module: A float graph after ``fold``.
        seen: ``{clip's node name: the greatest value it gave}``, from calibration.

    Returns:
        ``{layer's node name: why its output was left alone}``.
    """
    pairs, reasons = _pairs(module, seen or {})
    for pair in pairs:
        for clip in pair.place.clips:
            clip.target = aten.relu.default
            clip.args = clip.args[:1]
    for _ in range(SWEEPS):
        largest = 0.0
        for pair in pairs:
            factors = pair.factors()
            pair.scale(factors)
            largest = max(largest, float(factors.log().abs().max()))
        if largest < ENOUGH:
            break
    _store(module, pairs)
    return reasons


def absorb_biases(module: fx.GraphModule, lowest: Mapping[str, Tensor]) -> None:
    """Move what is never negative of each channel from one layer's bias into the next one's, in place.

    ``relu(x) = relu(x - c) + c`` wherever ``x >= c >= 0``; the next layer adds its weights' response to ``c``. What lies
    between then ranges from 0. The next layer must pad no zeros. Exact on all inputs for which ``lowest`` holds.

    Args:
        module: A float graph after ``equalize``.
        lowest: ``{layer's node name: the least value of each channel of its output}``, of shape ``(channels,)``: the minimum
            over calibration, or the mean less three standard deviations (what the paper takes).
    """
    pairs, _ = _pairs(module, {})
    moved = [p for p in pairs if p.first.node.name in lowest and p.place.shifts and p.second.feels_shift_alike]
    moved = [p for p in moved if p.first.place(p.first.node.meta["val"]) == 1]  # ``lowest`` is of the channels along dim 1
    for pair in moved:
        one, two = pair.first, pair.second
        constant = lowest[one.node.name].to(one.bias).clamp(min=0)
        spread = constant.repeat_interleave(pair.place.repeats)
        one.bias = one.bias - constant
        two.bias = two.bias + two.rows(two.weight * two.along(spread, two.input), two.output).sum(1)
    _store(module, moved)


def _pairs(module: fx.GraphModule, seen: Mapping[str, float]) -> tuple[list[_Pair], dict[str, str]]:
    """Layers with nothing between them that stops a factor, in the order of the graph; and why others have none."""
    layers = {n: layer for n in module.graph.nodes if (layer := editable(module, n)) is not None}
    pairs, reasons = [], {}
    for node, first in layers.items():
        place, reason = _follow(Place(node, first.place(node.meta["val"])), seen)
        reader = next(iter(place.value.users), None)
        second = layers.get(reader) if reader is not None else None
        if reason or second is None:
            reasons[node.name] = reason or f"{_called(reader)} lets no factor through"
        elif place.dim != second.place(place.value.meta["val"]):
            reasons[node.name] = "the next layer takes its channels along another dim"
        else:
            pairs.append(_Pair(first, second, place))
    return pairs, reasons


def _follow(place: Place, seen: Mapping[str, float]) -> tuple[Place, str]:
    """Go on to the last value that factors come through to; why it cannot be used, or nothing."""
    while True:
        if len(place.value.users) != 1:
            return place, f"{place.value.name} has {len(place.value.users)} readers"
        reader = next(iter(place.value.users))
        if reader.target in BOUNDED:
            reason = _why_clips(reader, seen)
            if reason:
                return place, reason
            place.clips.append(reader)
            place.shifts = False
        elif not passes(place, reader):
            return place, ""
        place.value = reader


def _why_clips(clip: fx.Node, seen: Mapping[str, float]) -> str:
    """Why a clip does not pass for a ReLU; empty where it does."""
    low, high = (0, 6) if clip.target is aten.relu6.default else (argument(clip, 1, -1), argument(clip, 2, None))
    if low != 0 or not isinstance(high, int | float):
        return f"{clip.name} does not clip at 0 and above"
    if clip.name not in seen:
        return f"{clip.name} clips at {high}, and how often is not known"
    return "" if seen[clip.name] < high else f"{clip.name} clips at {high}, and does so"


def passes(place: Place, node: fx.Node) -> bool:
    """Whether factors of channels come through a node; says where they are then."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or node.args[0] is not place.value or place.value in node.args[1:]:
        return False
    if node.target in _POINTWISE:
        return True
    before = place.value.meta["val"]
    if node.target in _LOCAL:
        place.shifts = place.shifts and not _pads_zeros(node)
        return bool(place.dim < before.ndim - _LOCAL[node.target])
    if node.target in _MOVES:
        place.dim = next(d for d in range(before.ndim) if moved_from(node, d) == place.dim)
        return place.repeats == 1
    if node.target is aten.mean.dim:
        return _averaged(place, node)
    return node.target in _RESHAPES and _reshaped(place, before.shape, value.shape)


def _averaged(place: Place, node: fx.Node) -> bool:
    ndim = place.value.meta["val"].ndim
    dims = argument(node, 1, None)
    over = [d % ndim for d in dims] if isinstance(dims, list | tuple) else []
    if not over or place.dim in over:
        return False
    if not argument(node, 2, False):
        place.dim -= sum(d < place.dim for d in over)
    return True


def _reshaped(place: Place, before: torch.Size, after: torch.Size) -> bool:
    """Whether a reshape keeps batch and channels apart, or makes columns of a channel's pixels."""
    if place.dim != 1 or place.repeats > 1 or len(after) < 2 or before[0] != after[0]:
        return False
    if before[1] != after[1]:
        place.repeats = math.prod(before[2:])
        return len(after) == 2
    return True


def _pads_zeros(node: fx.Node) -> bool:
    """Whether an average pool counts zeros around the image."""
    name = str(node.target)
    padding = argument(node, 3, 0)
    around = any(padding) if isinstance(padding, list | tuple) else bool(padding)
    return "aten.avg_pool" in name and (around or argument(node, 6, None) is not None)


def _called(node: fx.Node | None) -> str:
    return "the output" if node is None or node.op == "output" else node.name


def _store(module: fx.GraphModule, pairs: list[_Pair]) -> None:
    for layer in _distinct(pairs):
        layer.store()
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _distinct(pairs: list[_Pair]) -> Iterator[Editable]:
    yield from {layer.node: layer for pair in pairs for layer in (pair.first, pair.second)}.values()
