"""Norms and directions whose gradients stay finite where a vector is zero, as the features of a dead layer are."""

import torch
from torch import Tensor


def wide(value: Tensor) -> Tensor:
    """In float32 at least: half precision is too coarse for norms, differences and probabilities."""
    return value if value.dtype == torch.float64 else value.float()


def unit(rows: Tensor) -> Tensor:
    """Each row, along dimension 1, over its norm; a row of zeros stays zero and gets no gradient."""
    squares = rows.square().sum(1, keepdim=True)
    some = squares > torch.finfo(rows.dtype).tiny
    return rows * torch.where(some, torch.where(some, squares, 1).rsqrt(), 0)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, of the rows of ``(N, M)``; 0 without gradient where a row is constant."""
    return (unit(_centered(a)) * unit(_centered(b))).sum(1)


def distances(rows: Tensor) -> Tensor:
    """Euclidean, between all rows of ``(N, M)``: ``(N, N)``, over the mean of those that are not 0."""
    squares = _apart(_gram(rows))
    some = squares > 0
    found = torch.where(some, torch.where(some, squares, 1).sqrt(), 0)  # at 0 the root itself has no gradient
    mean = found.sum() / some.sum().clamp(min=1)
    return (found / torch.where(mean > 0, mean, 1)).to(rows.dtype)


def angles(rows: Tensor) -> Tensor:
    """Cosines ``(i, j, k)`` of the angle at row ``i`` between rows ``j`` and ``k``; 0 where ``i`` equals one of them."""
    gram = _gram(rows)
    own = gram.diagonal()[:, None, None]
    products = gram[None] - gram[:, :, None] - gram[:, None, :] + own
    squares = _apart(gram)
    some = squares > 0
    inverse = torch.where(some, torch.where(some, squares, 1).rsqrt(), 0)
    return (products * inverse[:, :, None] * inverse[:, None, :]).to(rows.dtype)


def _centered(rows: Tensor) -> Tensor:
    """Less their mean; what rounding leaves of constant rows is taken away."""
    rest = rows - rows.mean(1, keepdim=True)
    noise = (4 * torch.finfo(rows.dtype).eps) ** 2
    return torch.where(rest.square().sum(1, keepdim=True) > noise * rows.square().sum(1, keepdim=True), rest, 0)


def _gram(rows: Tensor) -> Tensor:
    """Products of all rows, less their mean. In float64, so that differences of its entries are as good as of the rows: the
    differences themselves would take N times the memory of the rows."""
    rows = rows.double()
    rows = rows - rows.mean(0)
    return rows @ rows.T


def _apart(gram: Tensor) -> Tensor:
    """Squared distances; those that are no more than rounding are 0, without gradient."""
    sizes = gram.diagonal()[:, None] + gram.diagonal()[None]
    squares = sizes - 2 * gram
    return torch.where(squares > 1e-13 * sizes, squares, 0)
