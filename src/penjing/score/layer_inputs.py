"""Second moments of what convolutions and linear layers read, as the columns that their weights are multiplied with."""

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from penjing.errors import DataError, ModelError
from penjing.score.layer_weights import LayerWeight
from penjing.score.windows import padded, pads_of_spread, spread, unfolded

ROWS, LEAST_ROWS = 4, 1024  # positions looked at in a batch: so many for each column, and at least so many


def second_moments(
    model: nn.Module, layers: Sequence[LayerWeight], batches: Iterable[tuple[Tensor, ...]], *, seed: int = 0
) -> dict[str, Tensor]:
    """``X'X / n`` for every layer, float64 of shape ``(groups, d, d)``, by the name of its weight.

    ``X`` holds the layer's inputs as columns (im2col): ``d = I K``, in the order of ``LayerWeight.by_output``. Of large maps
    positions are drawn at random, some multiple of ``d`` in every batch.

    Raises:
        DataError: There is no batch, or a layer reads what is not finite.
        ModelError: A layer is not a module (as in a graph), or is never called.
    """
    modules = _modules(model, layers)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = dict.fromkeys(modules, 0)
    generator = torch.Generator().manual_seed(seed)

    def add(name: str, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = columns(module, args[0] if args else named["input"], generator)
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # the sums of half precision are not precise enough
        sums[name] = sums.get(name, 0) + (x.mT @ x).double()
        counts[name] += x.shape[1]

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(partial(add, name), with_kwargs=True).remove)
        with torch.no_grad():
            for inputs in batches:
                model(*inputs)
    return {name: _checked(name, sums.get(name), counts[name]) for name in modules}


def columns(module: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """What the layer multiplies its weight with, at some positions of its output: ``(groups, positions, d)``."""
    if isinstance(module, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        return rows[_drawn(len(rows), rows.shape[1], generator).to(x.device)][None]
    assert isinstance(module, _ConvNd)
    rank = len(module.kernel_size)
    x = x if x.ndim == rank + 2 else x[None]
    windows = _windows(module, x).movedim(1, 1 + rank)  # (N, positions..., C, kernel...)
    d = module.in_channels // module.groups * math.prod(module.kernel_size)
    places = windows.shape[: 1 + rank]
    at = torch.unravel_index(_drawn(places.numel(), d, generator).to(x.device), places)
    return windows[at].reshape(-1, module.groups, d).transpose(0, 1)


def _windows(module: _ConvNd, x: Tensor) -> Tensor:
    """``(N, C, positions..., kernel...)``; of a transposed convolution as an ordinary one with the turned kernel reads them."""
    if not isinstance(module, _ConvTransposeNd):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode)
        return unfolded(x, module.kernel_size, module.stride, module.dilation)
    rank, sides = len(module.kernel_size), [int(p) for p in module.padding]
    pads = pads_of_spread(module.kernel_size, module.dilation, sides, module.output_padding)
    x = padded(spread(x, module.stride), pads)
    return unfolded(x, module.kernel_size, (1,) * rank, module.dilation).flip(list(range(2 + rank, 2 + 2 * rank)))


def _drawn(count: int, d: int, generator: torch.Generator) -> Tensor:
    """Which of ``count`` positions to look at."""
    most = max(LEAST_ROWS, ROWS * d)
    return torch.arange(count) if count <= most else torch.randperm(count, generator=generator)[:most]


def _modules(model: nn.Module, layers: Sequence[LayerWeight]) -> dict[str, nn.Module]:
    """The module of each layer.

    Raises:
        ModelError: There is none.
    """
    parameters = dict(model.named_parameters())
    owners = {id(m._parameters.get("weight")): m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)}
    found = {layer.name: owners.get(id(parameters[layer.name])) for layer in layers}
    for name, module in found.items():
        if module is None:
            raise ModelError(f"{name} does not belong to a convolution or linear module; cut its weights before quantize")
    return {name: module for name, module in found.items() if module is not None}


def _checked(name: str, total: Tensor | None, count: int) -> Tensor:
    if total is None or not count:
        raise ModelError(f"the layer of {name} is not called on this data; exclude it")
    if not total.isfinite().all():
        raise DataError(f"what the layer of {name} reads is NaN or infinite; look for inputs out of range")
    return total / count
