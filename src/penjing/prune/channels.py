"""Cut the channels that a plan names out of a copy of the model: obey, think nothing, then prove it."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penjing.errors import NotEquivalent, PlanError
from penjing.graph import Channels, Graph, as_inputs, capture, find_channels, own_tensors
from penjing.plan import ChannelPlan
from penjing.prune.blocks import drop_blocks
from penjing.prune.rewrite import Sizes, with_rewritten_forward
from penjing.prune.verify import verify_against
from penjing.task import in_eval


class RewrittenWarning(UserWarning):
    """A pruned model has the exported graph as its forward, because its own has sizes written into it."""


def prune_channels(
    model: nn.Module,
    plan: ChannelPlan,
    example: Tensor | Sequence[Tensor],
    *,
    verify: bool = True,
    rewrite: bool | None = None,
) -> nn.Module:
    """A smaller copy of ``model``: its own class, hooks and parameter names, with the plan's indices kept.

    Unless ``verify`` is off, the result is compared in float64 with the original in which the removed channels take no
    part, and only handed back when the two agree. Where ``forward`` has sizes written into it (``view(B, 64, -1)``), the
    copy gets the exported graph as its forward, with these sizes rewritten, and a ``RewrittenWarning`` says so; so it does
    without blocks. That graph refuses inputs of another size than the example's, but for the batch where the model takes any.

    Args:
        example: Inputs as the model takes them; only their shapes matter.
        rewrite: Whether to give the copy the exported graph as its forward; by default only where verifying shows the need.

    Raises:
        PlanError: The plan does not fit the model; names the first parameter that differs.
        NotEquivalent: The smaller model computes something else.
    """
    if not isinstance(plan, ChannelPlan):
        raise PlanError(f"plan is {type(plan).__name__}; give a ChannelPlan, as plan_channels makes or ChannelPlan.load reads")
    inputs = as_inputs(example)
    if plan.blocks:
        whole = own_tensors(model).keys()
        model = drop_blocks(model, plan.blocks, inputs)
        gone = whole - own_tensors(model).keys()  # which may have been cut before
        plan = replace(plan, keep={name: dims for name, dims in plan.keep.items() if name not in gone})
    small = _touched(model, plan)
    if not verify and not rewrite:
        return small
    graph = capture(model, inputs)
    return _proven(model, small, graph, find_channels(graph), plan, verify=verify, rewrite=rewrite)


def prune_to_look(model: nn.Module, plan: ChannelPlan, example: Tensor | Sequence[Tensor]) -> nn.Module:
    """As ``prune_channels``, for what a cut would cost: not proven. Where ``forward`` has sizes written into it, the copy has
    the exported graph as its forward.
    """
    inputs = as_inputs(example)
    small = prune_channels(model, plan, inputs, verify=False)
    try:
        if _output_shapes(small, inputs) == _output_shapes(model, inputs):
            return small
    except Exception:  # whatever the user's forward raises, it was not made for these sizes
        pass
    return prune_channels(model, plan, inputs, verify=False, rewrite=True)


def _output_shapes(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Any]:
    """Found with a copy in eval mode, which leaves the model's own mode and statistics alone."""
    with torch.no_grad():
        return [getattr(y, "shape", None) for y in tree_leaves(copy.deepcopy(model).eval()(*inputs))]


def _proven(
    model: nn.Module,
    small: nn.Module,
    graph: Graph,
    channels: Channels,
    plan: ChannelPlan,
    *,
    verify: bool,
    rewrite: bool | None,
) -> nn.Module:
    """``small`` once it is verified, with its forward rewritten if it must be."""
    if graph.unread and plan.keep:
        more = f" and {len(graph.unread) - 1} more" if len(graph.unread) > 1 else ""
        message = (
            f"{graph.unread[0]}{more} take no part in eval mode and stay as they are: if training reads them beside channels "
            "that were cut, it fails; leave these whole with exclude, or cut the branch yourself"
        )
        warnings.warn(message, stacklevel=3)
    _match_bare_norms(small, graph, Sizes(channels, plan))
    if rewrite and (graph.dynamic or not plan.blocks):  # of one batch size, only leaving out blocks has rewritten it
        small = with_rewritten_forward(small, graph, channels, plan)
    if not verify:
        return small
    try:
        verify_against(graph, channels, small, plan)
    except NotEquivalent as reason:
        if rewrite is not None:
            raise
        rewritten = with_rewritten_forward(small, graph, channels, plan)
        try:
            verify_against(graph, channels, model, ChannelPlan({}))  # a graph that stands in for a forward must be its own
            verify_against(graph, channels, rewritten, plan)
        except NotEquivalent:
            raise reason from None
        if not plan.blocks:  # without blocks it runs its exported graph anyway
            message = (
                f"the forward of {type(small).__name__} has sizes written into it: the pruned model runs its exported graph, "
                "for inputs of this size"
            )
            warnings.warn(message, RewrittenWarning, stacklevel=3)
        return rewritten
    return small


