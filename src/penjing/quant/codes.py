"""Which integers a layer's weights become, by what its output loses: a quadratic form on the grid, and three ways down.

With the second moments of what the layer reads, its squared error is known without the data (Nagel et al. 2020,
arXiv:2004.10568): rounding each weight to the nearest integer is rarely best, since errors of weights that read correlated
inputs can cancel. A quantizer is a function ``Problem -> codes``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

GAMMA, ZETA = -0.1, 1.1  # the sigmoid is stretched to this range and clipped, so that 0 and 1 are reached
LEAN = 0.45  # so far from an integer a number may start; what is nearer to the edge leaves it at the first steps
EDGE = 0.001  # so much nearer to one of two integers is what is said to have it
COLUMNS = 128  # that are rounded before those behind them are updated


@dataclass(frozen=True)
class Problem:
    """Minimize ``tr((V - target) second (V - target)^T)`` over values ``V`` on a grid, in float64, for each group of channels.

    Attributes:
        target: The real weights that fit best, ``(groups, outputs, d)``.
        second: Of what the layer reads, ``(groups, d, d)``; positive definite.
        scale: Of each weight, like ``target``.
        zero_point: Of each weight, like ``target``.
        low: The least integer.
        high: The greatest.
    """

    target: Tensor
    second: Tensor
    scale: Tensor
    zero_point: Tensor
    low: int
    high: int

    def encode(self, values: Tensor) -> Tensor:
        """The nearest integers, as float64."""
        return ((values / self.scale).round() + self.zero_point).clamp(self.low, self.high)

    def decode(self, codes: Tensor) -> Tensor:
        """The values that integers stand for."""
        return (codes - self.zero_point) * self.scale

    def errors(self, codes: Tensor) -> Tensor:
        """The error of each output, ``(groups, outputs)``."""
        off = self.decode(codes) - self.target
        return ((off @ self.second) * off).sum(2)


def gptq_codes(problem: Problem) -> Tensor:
    """Round column after column, and let those behind make up for each error (GPTQ, Frantar et al. 2022, arXiv:2210.17323).

    Columns of large inputs come first, while there are many left to make up for them.
    """
    order = problem.second.diagonal(dim1=1, dim2=2).argsort(1, descending=True)

    def turned(x: Tensor) -> Tensor:
        return x.gather(2, order[:, None].expand_as(x))

    second = turned(turned(problem.second).mT).mT
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(second))
    # Row j holds what column j's error asks of those behind it, once those before it are settled.
    upper = torch.linalg.cholesky(inverse).mT
    sorted_problem = Problem(
        turned(problem.target), second, turned(problem.scale), turned(problem.zero_point), problem.low, problem.high
    )
    codes = _settled(sorted_problem, upper)
    return codes.gather(2, order.argsort(1)[:, None].expand_as(codes))


def _settled(problem: Problem, upper: Tensor) -> Tensor:
    weight, codes = problem.target.clone(), torch.empty_like(problem.target)
    for start in range(0, weight.shape[2], COLUMNS):
        part = weight[:, :, start : start + COLUMNS]  # a view: what is settled here shows in ``weight``
        errors = torch.zeros_like(part)
        for j in range(part.shape[2]):
            at = start + j
            scale, zero = problem.scale[:, :, at], problem.zero_point[:, :, at]
            codes[:, :, at] = ((part[:, :, j] / scale).round() + zero).clamp(problem.low, problem.high)
            errors[:, :, j] = (part[:, :, j] - (codes[:, :, at] - zero) * scale) / upper[:, None, at, at]
            part -= errors[:, :, j, None] * upper[:, None, at, start : start + COLUMNS]
        weight[:, :, start + COLUMNS :] -= errors @ upper[:, start : start + COLUMNS, start + COLUMNS :]
    return codes


def flipped(problem: Problem, codes: Tensor) -> Tensor:
    """Move single weights up or down by one integer, each time the one that helps its output most, until none does.

    Greedy coordinate descent (arXiv:2406.17542): no error of an output grows. What a move gains is known in closed form,
    ``2 step (second off)_j + step^2 second_jj``.
    """
    shape = codes.shape
    codes = codes.reshape(-1, shape[2]).clone()
    group = torch.arange(shape[0]).repeat_interleave(shape[1])
    scale, target = problem.scale.reshape(codes.shape), problem.target.reshape(codes.shape)
    zero, diagonal = problem.zero_point.reshape(codes.shape), problem.second.diagonal(dim1=1, dim2=2)
    off = ((codes - zero) * scale - target).view(shape)
    slope = (off @ problem.second).reshape(codes.shape)
    rows = torch.arange(len(codes))
    least = 1e-9 * scale.square().mean(1) * diagonal.mean(1)[group]  # a gain below it is rounding, and might come back
    for _ in range(4 * shape[2]):
        way = -slope[rows].sign()
        free = torch.where(way > 0, codes[rows] < problem.high, codes[rows] > problem.low) & (way != 0)
        step = way * scale[rows]
        gain = (2 * step * slope[rows] + step.square() * diagonal[group[rows]]).masked_fill(~free, torch.inf)
        best, at = gain.min(1)
        moves = best < -least[rows]
        rows, at = rows[moves], at[moves]
        if not len(rows):
            break
        chosen = torch.arange(len(rows))
        codes[rows, at] += way[moves][chosen, at]
        slope[rows] += step[moves][chosen, at, None] * problem.second[group[rows], at]
    return codes.view(shape)


def best_of(problem: Problem, found: list[Tensor]) -> Tensor:
    """For each output the codes with the least error."""
    errors = torch.stack([problem.errors(codes) for codes in found])
    best = errors.argmin(0)[None, :, :, None].expand(1, *found[0].shape)
    return torch.stack(found).gather(0, best)[0]


def rectified_sigmoid(x: Tensor) -> Tensor:
    """From 0 to 1, and both are reached."""
    return (x.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_sigmoid(share: Tensor) -> Tensor:
    """The ``x`` whose ``rectified_sigmoid`` is ``share``, from 0 to 1."""
    return -((ZETA - GAMMA) / (share - GAMMA) - 1).log()


def undecided(share: Tensor, beta: float) -> Tensor:
    """How far shares are from 0 and 1, in all: ``sum(1 - |2 share - 1| ** beta)``; a large ``beta`` lets the middle be."""
    return (1 - (2 * share - 1).abs().pow(beta)).sum()


def annealed(step: int, steps: int) -> float | None:
    """``beta`` of ``undecided`` at a step: from 20 down to 2; None in the first fifth, which is free."""
    warm = steps // 5
    return None if step < warm else 2 + 18 * (1 - (step - warm) / max(1, steps - warm))


@dataclass(frozen=True)
class Learned(ABC):
    """A layer's integers while they are learned by gradient; all integers are without the zero point.

    Attributes:
        latent: Learned.
        scale: Of each weight.
        limits: The least and the greatest integer.
    """

    latent: Tensor
    scale: Tensor
    limits: tuple[Tensor, Tensor]

    @abstractmethod
    def reached(self) -> Tensor:
        """The numbers that the latent ones stand for, which may lie between integers; gradients go through."""

    def value(self) -> Tensor:
        """The weights that these are; gradients reach ``latent``."""
        return self.reached().clamp(*self.limits) * self.scale

    def settled(self) -> Tensor:
        """The integers that are nearest."""
        return self.reached().detach().round().clamp(*self.limits)


@dataclass(frozen=True)
class Between(Learned):
    """Each weight between ``floor`` and the next integer; ``rectified_sigmoid(latent)`` is how far up (arXiv:2004.10568)."""

    floor: Tensor

    @classmethod
    def of(cls, start: Tensor, target: Tensor, scale: Tensor, limits: tuple[Tensor, Tensor]) -> "Between":
        """Half-way between the integers ``start``, still nearer to them, and the target, or their neighbors towards it."""
        real = target / scale
        floor = torch.where(real > start, start, start - 1)
        share = ((real - floor).clamp(0, 1) + start - floor) / 2
        share = torch.where(start > floor, share.clamp(min=0.5 + EDGE), share.clamp(max=0.5 - EDGE))
        latent = inverse_sigmoid(share.float()).requires_grad_()
        return cls(latent, scale.float(), (limits[0].float(), limits[1].float()), floor.float())

    def up(self) -> Tensor:
        """How far up each weight is, from 0 to 1."""
        return rectified_sigmoid(self.latent)

    def reached(self) -> Tensor:
        return self.floor + self.up()


@dataclass(frozen=True)
class Straight(Learned):
    """Real numbers that are rounded on the way forward, with gradients that go straight through it (arXiv:1308.3432)."""

    @classmethod
    def of(cls, start: Tensor, target: Tensor, scale: Tensor, limits: tuple[Tensor, Tensor]) -> "Straight":
        """Half-way between the integers ``start``, still nearer to them, and the target."""
        latent = start + ((target / scale - start) / 2).clamp(-LEAN, LEAN)
        return cls(latent.float().requires_grad_(), scale.float(), (limits[0].float(), limits[1].float()))

    def reached(self) -> Tensor:
        return self.latent + (self.latent.round() - self.latent).detach()


def relaxed_codes(problem: Problem, start: Tensor, *, steps: int, lr: float, push: float) -> Tensor:
    """Learn which of two neighbors each weight becomes (AdaRound, arXiv:2004.10568), from the codes ``start``.

    On the second moments, so that a step costs the same however much data there is.

    Args:
        push: Weight of ``undecided``, where 1 is the error of a weight that is rounded to the nearest, by itself.
    """
    limits = problem.low - problem.zero_point, problem.high - problem.zero_point
    between = Between.of(start - problem.zero_point, problem.target, problem.scale, limits)
    diagonal = problem.second.diagonal(dim1=1, dim2=2)[:, None]
    unit = (problem.scale.square() * diagonal).mean() / 12  # the variance of what is even over a step
    second, target = (problem.second / unit).float(), problem.target.float()
    adam = torch.optim.Adam([between.latent], lr=lr)
    for step in range(steps):
        adam.zero_grad()
        value = between.value()
        slope = 2 * (value.detach() - target) @ second
        beta = annealed(step, steps)
        held = 0.0 if beta is None else push * undecided(between.up(), beta)
        ((value * slope).sum() + held).backward()  # the quadratic form's own gradient, at half the cost
        adam.step()
    return between.settled().double() + problem.zero_point
