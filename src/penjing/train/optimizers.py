"""Optimizers, and what must be known of them: which parameters decay, and where their momentum is."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = ("momentum_buffer", "exp_avg")  # what torch's optimizers call it
Optimizer = torch.optim.Optimizer


def sgd(groups: list[dict[str, Any]], lr: float, momentum: float) -> Optimizer:
    """Stochastic gradient descent with Nesterov momentum."""
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def adamw(groups: list[dict[str, Any]], lr: float, momentum: float) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101)."""
    return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999))


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float, float], Optimizer]] = {"sgd": sgd, "adamw": adamw}


def grouped(
    trained: Collection[nn.Parameter], scales: Collection[nn.Parameter], weight_decay: float, scale_share: float
) -> list[dict[str, Any]]:
    """Parameters by how they are trained: weights decay, biases and norms do not, learned steps have a rate of their own."""
    apart = {id(p) for p in scales}
    others = [p for p in trained if id(p) not in apart]
    return [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay, "share": 1.0},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0, "share": 1.0},
        {"params": [p for p in trained if id(p) in apart], "weight_decay": 0.0, "share": scale_share},
    ]


def momenta(optimizer: Any, p: Tensor) -> Iterator[Tensor]:
    """The momentum of a parameter, where the optimizer has it already."""
    state = optimizer.state.get(p, {})
    return (state[name] for name in MOMENTUM if state.get(name) is not None)


def ordered(optimizer: Any) -> list[nn.Parameter]:
    """The parameters in the order of the optimizer's groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def optimizer_state(optimizer: Any) -> dict[str, Tensor]:
    """What an optimizer remembers, by ``number.name``."""
    kept = ((i, optimizer.state.get(p, {})) for i, p in enumerate(ordered(optimizer)))
    return {f"{i}.{name}": value for i, state in kept for name, value in state.items() if isinstance(value, Tensor)}


def load_optimizer_state(optimizer: Any, tensors: dict[str, Tensor]) -> None:
    """Take up what ``optimizer_state`` gave; the moments go where their parameters are, in their memory format."""
    parameters = ordered(optimizer)
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        p = parameters[int(number)]
        # A count of steps stays on the CPU, where torch keeps it.
        optimizer.state[p][name] = value.clone() if value.ndim == 0 and p.ndim else torch.empty_like(p).copy_(value)
