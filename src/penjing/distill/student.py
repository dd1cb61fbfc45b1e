"""A student made from its teacher: the same network with a share of its channels and of its residual blocks."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import ModelError, RecipeError
from penjing.graph import as_inputs, capture
from penjing.plan import ChannelPlan
from penjing.prune import drop_blocks, find_blocks, plan_blocks, plan_channels, prune_channels


def plan_student(
    teacher: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    width: float = 1.0,
    depth: float = 1.0,
    data: Iterable[Any] | None = None,
) -> ChannelPlan:
    """What of the teacher becomes the student.

    Args:
        example: Inputs as the teacher takes them; only their shapes matter.
        width: Share of the channels that stays, of every layer that can be cut; the largest by their weights' norms.
        depth: Share of the residual blocks with an identity shortcut that stays; at least one block goes where it is below 1.
        data: A few hundred inputs, needed to judge blocks by; labels are not looked at.

    Raises:
        RecipeError: A share is not above 0 and at most 1, both are 1, or ``depth`` is asked of a network without such blocks
            or without data.
    """
    for name, share in (("width", width), ("depth", depth)):
        if not 0 < share <= 1:
            raise RecipeError(f"student.{name} is {share}; give a share above 0 and at most 1, e.g. 0.5")
    if width == depth == 1:
        raise RecipeError("a student of width 1 and depth 1 is the teacher; give less of one of them, e.g. width 0.5")
    plan, net = ChannelPlan({}), teacher
    if depth < 1:
        plan = _fewer_blocks(teacher, example, depth, data)
        net = drop_blocks(teacher, plan.blocks, example)
    return plan.then(plan_channels(net, example, 1 - width)) if width < 1 else plan


def student_of(
    teacher: nn.Module, example: Tensor | Sequence[Tensor], plan: ChannelPlan, *, inherit: bool = True, seed: int = 0
) -> nn.Module:
    """The student that ``plan`` makes of the teacher, with its weights, or with new ones where ``inherit`` is False.

    New weights are those that each layer gives itself when it is made, drawn from ``seed``.

    Raises:
        PlanError: The plan is of another network.
        ModelError: Fresh weights are asked of a module that cannot make them (it has parameters and no
            ``reset_parameters``).
    """
    student = prune_channels(teacher, plan, example)
    if not inherit:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _start_again(student)
    return student


def _fewer_blocks(
    teacher: nn.Module, example: Tensor | Sequence[Tensor], depth: float, data: Iterable[Any] | None
) -> ChannelPlan:
    blocks = len(find_blocks(capture(teacher, as_inputs(example))))
    if not blocks:
        raise RecipeError("the teacher has no residual block with an identity shortcut, so none can go; use width alone")
    if data is None:
        raise RecipeError("blocks are chosen by what their absence changes on data; give data, a few hundred inputs")
    return plan_blocks(teacher, example, max(1, round((1 - depth) * blocks)), data)


def _start_again(model: nn.Module) -> None:
    for name, module in reversed(list(model.named_modules())):  # from inside, so that what holds others has the last word
        reset = getattr(module, "reset_parameters", None)
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if callable(reset) and (own or any(True for _ in module.children())):  # a layer of a dropped block has nothing left
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            raise ModelError(
                f"{name or 'the model'} ({type(module).__name__}) has parameters but no reset_parameters(), so it cannot be "
                "started afresh; let the student inherit the teacher's weights"
            )
