"""``torch.einsum`` as the permutations and matrix products that it is, for which there are rules."""

import math
from typing import Any

import torch
from torch import Tensor

EINSUM = torch.ops.aten.einsum.default


def by_products(equation: str, operands: list[Tensor], path: list[int] | None = None) -> Any:
    """The sum over products of two operands, dimension by dimension; anything rarer stays as it is written.

    Letters that both have and the result has too go in front, those that both have alone are summed over, and the last
    letter that only one has is that one's rows or columns.
    """
    del path
    given, arrow, asked = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    if not arrow or "." in given or len(terms) != 2 or any(len(set(t)) < len(t) for t in (*terms, asked)):
        return NotImplemented
    (one, two), (a, b) = terms, operands
    sizes = {**dict(zip(two, b.shape, strict=True)), **dict(zip(one, a.shape, strict=True))}
    for term in terms:
        if any(c not in asked and c not in other for other in terms if other is not term for c in term):
            return NotImplemented  # summed over in one operand alone
    shared = [c for c in one if c in two and c in asked]
    summed = [c for c in one if c in two and c not in asked]
    left, right = ([c for c in term if c not in other] for term, other in ((one, two), (two, one)))
    if not summed:
        return NotImplemented
    rows, lead = left[-1:], [*shared, *left[:-1]]
    a = a.permute([one.index(c) for c in (*lead, *rows, *summed)])
    b = b.permute([two.index(c) for c in (*shared, *summed, *right)])
    if not rows or len(summed) > 1:
        a = a.reshape([*_of(sizes, [*lead, *rows]), *([] if rows else [1]), math.prod(_of(sizes, summed))])
    if len(left) > 1 or len(summed) > 1 or len(right) != 1:
        within = [math.prod(_of(sizes, summed)), math.prod(_of(sizes, right))]
        b = b.reshape([*_of(sizes, shared), *[1] * len(left[:-1]), *within])
    found, made = torch.matmul(a, b), [*lead, *rows, *right]
    if not rows or len(right) != 1:
        found = found.reshape(_of(sizes, made))
    return found.permute([made.index(c) for c in asked])


def _of(sizes: dict[str, Any], letters: list[str]) -> list[Any]:
    return [sizes[c] for c in letters]
