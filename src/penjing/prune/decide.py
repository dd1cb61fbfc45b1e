"""Choose the channels that stay: first how many of each group, then which."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

from torch import Tensor, nn

from penjing.errors import PlanError, RecipeError
from penjing.graph import Channels, as_inputs, capture, check_weights
from penjing.plan import ChannelPlan
from penjing.score import Criterion, Evidence, Scores, l2_norm

Widths = Mapping[str, int]  # group name -> channels that stay


def plan_channels(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    ratio: float,
    *,
    criterion: Criterion = l2_norm,
    data: Iterable[Any] | None = None,
    exclude: Sequence[str] = (),
    round_to: int = 8,
) -> ChannelPlan:
    """Decide which channels stay: in every group, the share ``1 - ratio`` that the criterion scores highest.

    Args:
        example: Inputs as the model takes them; only their shapes matter.
        ratio: Share of channels to drop, ``0 <= ratio < 1``.
        exclude: Patterns (``"head.*"``) of parameter names; groups that touch one are left whole.
        round_to: What is kept is a multiple of this many channels, for the runtime's vector units.

    Raises:
        RecipeError: ``ratio`` is out of range, or a pattern fits no parameter.
        ModelError: The model cannot be read, or its weights are not finite.
    """
    check_weights(model)
    evidence = Evidence.of(capture(model, as_inputs(example)), data)
    widths = choose_widths(evidence.channels, ratio, exclude=exclude, round_to=round_to)
    return plan_widths(evidence.channels, criterion(evidence), widths)


def choose_widths(
    channels: Channels, ratio: float, *, exclude: Sequence[str] = (), round_to: int = 8, cut_sums: bool = True
) -> dict[str, int]:
    """How many channels of each group stay; see ``plan_channels``.

    Without ``cut_sums``, channels that are added to one another (residual streams) all stay.
    """
    if not 0 <= ratio < 1:
        raise RecipeError(f"ratio is {ratio}; give the share of channels to drop, from 0 up to 1, e.g. 0.5")
    if round_to < 1:
        raise RecipeError(f"round_to is {round_to}; give a positive number of channels, e.g. 8")
    for pattern in exclude:
        if not any(fnmatch(name, pattern) for name in channels.shapes):
            near = next(iter(channels.shapes), "")
            raise RecipeError(f"exclude pattern {pattern!r} fits no parameter; names look like {near!r}")
    return {
        g.name: kept_count(g.channels, ratio, round_to)
        for g in channels.groups
        if (cut_sums or not g.summed) and not any(fnmatch(a.name, p) for a in g.axes for p in exclude)
    }


def plan_widths(channels: Channels, scores: Scores, widths: Widths) -> ChannelPlan:
    """Decide which channels stay, given how many of each group; groups that ``widths`` does not name are left whole.

    Raises:
        PlanError: ``widths`` names a group that the model does not have, or asks for more channels than it has.
    """
    sizes = {g.name: g.channels for g in channels.groups}
    for name, n in widths.items():
        if not 1 <= n <= sizes.get(name, 0):
            raise PlanError(f"width {n} of group {name} does not fit the model, which has {sizes.get(name, 0)} channels there")
    dropped: dict[tuple[str, int], set[int]] = {}
    for group in channels.groups:
        gone = group.channels - widths.get(group.name, group.channels)
        if not gone:
            continue
        worst = scores[group.name].argsort(stable=True)[:gone]
        for axis in group.axes:
            dropped.setdefault((axis.name, axis.dim), set()).update(axis.index[worst].flatten().tolist())
    keep: dict[str, dict[int, tuple[int, ...]]] = {}
    for (name, dim), lost in sorted(dropped.items()):
        keep.setdefault(name, {})[dim] = tuple(i for i in range(channels.shapes[name][dim]) if i not in lost)
    return ChannelPlan(keep)


def kept_count(channels: int, ratio: float, round_to: int) -> int:
    """How many of ``channels`` stay: ``channels * (1 - ratio)`` rounded to steps of ``round_to``, at least one step.

    A group no wider than one step is cut in quarters of itself.
    """
    step = round_to if channels > round_to else max(1, channels // 4)
    wanted = round(channels * (1 - ratio) / step) * step
    return channels if ratio == 0 else min(channels, max(step, wanted))
