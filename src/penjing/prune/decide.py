"""Choose the channels that stay: scores in, a plan out."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch

from torch import Tensor, nn

from penjing.errors import RecipeError
from penjing.graph import Channels, Criterion, Group, as_inputs, capture, check_weights, find_channels
from penjing.plan import ChannelPlan
from penjing.score import l2_norm


def plan_channels(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    ratio: float,
    *,
    criterion: Criterion = l2_norm,
    exclude: Sequence[str] = (),
    round_to: int = 8,
) -> ChannelPlan:
    """Decide which channels stay: in every group, the share ``1 - ratio`` that the criterion scores highest.

    Args:
        example: Inputs as the model takes them; only their shapes matter.
        ratio: Share of channels to drop, ``0 <= ratio < 1``.
        exclude: Patterns (``"head.*"``) of parameter names; groups that touch one are left whole.
        round_to: What is kept is a multiple of this many channels, for the runtime's vector units; groups that are no
            wider are cut without rounding.

    Raises:
        RecipeError: ``ratio`` is out of range, or a pattern fits no parameter.
        ModelError: The model cannot be read, or its weights are not finite.
    """
    if not 0 <= ratio < 1:
        raise RecipeError(f"ratio is {ratio}; give the share of channels to drop, from 0 up to 1, e.g. 0.5")
    check_weights(model)
    weights = dict(model.named_parameters(remove_duplicate=False))
    for pattern in exclude:
        if not any(fnmatch(name, pattern) for name in weights):
            raise RecipeError(f"exclude pattern {pattern!r} fits no parameter; names look like {next(iter(weights), '')!r}")
    channels = find_channels(capture(model, as_inputs(example)))
    free = [g for g in channels.groups if not any(fnmatch(a.name, p) for a in g.axes for p in exclude)]
    return lowest_dropped(channels, free, weights, ratio, criterion, round_to)


def lowest_dropped(
    channels: Channels,
    free: Sequence[Group],
    weights: Mapping[str, Tensor],
    ratio: float,
    criterion: Criterion,
    round_to: int,
) -> ChannelPlan:
    """The plan that drops the lowest scores of every group in ``free``."""
    dropped: dict[tuple[str, int], set[int]] = {}
    for group in free:
        n = kept_count(group.channels, ratio, round_to)
        if n == group.channels:
            continue
        worst = criterion(group, weights).argsort(stable=True)[: group.channels - n]
        for axis in group.axes:
            dropped.setdefault((axis.name, axis.dim), set()).update(axis.index[worst].flatten().tolist())
    keep: dict[str, dict[int, tuple[int, ...]]] = {}
    for (name, dim), gone in sorted(dropped.items()):
        size = channels.shapes[name][dim]
        keep.setdefault(name, {})[dim] = tuple(i for i in range(size) if i not in gone)
    return ChannelPlan(keep)


def kept_count(channels: int, ratio: float, round_to: int) -> int:
    """How many of ``channels`` stay: the multiple of ``round_to`` nearest to ``channels * (1 - ratio)``, at least one step."""
    step = round_to if channels > round_to else 1
    wanted = round(channels * (1 - ratio) / step) * step
    return min(channels, max(step, wanted))
