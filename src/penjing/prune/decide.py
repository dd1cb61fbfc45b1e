"""Choose the channels that stay: first how many of each group, then which.

A group can be cut to a few widths, one *step* apart. Steps of groups that are ranked together stand in one line, the least
important first; a ratio, or a target in multiply-accumulates, says how many of them are taken.
"""

import bisect
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from penjing.errors import BudgetError, PlanError, RecipeError
from penjing.graph import Channels, Group, as_inputs, capture, check_weights
from penjing.graph.layers import layers, macs, macs_without
from penjing.plan import ChannelPlan
from penjing.prune.ranking import NORMALIZERS, RANKINGS, Line, Step, lines, rows_of
from penjing.score import Criterion, Evidence, Scores, criterion_named, l2_norm
from penjing.task import Loss

Widths = Mapping[str, int]  # group name -> channels that stay


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How many channels may go, and from where; ``plan_channels`` tells what each setting means. Either ratio or macs."""

    ratio: float | None = None
    macs: float | None = None
    ranking: str = "layer"
    normalize: str = "mean"
    exclude: Sequence[str] = ()
    round_to: int = 8
    floor: float = 0.1
    cut_sums: bool = True

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.macs is None):
            raise RecipeError(f"ratio is {self.ratio} and macs is {self.macs}; give one of the two, e.g. ratio=0.5")
        for name in ("ratio", "macs", "floor"):
            if not isinstance(getattr(self, name), Real | None):
                raise RecipeError(f"{name} is {getattr(self, name)!r}; give a number")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise RecipeError(f"ratio is {self.ratio}; give the share of channels to drop, from 0 up to 1, e.g. 0.5")
        if self.macs is not None and not 0 < self.macs <= 1:
            raise RecipeError(f"macs is {self.macs}; give the share of multiply-accumulates that stays, e.g. 0.33")
        if self.round_to < 1:
            raise RecipeError(f"round_to is {self.round_to}; give a positive number of channels, e.g. 8")
        if not 0 <= self.floor < 1:
            raise RecipeError(f"floor is {self.floor}; give the share of every group's channels that stays, e.g. 0.1")
        for name, table in (("ranking", RANKINGS), ("normalize", NORMALIZERS)):
            if getattr(self, name) not in table:
                raise RecipeError(f"{name} is {getattr(self, name)!r}; choose one of {sorted(table)}")


@dataclass(frozen=True)
class Start:
    """What a network was before any of it was cut: shares are shares of this."""

    sizes: Mapping[str, int]  # group name -> channels
    macs: int

    @classmethod
    def of(cls, evidence: Evidence) -> "Start":
        """The network as it is."""
        return cls({g.name: g.channels for g in evidence.channels.groups}, macs(evidence.graph))


def plan_channels(  # noqa: PLR0913 - the whole of what can be asked for, by name
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    ratio: float | None = None,
    *,
    macs: float | None = None,
    criterion: Criterion | str = l2_norm,
    data: Iterable[Any] | None = None,
    loss: Loss = F.cross_entropy,
    ranking: str = "layer",
    normalize: str = "mean",
    exclude: Sequence[str] = (),
    round_to: int = 8,
    floor: float = 0.1,
    cut_sums: bool = True,
) -> ChannelPlan:
    """Decide which channels stay: those that the criterion scores highest.

    Args:
        example: Inputs as the model takes them; only their shapes matter.
        ratio: Share of channels to drop of those that may be cut, ``0 <= ratio < 1``; the nearest that the steps allow.
        macs: Instead of ``ratio``: the share of the multiply-accumulates of all convolutions and linear layers that may stay,
            ``0 < macs <= 1``. The plan never costs more, and no step of it could be given back without doing so.
        criterion: A function of ``penjing.score``, or its name in ``penjing.score.CRITERIA``.
        data: For criteria that look at data: batches of inputs, or of ``(inputs, target)``.
        loss: For criteria that take labels: ``(output, target) -> scalar``, the mean over the samples.
        ranking: What is ranked together, and loses the share as a whole: the channels of one group (``"layer"``: every group
            loses the same), of all groups (``"global"``), or of groups of equal topology (``"isomorphic"``, Fang et al. 2024,
            arXiv:2407.04616: those cut from the same places of the same operations, however wide they are).
        normalize: What the scores of a group are divided by before they are ranked with those of others: their ``"mean"`` or
            ``"max"`` size, or nothing (``"none"``, as Fang et al. do).
        exclude: Patterns (``"head.*"``) of parameter names, or one; groups that touch one are left whole.
        round_to: What is kept is a multiple of this many channels, for the runtime's vector units, and of the number of
            blocks that must stay equal. A group no wider than that is cut in quarters of itself.
        floor: Share of the channels of every group that always stays, and one step at least.
        cut_sums: Whether channels that are added to one another (residual streams) may be cut.

    Raises:
        RecipeError: A setting is out of range, a pattern fits no parameter, or the criterion's scores cannot be ranked.
        BudgetError: ``macs`` cannot be met; names the nearest that can.
        ModelError: The model cannot be read, or its weights are not finite.
        DataError: The criterion cannot use ``data``.
    """
    selection = Selection(
        ratio=ratio, macs=macs, ranking=ranking, normalize=normalize, exclude=exclude, round_to=round_to, floor=floor,
        cut_sums=cut_sums,
    )  # fmt: skip
    check_weights(model)
    evidence = Evidence.of(capture(model, as_inputs(example)), data, loss)
    return plan_selection(evidence, criterion, selection, Start.of(evidence))


def plan_selection(evidence: Evidence, criterion: Criterion | str, selection: Selection, start: Start) -> ChannelPlan:
    """As ``plan_channels``, for a network that was cut before; shares and steps are those of the uncut one."""
    check_reachable(evidence, selection, start)
    if selection.ratio and not any(g.channels > 1 for g in evidence.channels.groups):
        warnings.warn(f"nothing can be cut: {_first_reason(evidence.channels)}; penjing.inspect tells all", stacklevel=3)
    scores = (criterion_named(criterion) if isinstance(criterion, str) else criterion)(evidence)
    _check_scores(evidence.channels, scores)
    groups = cuttable(evidence.channels, selection.exclude, cut_sums=selection.cut_sums)
    possible = {g.name: _narrower(g, selection, start) for g in groups}
    family, divisor = RANKINGS[selection.ranking](evidence.graph.module), NORMALIZERS[selection.normalize]
    found = lines(groups, possible, start.sizes, scores, family, divisor)
    if selection.macs is not None:
        widths = _within(evidence, found, selection.macs * start.macs)
    else:
        assert selection.ratio is not None
        widths = _after(step for line in found for step in line.taken(selection.ratio))
    return plan_widths(evidence.channels, scores, widths)


def _first_reason(channels: Channels) -> str:
    """Why something stays; that the ends do says little."""
    told = sorted(channels.fixed.items(), key=lambda item: item[1] in ("model input", "model output"))
    return f"{told[0][0][0]} stays ({told[0][1]})" if told else "there is no layer with weights"


def plan_widths(channels: Channels, scores: Scores, widths: Widths) -> ChannelPlan:
    """Decide which channels stay, given how many of each group; groups that ``widths`` does not name are left whole.

    Raises:
        PlanError: ``widths`` names a group that the model does not have, asks for more channels than it has, or for a number
            that does not leave its blocks equal.
    """
    groups = {g.name: g for g in channels.groups}
    for name, n in widths.items():
        size = groups[name].channels if name in groups else 0
        if not 1 <= n <= size:
            raise PlanError(f"width {n} of group {name} does not fit the model, which has {size} channels there")
        if n % groups[name].equal:
            raise PlanError(f"width {n} of group {name} does not leave {groups[name].equal} equal blocks; give a multiple")
    dropped: dict[tuple[str, int], set[int]] = {}
    for group in channels.groups:
        if widths.get(group.name, group.channels) == group.channels:
            continue
        worst = _worst(group, scores[group.name], widths[group.name])
        for axis in group.axes:
            dropped.setdefault((axis.name, axis.dim), set()).update(axis.index[worst].flatten().tolist())
    keep: dict[str, dict[int, tuple[int, ...]]] = {}
    for (name, dim), lost in sorted(dropped.items()):
        keep.setdefault(name, {})[dim] = tuple(i for i in range(channels.shapes[name][dim]) if i not in lost)
    return ChannelPlan(keep)


def allowed_widths(channels: int, round_to: int, *, blocks: int = 1, floor: float = 0.0) -> list[int]:
    """The widths a group may have, from all ``channels`` down: multiples of one step, at least one, at least the floor.

    The step is the least common multiple of ``round_to`` and ``blocks``; a group no wider than that is cut in quarters of
    itself, and of its blocks.
    """
    step = math.lcm(round_to, blocks)
    if channels <= step:
        step = max(1, channels // blocks // 4) * blocks
    least = max(1, math.ceil(floor * channels / step - 1e-9)) * step
    return [channels, *range((channels - 1) // step * step, least - 1, -step)]


def check_reachable(evidence: Evidence, selection: Selection, start: Start) -> None:
    """Refuse a target in multiply-accumulates that cutting every group as far as it goes does not reach.

    Raises:
        BudgetError: Names the nearest that can be met.
    """
    groups = cuttable(evidence.channels, selection.exclude, cut_sums=selection.cut_sums)
    if selection.macs is None:
        return
    least = _macs_of(evidence, {g.name: _narrower(g, selection, start)[-1] for g in groups})
    if least > selection.macs * start.macs:
        raise BudgetError(
            f"macs={selection.macs:g} cannot be met: with all groups cut as far as exclude, round_to and floor allow, "
            f"{math.ceil(1000 * least / start.macs) / 1000:g} of the multiply-accumulates stay; ask for that, or loosen these"
        )


def cuttable(channels: Channels, exclude: Sequence[str], *, cut_sums: bool) -> list[Group]:
    """The groups of which channels may go: none that touches an excluded parameter; see ``plan_channels``.

    Raises:
        RecipeError: A pattern fits no parameter.
    """
    patterns = (exclude,) if isinstance(exclude, str) else exclude
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in (*channels.shapes, *channels.unread)):
            near = next(iter(channels.shapes), "")
            raise RecipeError(f"exclude pattern {pattern!r} fits no parameter; names look like {near!r}")
    return [
        g
        for g in channels.groups
        if (cut_sums or not g.summed) and not any(fnmatch(a.name, p) for a in g.axes for p in patterns)
    ]


def _narrower(group: Group, selection: Selection, start: Start) -> list[int]:
    """The width that a group has and those it may be cut to, widest first."""
    size = start.sizes.get(group.name, group.channels)  # a group may be new, once a depthwise layer has a single channel
    widths = allowed_widths(size, selection.round_to, blocks=group.equal, floor=selection.floor)
    return [group.channels, *(w for w in widths if w < group.channels)]


def _check_scores(channels: Channels, scores: Scores) -> None:
    for group in channels.groups:
        score = scores.get(group.name)
        if score is None or tuple(score.shape) != (group.channels,) or not score.isfinite().all():
            found = "none" if score is None else f"shape {tuple(score.shape)}, {int((~score.isfinite()).sum())} not finite"
            raise RecipeError(
                f"the criterion's scores of group {group.name} cannot be ranked ({found}); "
                f"it must give one finite number for each of the {group.channels} channels"
            )


def _worst(group: Group, scores: Tensor, width: int) -> Tensor:
    """The numbers of the channels that go: the lowest, equally many of every block."""
    rows = rows_of(group)
    order = scores.detach().cpu()[rows].argsort(dim=1, stable=True)
    return rows.gather(1, order[:, : rows.shape[1] - width // len(rows)]).flatten()


# A target in multiply-accumulates.


def _macs_of(evidence: Evidence, widths: Widths) -> int:
    lost: Counter[tuple[str, int]] = Counter()
    for group in evidence.channels.groups:
        gone = group.channels - widths.get(group.name, group.channels)
        for axis in group.axes if gone else ():
            lost[axis.name, axis.dim] += gone * axis.index.shape[1]
    return macs_without(layers(evidence.graph), lost)


def _within(evidence: Evidence, found: Sequence[Line], limit: float) -> dict[str, int]:
    """The widths after the fewest steps that cost no more than ``limit``, less those that were not needed for it."""
    path = sorted((step for line in found for step in line.steps), key=lambda step: step.share)
    enough = bisect.bisect_left(range(len(path)), True, key=lambda n: _macs_of(evidence, _after(path[:n])) <= limit)
    widths = _after(path[:enough])
    for step in reversed(path[:enough]):
        wider = {**widths, step.group: step.before}
        if widths[step.group] == step.width and _macs_of(evidence, wider) <= limit:
            widths = wider
    return widths


def _after(steps: Iterable[Step]) -> dict[str, int]:
    return {step.group: step.width for step in steps}
