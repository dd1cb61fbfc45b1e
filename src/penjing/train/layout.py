"""The memory format that a network is trained in."""

import copy

import torch
from torch import Tensor, nn


def channels_last(model: nn.Module, few: tuple[Tensor, ...]) -> nn.Module:
    """The memory format in which two-dimensional convolutions are fastest, if ``model`` runs in it; torch has none for others.

    ``x.view(len(x), -1)`` does not, though it does in torch's own format: such a network stays as it is.
    """
    if any(p.ndim == 4 for p in model.parameters()) and _runs(_laid_out(copy.deepcopy(model)), few):
        _laid_out(model)
    return model


def _laid_out(model: nn.Module) -> nn.Module:
    for p in model.parameters():
        if p.ndim == 4:
            p.data = p.data.to(memory_format=torch.channels_last)
    return model


def _runs(net: nn.Module, few: tuple[Tensor, ...]) -> bool:
    device = next(net.parameters()).device
    try:
        with torch.no_grad(), torch.random.fork_rng():
            net(*(x.to(device) for x in few))
    except RuntimeError as e:
        return "view size is not compatible" not in str(e)
    except Exception:  # whatever it is will be raised where it can be told
        return True
    return True
