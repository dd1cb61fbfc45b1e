"""The tensors that a module is made of; training changes also those that its state dict leaves out."""

from collections.abc import Mapping

from torch import Tensor, nn

from penjing.graph import own_tensors


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """What the state dict has of tensors, which may not be all that it has; no copies."""
    return {name: t for name, t in module.state_dict().items() if isinstance(t, Tensor)}


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The same, with what the state dict leaves out, such as buffers that are not persistent."""
    return {name: t.detach() for name, t in own_tensors(module).items()} | state_of(module)


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put what ``tensors_of`` gave of such a module into it, in place."""
    left_out = module.load_state_dict(dict(tensors), strict=False).unexpected_keys
    own = own_tensors(module)
    for name in own.keys() & left_out:
        own[name].data = tensors[name].to(own[name].device, copy=True)  # of another shape, where it keeps what it saw
