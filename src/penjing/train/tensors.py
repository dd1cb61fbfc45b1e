"""The tensors that a module is made of; training changes also those that its state dict leaves out."""

from collections.abc import Mapping

from torch import Tensor, nn


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """What the state dict has of tensors, which may not be all that it has; no copies."""
    return {name: t for name, t in module.state_dict().items() if isinstance(t, Tensor)}


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The same, with buffers that are not persistent."""
    state = state_of(module)
    return state | {name: t.detach() for name, t in module.named_buffers(remove_duplicate=False) if name not in state}


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put what ``tensors_of`` gave of such a module into it, in place."""
    left_out = module.load_state_dict(dict(tensors), strict=False).unexpected_keys
    buffers = dict(module.named_buffers(remove_duplicate=False))
    for name in buffers.keys() & left_out:
        buffers[name].data = tensors[name].to(buffers[name].device, copy=True)  # of another shape, where it keeps what it saw
