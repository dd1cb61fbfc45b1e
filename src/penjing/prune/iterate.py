"""Decide, cut and repair in one call: at once, or in several gentle steps that judge the channels anew every time."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from penjing.errors import DataError, RecipeError
from penjing.graph import as_inputs, capture, check_weights
from penjing.plan import ChannelPlan
from penjing.prune.channels import prune_channels
from penjing.prune.decide import Selection, Start, check_reachable, plan_selection
from penjing.prune.renorm import repair
from penjing.score import Criterion, Evidence, l2_norm
from penjing.task import Loss

Recover = Callable[[nn.Module], nn.Module]  # may train, refit, or renew statistics; must not change shapes


def prune(  # noqa: PLR0913 - the whole of what can be asked for, by name
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
    steps: int = 1,
    refit: bool = False,
    recover: Recover | None = None,
) -> nn.Module:
    """A smaller ``model``: ``plan_channels``, ``prune_channels`` and, if asked for, repair, in one call.

    Args:
        steps, refit, recover: As in ``prune_iteratively``; all others as in ``plan_channels``.

    Raises:
        PenjingError: As ``prune_iteratively``.
    """
    selection = Selection(
        ratio=ratio,
        macs=macs,
        ranking=ranking,
        normalize=normalize,
        exclude=exclude,
        round_to=round_to,
        floor=floor,
        cut_sums=cut_sums,
    )
    settings: dict[str, Any] = {"criterion": criterion, "data": data, "loss": loss, "refit": refit, "recover": recover}
    return prune_iteratively(model, example, selection, steps=steps, **settings)[0]


def prune_iteratively(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    selection: Selection,
    *,
    steps: int,
    criterion: Criterion | str = l2_norm,
    data: Iterable[Any] | None = None,
    loss: Loss = F.cross_entropy,
    refit: bool = False,
    recover: Recover | None = None,
    verify: bool = True,
) -> tuple[nn.Module, ChannelPlan]:
    """Cut, recover, and judge what is left, ``steps`` times, each time the same share of what is left.

    Args:
        selection: Where to end; shares, floors and steps of rounding are those of ``model``, however often it is cut.
        criterion, data, loss: As in ``plan_channels``. ``data`` is walked once a step, so it must be a list or a loader.
        refit: Repair every cut without labels, from ``data``; see ``repair``.
        recover: Makes good what a cut has cost, after every one of them.
        verify: Prove every cut; see ``prune_channels``.

    Returns:
        The smaller network, and one plan that leads from ``model`` to its shapes.

    Raises:
        RecipeError: ``steps`` is below 1, or a setting does not fit the model.
        BudgetError: ``selection.macs`` cannot be met; told before anything is cut.
        DataError: ``refit`` or the criterion needs data and there is none.
        PenjingError: As ``plan_channels`` and ``prune_channels``.
    """
    if refit and data is None:
        raise DataError("refit needs data to fit to; give batches of inputs, a few hundred samples, no labels")
    parts, inputs = gentler(selection, steps), as_inputs(example)
    check_weights(model)
    first = Evidence.of(capture(model, inputs), data, loss)
    start = Start.of(first)
    check_reachable(first, selection, start)
    net, plan = copy.deepcopy(model), ChannelPlan({})
    for part in parts:
        evidence = Evidence.of(capture(net, inputs), data, loss) if plan.keep else first
        cut = plan_selection(evidence, criterion, part, start)
        if not cut.keep:  # rounding may leave nothing for a gentle step
            continue
        net, plan = prune_channels(net, cut, inputs, verify=verify), plan.then(cut)
        net = repair(net, model, plan, inputs, data) if refit and data is not None else net
        net = net if recover is None else recover(net)
        check_weights(net)
    return net, plan


def gentler(selection: Selection, steps: int) -> tuple[Selection, ...]:
    """The same selection reached in ``steps``: what is left of the channels, or of the MACs, shrinks by one factor each time.

    Raises:
        RecipeError: ``steps`` is below 1.
    """
    if steps < 1:
        raise RecipeError(f"steps is {steps}; give at least 1, which cuts at once")
    shares = [i / steps for i in range(1, steps)]
    if selection.macs is not None:
        return (*(replace(selection, macs=selection.macs**s) for s in shares), selection)
    assert selection.ratio is not None
    return (*(replace(selection, ratio=1 - (1 - selection.ratio) ** s) for s in shares), selection)
