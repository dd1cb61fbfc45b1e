"""Cut the channels that a plan names out of a copy of the model: obey, think nothing, then prove it."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import PlanError
from penjing.graph import as_inputs
from penjing.plan import ChannelPlan
from penjing.prune.decide import plan_channels
from penjing.prune.verify import verify_pruned
from penjing.score import Criterion, l2_norm


def prune_channels(
    model: nn.Module, plan: ChannelPlan, example: Tensor | Sequence[Tensor], *, verify: bool = True
) -> nn.Module:
    """A smaller copy of ``model``: its own class, hooks and parameter names, with the plan's indices kept.

    Unless ``verify`` is off, the result is compared in float64 with the original whose removed channels contribute
    nothing, and only handed back when the two agree.

    Raises:
        PlanError: The plan does not fit the model; names the first parameter that differs.
        NotEquivalent: The smaller model computes something else.
    """
    inputs = as_inputs(example)
    small = copy.deepcopy(model)
    _check_fit(small, plan)
    cut: dict[int, Any] = {
        id(_tensors(small)[name]): _selected(_tensors(small)[name], dims) for name, dims in plan.keep.items()
    }
    for module in small.modules():  # by identity, so that shared parameters are cut once and stay shared
        for held in (module._parameters, module._buffers):
            held.update({leaf: cut[id(old)] for leaf, old in held.items() if id(old) in cut})
    for module in small.modules():
        _match_attributes(module)
    if verify:
        verify_pruned(model, small, plan, inputs)
    return small


def prune(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    ratio: float,
    *,
    criterion: Criterion = l2_norm,
    data: Iterable[Any] | None = None,
    exclude: Sequence[str] = (),
    round_to: int = 8,
) -> nn.Module:
    """``plan_channels`` and ``prune_channels`` in one line."""
    plan = plan_channels(model, example, ratio, criterion=criterion, data=data, exclude=exclude, round_to=round_to)
    return prune_channels(model, plan, example)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def _check_fit(model: nn.Module, plan: ChannelPlan) -> None:
    tensors = _tensors(model)
    for name, dims in plan.keep.items():
        if name not in tensors:
            raise PlanError(f"the plan cuts {name}, which the model does not have; it was made for another model")
        shape = tuple(tensors[name].shape)
        for dim, index in dims.items():
            fits = 0 <= dim < len(shape) and index and min(index) >= 0 and max(index) < shape[dim]
            if not fits or len(set(index)) < len(index):
                raise PlanError(
                    f"the plan keeps indices of dim {dim} of {name} that its shape {shape} does not have, none, or one twice"
                )


def _selected(old: Tensor, dims: Mapping[int, tuple[int, ...]]) -> Tensor:
    new = old.detach()
    for dim, index in dims.items():
        new = new.index_select(dim, torch.tensor(index, device=new.device))
    new = new.clone()
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _match_attributes(module: nn.Module) -> None:
    """Make the sizes that a layer remembers those that its weight now has."""
    weight = getattr(module, "weight", None)
    if weight is None and isinstance(module, nn.modules.batchnorm._NormBase):
        weight = module.running_mean  # a norm without scale and shift
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        if module.groups == module.in_channels > 1:  # depthwise: as many groups as inputs
            module.groups = weight.shape[0] // (module.out_channels // module.groups)
        module.in_channels, module.out_channels = weight.shape[1] * module.groups, weight.shape[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]
