"""A pruned network as one safetensors file: its weights, the plan that cut it, and the shapes of its inputs. No code in it.

The network is built again as it was made: from the original's factory, by the plan. What the file cannot hold, the classes
and their ``forward``, stays in the factory; everything that was cut, trained or counted since comes from the file.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import ModelError, PenjingError, PlanError, RecipeError
from penjing.files import misfits, read_tensors, write_tensors
from penjing.graph import as_inputs, own_tensors
from penjing.plan import ChannelPlan
from penjing.prune.channels import prune_channels

FORMAT = 1  # of what the header says; a reader refuses what is newer than itself

Factory = Callable[[], nn.Module]


def save(path: str | Path, small: nn.Module, plan: ChannelPlan, example: Tensor | Sequence[Tensor]) -> None:
    """Write a pruned network to one safetensors file, whole or not at all.

    Args:
        small: What ``prune_channels`` gave, trained since or not.
        plan: What it was cut by: of a network that was cut twice, ``first.then(second)``.
        example: Inputs as the network takes them; their shapes and types are kept.

    Raises:
        PlanError: ``small`` is not what ``plan`` makes; names the first parameter that differs.
        ModelError: The network's state holds something that is not a tensor, or ``example`` is not one.
        PenjingError: The file cannot be written.
    """
    inputs, tensors = as_inputs(example), own_tensors(small)
    for name, value in small.state_dict().items():
        if name not in tensors:
            raise ModelError(
                f"{name} in the network's state is {type(value).__name__}; the file holds parameters and buffers only"
            )
    for name, dims in plan.keep.items():
        if name in tensors:
            _check_cut(name, tuple(tensors[name].shape), dims)
    about = {
        "penjing": FORMAT,
        "network": f"{type(small).__module__}.{type(small).__qualname__}",
        "rewritten": bool(getattr(small, "rewritten", False)),  # whether its forward is an exported graph
        "example": [[list(x.shape), str(x.dtype).removeprefix("torch.")] for x in inputs],
        "plan": plan.to_json(),
    }
    write_tensors(Path(path), tensors, about)


def load(path: str | Path, factory: Factory) -> nn.Module:
    """The pruned network of a file that ``save`` wrote, in eval mode, on the device that the factory builds on.

    Args:
        factory: Builds the original network, that which was cut; its weights do not matter.

    Raises:
        PenjingError: The file is missing, truncated, or not one that ``save`` wrote.
        RecipeError: ``factory`` is not a function that gives a network.
        PlanError: The factory's network cannot be cut as the plan says; names the parameter, with both shapes.
        ModelError: The weights do not fit what the plan makes of it; names the first, with both shapes.
    """
    tensors, about = read_tensors(Path(path))
    plan, example = _header(Path(path), about)
    original = _built(factory)
    _check_original(original, plan, tensors, str(path))
    device = next((t.device for t in own_tensors(original).values()), None)
    inputs = tuple(x.to(device) for x in example)
    small = prune_channels(original, plan, inputs, verify=False, rewrite=bool(about.get("rewritten"))).eval()
    _fill(small, tensors, f"{path}, saved from {about.get('network', 'another network')}")
    return small


def plan_of(path: str | Path) -> ChannelPlan | None:
    """The plan in a file that ``save`` wrote; None where a file holds weights alone.

    Raises:
        PenjingError: The file is missing or truncated.
    """
    _, about = read_tensors(Path(path))
    return _header(Path(path), about)[0] if "penjing" in about else None


def _header(path: Path, about: Mapping[str, Any]) -> tuple[ChannelPlan, tuple[Tensor, ...]]:
    if "penjing" not in about or "plan" not in about:
        raise PenjingError(f"{path} holds tensors but no plan; give a file that penjing.save wrote")
    if about["penjing"] != FORMAT:
        raise PenjingError(
            f"{path} is of format {about['penjing']} and this Penjing reads {FORMAT}; use the Penjing that wrote it"
        )
    try:
        return ChannelPlan.from_json(about["plan"]), tuple(_blank(shape, dtype) for shape, dtype in about["example"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        raise PenjingError(f"the header of {path} is damaged ({e!r}); save the network again") from e


def _blank(shape: Sequence[int], dtype: str) -> Tensor:
    """An input of a kind: only its shape and type matter to the cut."""
    kind = getattr(torch, dtype)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"{dtype} is no type of tensors")
    return torch.zeros(tuple(shape), dtype=kind)


def _built(factory: Factory) -> nn.Module:
    if isinstance(factory, nn.Module) or not callable(factory):
        raise RecipeError(
            f"factory is {type(factory).__name__}; give a function without arguments that builds the original network, "
            "e.g. lambda: MyNet(classes=10)"
        )
    original = factory()
    if not isinstance(original, nn.Module):
        raise RecipeError(f"factory gives {type(original).__name__}; give a function that returns the original torch.nn.Module")
    return original


def _check_cut(name: str, shape: tuple[int, ...], dims: Mapping[int, Sequence[int]]) -> None:
    for dim, index in dims.items():
        if not 0 <= dim < len(shape) or shape[dim] != len(index):
            raise PlanError(
                f"{name} is {shape}, but the plan keeps {len(index)} along dim {dim}; save what this plan made of the model"
            )


def _check_original(model: nn.Module, plan: ChannelPlan, tensors: Mapping[str, Tensor], where: str) -> None:
    """Tell the first parameter of the factory's network that cannot be what the file's network was cut from."""
    own = own_tensors(model)
    cuts = {id(own[name]): dims for name, dims in plan.keep.items() if name in own}  # a shared weight has several names
    for name, value in own.items():
        if name not in tensors:
            continue
        shape, saved, dims = tuple(value.shape), tensors[name], cuts.get(id(value), {})
        fits = len(shape) == saved.ndim and all(
            shape[d] > max(dims[d], default=0) if d in dims else shape[d] == saved.shape[d] for d in range(saved.ndim)
        )
        if not fits:
            cut = f", cut along dim {', '.join(map(str, sorted(dims)))}" if dims else ""
            raise PlanError(
                f"{name} is {tuple(saved.shape)} in {where}{cut}, and {shape} in the factory's {type(model).__name__}; "
                "give the factory of the network that was cut"
            )


def _fill(small: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put the file's tensors into the network, with their types; what is shared stays shared."""
    own = own_tensors(small)
    if problems := misfits(tensors, own, "the network that was cut"):
        raise ModelError(f"the weights in {where} do not fit {type(small).__name__}: {problems}")
    for name, value in tensors.items():
        own[name].data = value.to(own[name].device)  # not load_state_dict, which would turn them into the factory's type
