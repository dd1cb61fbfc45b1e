"""The textbook's pruning of single weights by a clipped gradient, with its formula as it stands and its code put right."""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import DataError, RecipeError, TrainingError
from penjing.graph import check_weights
from penjing.progress import Progress, silent
from penjing.prune.masks import check_pattern, choose_masks, settled
from penjing.score.layer_weights import layer_weights
from penjing.task import Task, as_tuple


def sparsify_textbook(
    model: nn.Module,
    task: Task,
    density: float = 0.1,
    *,
    steps: int = 200,
    lr: float = 0.05,
    epsilon: float = 0.1,
    scope: str = "layer",
    exclude: Sequence[str] = (),
    progress: Progress = silent,
) -> nn.Module:
    r"""Train a copy of ``model`` by clipped gradients, zeroing at every step the weights whose update matters least.

    The chapter's three steps (loss gradient; clip it and zero a part; update), for one batch of ``task.train`` a step:

    1. ``J = dL/dW``, the gradient of ``task.loss``, for every trained tensor ``W``.
    2. ``W <- W - lr * clip(J, -epsilon / |J|_1, +epsilon / |J|_1)``. ``|J|_1`` is the sum of the magnitudes of ``J`` over
       that one tensor, since the formula is about one ``W``. Where ``J`` is all zero, ``W`` stays.
    3. In the weights of convolutions and linear layers, all but the share ``density`` become zero. *Matters least* is read
       as the lowest ``|W * clip(J)|``, with the ``W`` after and the ``clip(J)`` of the update: setting a weight to zero is an
       update by ``-W``, and the clipped gradient says that it changes the loss by so much, to first order. Clipping alone
       would not tell weights apart, as many lie at the bound; the tighter it is, the nearer this comes to the magnitude
       alone. Among weights whose gradient is zero the larger stays.

    A weight that is zero takes part in the next update and stays only if it then matters more than another. Biases and the
    weights of norms follow 2 and are never zeroed. Norms use, and renew, the statistics of each batch.

    The chapter prints code that cannot do this, and this does not follow it there: it asks for gradients under ``no_grad``,
    where there are none; differentiates the output, not a loss, so that no label plays a part (and ``grad`` refuses an output
    that is no scalar); takes the first parameter's gradient for that of all; derives epsilon from the mean gradient and the
    sparsity, where the formula divides by the norm; divides the update by the number of weights in place of a learning rate;
    and zeroes nothing.

    Args:
        density: The share of weights that stay (the chapter's *sparsity rate*), above 0 and at most 1; exact after every step.
        steps: How many batches; ``task.train`` is walked again as often as that takes.
        lr: The formula's alpha; constant.
        epsilon: Bounds one update: ``lr * epsilon / |J|_1``. The larger the gradient, the tighter.
        scope: How the density is divided among the layers; as for ``sparsify``.
        exclude: Patterns of parameter names that are trained and stay dense.

    Returns:
        The trained copy, in eval mode.

    Raises:
        RecipeError: A setting is out of range.
        ModelError: The model has no weights to cut, or some that are not finite.
        DataError: ``task.train`` is empty.
        TrainingError: The loss is not finite.
    """
    _check(density, steps, lr, epsilon, scope)
    check_weights(model)
    net = copy.deepcopy(model).train()
    _, pattern = settled(density, "unstructured", scope)
    layers = layer_weights(net, exclude)
    check_pattern(layers, pattern)
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    with torch.random.fork_rng(), progress("clipped gradients", steps) as advance:
        torch.manual_seed(0)
        for step, (inputs, target) in enumerate(itertools.islice(_endless(task), steps)):
            value, gradients = _gradients(net, trained, task, inputs, target, step)
            with torch.no_grad():
                clipped = {name: clip(j, epsilon) for name, j in gradients.items()}
                for name, j in clipped.items():
                    trained[name].sub_(j, alpha=lr)
                weights = {layer.name: net.get_parameter(layer.name) for layer in layers}
                scores = {name: _mattering(w, clipped.get(name)) for name, w in weights.items()}
                masks = choose_masks(layers, weights, scores, density, pattern=pattern, scope=scope)
                for name, w in weights.items():
                    w.masked_fill_(~masks[name], 0)
            advance(f"loss {value:.4f}")
    return net.eval()


def clip(gradient: Tensor, epsilon: float) -> Tensor:
    """``clip(J, -epsilon / |J|_1, +epsilon / |J|_1)``; of any shape, and zero where ``J`` is all zero."""
    norm = gradient.abs().sum(dtype=torch.float64)
    bound = (epsilon / norm.clamp_min(torch.finfo(torch.float64).tiny)).to(gradient.dtype)
    return gradient.clamp(-bound, bound)


def _mattering(weight: Tensor, clipped: Tensor | None) -> Tensor:
    """``|W * clip(J)|``, in an order that falls back on ``|W|`` where the gradient is zero; frozen weights have none."""
    size = weight.abs().double()
    product = size * clipped.abs().double() if clipped is not None else torch.zeros_like(size)
    smallest = product[product > 0].min() if (product > 0).any() else torch.ones((), dtype=torch.float64)
    return torch.where(product > 0, product, smallest / 2 * size / size.max().clamp_min(torch.finfo(size.dtype).tiny))


def _gradients(
    net: nn.Module, trained: dict[str, nn.Parameter], task: Task, inputs: Any, target: Any, step: int
) -> tuple[float, dict[str, Tensor]]:
    device = next(iter(trained.values())).device
    target = target.to(device) if isinstance(target, Tensor) else target
    value = task.loss(net(*(x.to(device) for x in as_tuple(inputs))), target)
    if not math.isfinite(float(value.detach())):
        raise TrainingError(f"the loss is {float(value.detach())} at step {step + 1}; try a lower lr or epsilon")
    found = torch.autograd.grad(value, list(trained.values()), allow_unused=True, materialize_grads=True)
    return float(value.detach()), dict(zip(trained, found, strict=True))


def _endless(task: Task) -> Iterator[tuple[Any, Any]]:
    """The training batches, over and over, in a new order each time where the loader knows ``set_epoch``."""
    for epoch in itertools.count():
        set_epoch = getattr(task.train, "set_epoch", None)
        if set_epoch:
            set_epoch(epoch)
        empty = True
        for batch in task.train:
            empty = False
            yield batch
        if empty:
            raise DataError("task.train is empty: it yields no batch; give at least one (inputs, target) pair")


def _check(density: float, steps: int, lr: float, epsilon: float, scope: str) -> None:
    settled(density, "unstructured", scope)
    if steps < 1:
        raise RecipeError(f"steps is {steps}; give at least 1")
    for name, value in (("lr", lr), ("epsilon", epsilon)):
        if not 0 < value < math.inf:
            raise RecipeError(f"{name} is {value}; give a positive number")
