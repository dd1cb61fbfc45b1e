"""Patterns of sparsity: which weights live or die together, and how a layer keeps so many of them.

A weight is seen as ``(O, I, K)``: outputs, inputs (within their group), places in the kernel.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from penjing.errors import RecipeError


@dataclass(frozen=True)
class Pattern:
    """What lives or dies together: one *unit*.

    Attributes:
        outputs: How many neighbouring outputs a unit spans.
        inputs: How many neighbouring inputs.
        kernel: Whether it spans the kernel.
        keep: For N:M, how many (N) of every ``of`` (M) neighbouring inputs stay, at each output and place; else 0.
    """

    name: str
    outputs: int = 1
    inputs: int = 1
    kernel: bool = False
    keep: int = 0
    of: int = 0

    @property
    def density(self) -> float | None:
        """The share of weights that the pattern itself fixes."""
        return self.keep / self.of if self.of else None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight ``(O, I, K)`` can be divided so."""
        return shape[0] % self.outputs == 0 and shape[1] % (self.of or self.inputs) == 0

    def units(self, weight: Tensor) -> Tensor:
        """``(O, I, K) -> (units, size)``."""
        o, i, k = weight.shape
        a, b = self.outputs, self.inputs
        split = weight.reshape(o // a, a, i // b, b, k)
        if self.kernel:
            return split.permute(0, 2, 1, 3, 4).reshape(-1, a * b * k)
        return split.permute(0, 2, 4, 1, 3).reshape(-1, a * b)

    def spread(self, chosen: Tensor, shape: tuple[int, ...]) -> Tensor:
        """One value for each unit ``(units,)`` -> one for each of its weights ``(O, I, K)``."""
        o, i, k = shape
        a, b = self.outputs, self.inputs
        if self.kernel:
            wide = chosen.view(o // a, 1, i // b, 1, 1).expand(-1, a, -1, b, k)
        else:
            wide = chosen.view(o // a, i // b, k, 1, 1).permute(0, 3, 1, 4, 2).expand(-1, a, -1, b, -1)
        return wide.reshape(shape)

    def best_of_each(self, scores: Tensor, density: float, shape: tuple[int, ...]) -> Tensor:
        """For N:M: which of ``scores (weights,)`` stay, the highest of every M neighbours; boolean ``(weights,)``.

        As many as N, or as ``density`` asks for where that is more, so that it can fall step by step.
        """
        o, i, k = shape
        each = max(self.keep, math.ceil(density * self.of - 1e-9))
        neighbours = scores.view(o, i // self.of, self.of, k).transpose(2, 3)
        order = neighbours.sort(dim=3, descending=True, stable=True).indices
        chosen = torch.zeros_like(neighbours, dtype=torch.bool).scatter(3, order[..., :each], True)
        return chosen.transpose(2, 3).flatten()


def highest(scores: Tensor, count: int) -> Tensor:
    """Exactly ``count`` of ``scores (n,)``, the highest, of equal ones the first; boolean ``(n,)``."""
    if count <= 0 or count >= len(scores):
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    edge = scores.kthvalue(len(scores) - count + 1).values
    chosen = scores > edge
    equal = (scores == edge).nonzero()[:, 0]
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen


def pattern_named(name: str) -> Pattern:
    """The pattern of that name.

    ``unstructured``: single weights. ``2:4`` and the like: 2 of every 4 neighbouring inputs, at each output and place in the
    kernel, which is the dimension that NVIDIA's sparse tensor cores sum over (arXiv:2104.08378). ``block:AxB``: A neighbouring
    outputs by B neighbouring inputs, at one place in the kernel. ``kernel``: all of one input's weights for one output, which
    for linear layers and 1x1 convolutions is a single one.

    Raises:
        RecipeError: There is none.
    """
    if name == "unstructured":
        return Pattern(name)
    if name == "kernel":
        return Pattern(name, kernel=True)
    if (m := re.fullmatch(r"block:(\d+)x(\d+)", name)) and min(sizes := [int(s) for s in m.groups()]) > 0:
        return Pattern(name, outputs=sizes[0], inputs=sizes[1])
    if (m := re.fullmatch(r"(\d+):(\d+)", name)) and 0 < int(m[1]) < int(m[2]):
        return Pattern(name, keep=int(m[1]), of=int(m[2]))
    raise RecipeError(
        f"pattern {name!r} is not known; choose 'unstructured', 'kernel', N:M with N < M such as '2:4', "
        "or block:OUTPUTSxINPUTS such as 'block:4x1'"
    )