def _touched(model: nn.Module, plan: ChannelPlan) -> nn.Module:
    """A copy of the model with the plan's indices of its parameters and buffers, and layers that know their sizes."""
    small = copy.deepcopy(model)
    tensors = own_tensors(small)
    _check_fit(tensors, plan)
    cut: dict[int, Any] = {id(tensors[name]): _selected(tensors[name], dims) for name, dims in plan.keep.items()}
    for module in small.modules():  # by identity, so that shared parameters are cut once and stay shared
        for held in (module._parameters, module._buffers):
            held.update({leaf: cut[id(old)] for leaf, old in held.items() if id(old) in cut})
    with in_eval(small):  # in which a spectral norm gives its weight without a step of its iteration
        for module in small.modules():
            _match_attributes(module)
    return small


def _check_fit(tensors: Mapping[str, Tensor], plan: ChannelPlan) -> None:
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
    made_of = getattr(module, "parametrizations", {})
    gone = "weight" in made_of and None in made_of["weight"]._parameters.values()  # with a block that was left out
    made_by_hooks = (module._parameters.get(name) for name in ("weight_orig", "weight_v"))  # and ``weight`` is of the last call
    weight = None if gone else next((w for w in made_by_hooks if w is not None), getattr(module, "weight", None))
    if weight is None and isinstance(module, nn.modules.batchnorm._NormBase):
        weight = module.running_mean  # a norm without scale and shift
    if isinstance(weight, Tensor):
        for kind, match in _MATCHES.items():
            if isinstance(module, kind):
                match(module, weight.shape)
                return


def _match_bare_norms(small: nn.Module, graph: Graph, sizes: Sizes) -> None:
    """The same for norms without any tensor that would tell."""
    modules = dict(small.named_modules(remove_duplicate=False))
    for node in graph.module.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        layer = modules.get(str(stack[-1][0])) if stack else None
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.weight is layer.running_mean is None:
            width = sizes.of(node)
            layer.num_features = width[1] if width else layer.num_features


def _match_convolution(layer: nn.modules.conv._ConvNd, shape: torch.Size) -> None:
    if layer.groups == layer.in_channels > 1:  # depthwise: as many groups as inputs
        layer.groups = shape[0] // (layer.out_channels // layer.groups)
    layer.in_channels, layer.out_channels = shape[1] * layer.groups, shape[0]


def _match_transposed(layer: nn.modules.conv._ConvNd, shape: torch.Size) -> None:
    if layer.groups == layer.in_channels > 1:
        layer.groups = shape[0]
    layer.in_channels, layer.out_channels = shape[0], shape[1] * layer.groups


def _match_linear(layer: nn.Linear, shape: torch.Size) -> None:
    layer.out_features, layer.in_features = shape


def _match_group_norm(layer: nn.GroupNorm, shape: torch.Size) -> None:
    if layer.num_groups == layer.num_channels:  # every channel by itself
        layer.num_groups = shape[0]
    layer.num_channels = shape[0]


def _match_embedding(layer: nn.Embedding, shape: torch.Size) -> None:
    layer.num_embeddings, layer.embedding_dim = shape


_MATCHES: dict[type | tuple[type, ...], Callable[[Any, torch.Size], None]] = {
    nn.modules.conv._ConvTransposeNd: _match_transposed,
    nn.modules.conv._ConvNd: _match_convolution,
    nn.Linear: _match_linear,
    nn.modules.batchnorm._NormBase: lambda layer, shape: setattr(layer, "num_features", shape[0]),
    nn.GroupNorm: _match_group_norm,
    (nn.LayerNorm, nn.RMSNorm): lambda layer, shape: setattr(layer, "normalized_shape", tuple(shape)),
    nn.PReLU: lambda layer, shape: setattr(layer, "num_parameters", shape[0]),
    nn.Embedding: _match_embedding,
}
