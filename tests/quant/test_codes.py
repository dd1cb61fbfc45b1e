"""The quantizers of one layer, against every choice there is, and against a slow GPTQ written from the paper."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from penjing.quant.codes import (
    Between,
    Problem,
    Straight,
    annealed,
    best_of,
    flipped,
    gptq_codes,
    inverse_sigmoid,
    rectified_sigmoid,
    relaxed_codes,
    undecided,
)
from penjing.quant.rounding import AdaRound


def problem(seed: int, *, groups: int = 1, outputs: int = 2, d: int = 8, bits: int = 4, blocks: int = 1) -> Problem:
    """Correlated inputs, as pixels side by side are; a scale for each output, or for each part of its columns."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n = 40 + d
    rows = draw(groups, n, d) + 2 * draw(groups, n, 1)
    rows = rows * draw(groups, 1, d).exp()
    target = draw(groups, outputs, d)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    parts = target.view(groups, outputs, blocks, -1)
    scale = (parts.abs().amax(3, keepdim=True) / high).expand_as(parts).reshape(target.shape)
    return Problem(target, rows.mT @ rows / n, scale, torch.zeros_like(target), low, high)


def error(p: Problem, codes: Tensor) -> Tensor:
    """The definition, row by row."""
    off = (codes - p.zero_point) * p.scale - p.target
    return torch.einsum("gri,gij,grj->gr", off, p.second, off)


def least(p: Problem) -> Tensor:
    """The best of all ways to round each weight up or down, ``(groups, outputs)``."""
    d = p.target.shape[2]
    ways = torch.tensor(list(itertools.product((0.0, 1.0), repeat=d)), dtype=torch.float64)
    floor = (p.target / p.scale).floor() + p.zero_point
    found = [error(p, (floor + way).clamp(p.low, p.high)) for way in ways]
    return torch.stack(found).amin(0)


QUICK = AdaRound(steps=200)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_adaround_comes_near_the_best_of_all_choices_and_is_never_worse_than_nearest(bits: int) -> None:
    ratios: dict[str, list[Tensor]] = {"learned": [], "gptq": [], "nearest": []}
    for seed in range(4):
        p = problem(seed, outputs=6, d=8, bits=bits)
        best, nearest = least(p), error(p, p.encode(p.target))
        learned = error(p, QUICK(p))
        assert (learned <= nearest * (1 + 1e-12)).all()
        for name, found in (("learned", learned), ("gptq", error(p, gptq_codes(p))), ("nearest", nearest)):
            ratios[name].append(found.sum() / best.sum())
    learned, gptq, nearest = (float(torch.stack(ratios[n]).mean()) for n in ("learned", "gptq", "nearest"))
    assert learned < 1.03  # it may lie below 1: moves may lead beyond the two neighbors
    assert learned < gptq < nearest


def test_moves_stop_where_no_single_one_helps() -> None:
    p = problem(3, groups=2, outputs=3, d=6, bits=3)
    codes = flipped(p, p.encode(p.target))
    reached = error(p, codes)
    for g, r, j, way in itertools.product(range(2), range(3), range(6), (-1, 1)):
        other = codes.clone()
        other[g, r, j] += way
        if p.low <= other[g, r, j] <= p.high:
            assert error(p, other)[g, r] >= reached[g, r] * (1 - 1e-9)
    assert (reached <= error(p, p.encode(p.target))).all()
    assert not torch.equal(codes, p.encode(p.target))


def slow_gptq(p: Problem, order: Tensor) -> Tensor:
    """Optimal brain quantization in a fixed order, of one group: after each column its row and column leave the Hessian."""
    weight, codes = p.target[0].clone(), torch.zeros_like(p.target[0])
    left = order.tolist()
    while left:
        j = left[0]
        inverse = torch.linalg.inv(p.second[0][left][:, left])
        codes[:, j] = ((weight[:, j] / p.scale[0, :, j]).round() + p.zero_point[0, :, j]).clamp(p.low, p.high)
        off = weight[:, j] - (codes[:, j] - p.zero_point[0, :, j]) * p.scale[0, :, j]
        weight[:, left] -= off[:, None] * inverse[0] / inverse[0, 0]
        left = left[1:]
    return codes


@pytest.mark.parametrize(("bits", "blocks"), [(4, 1), (3, 1), (2, 3)])
def test_gptq_is_what_the_paper_defines(bits: int, blocks: int) -> None:
    p = problem(1, outputs=5, d=24, bits=bits, blocks=blocks)
    p = Problem(p.target, p.second, p.scale, torch.ones_like(p.target), p.low, p.high)
    order = p.second[0].diagonal().argsort(descending=True)
    expected = slow_gptq(p, order)
    assert torch.equal(gptq_codes(p)[0], expected)
    assert not torch.equal(expected, slow_gptq(p, order.flip(0)))


def test_gptq_of_many_columns_and_groups_is_that_of_each_group() -> None:
    p = problem(2, groups=2, outputs=2, d=200)
    found = gptq_codes(p)
    for g in range(2):
        one = Problem(*(t[g : g + 1] for t in (p.target, p.second, p.scale, p.zero_point)), p.low, p.high)
        assert torch.equal(found[g], slow_gptq(one, p.second[g].diagonal().argsort(descending=True)))


@pytest.mark.parametrize("quantizer", [gptq_codes, QUICK, lambda p: flipped(p, gptq_codes(p))])
def test_codes_are_integers_within_the_limits(quantizer: Callable[[Problem], Tensor]) -> None:
    p = problem(5, groups=3, outputs=4, d=6, bits=2)
    p = Problem(p.target * 2, p.second, p.scale, p.zero_point, p.low, p.high)  # half of it beyond the grid
    codes = quantizer(p)
    assert torch.equal(codes, codes.round())
    assert codes.min() >= p.low
    assert codes.max() <= p.high


def test_each_output_gets_its_best() -> None:
    p = problem(6, outputs=3)
    one, other = p.encode(p.target), gptq_codes(p)
    mixed = best_of(p, [one, other])
    torch.testing.assert_close(error(p, mixed), torch.minimum(error(p, one), error(p, other)))


def test_what_is_learned_is_better_than_the_nearest_before_any_move() -> None:
    p = problem(7, outputs=16, d=16)
    nearest = p.encode(p.target)
    learned = relaxed_codes(p, nearest, steps=300, lr=0.1, push=1.0)
    assert error(p, learned).sum() < 0.9 * error(p, nearest).sum()


def test_the_sigmoid_reaches_both_ends_and_is_undone() -> None:
    share = torch.linspace(0, 1, 11)
    torch.testing.assert_close(rectified_sigmoid(inverse_sigmoid(share)), share)
    assert rectified_sigmoid(torch.tensor([-4.0, 4.0])).tolist() == [0, 1]


def test_shares_are_pushed_to_the_ends_and_harder_towards_the_end() -> None:
    share = torch.tensor([0.0, 0.5, 1.0])
    assert float(undecided(share, 2.0)) == 1
    middle = torch.tensor([0.3])
    assert undecided(middle, 20.0) > undecided(middle, 2.0) > 0
    assert [annealed(s, 10) for s in (0, 1, 2, 6)] == [None, None, 20.0, 11.0]


@pytest.mark.parametrize("kind", [Between, Straight])
def test_what_is_learned_starts_at_the_integers_that_it_is_given(kind: type[Between | Straight]) -> None:
    start = torch.tensor([3.0, 3, 3, 3, 3, -4, 3])
    real = torch.tensor([3.2, 2.8, 4.9, 0.3, 3.0, -9.0, 3.999])
    scale, limits = torch.full((7,), 0.5), (torch.tensor(-4.0), torch.tensor(3.0))
    learned = kind.of(start, real * scale, scale, limits)
    assert torch.equal(learned.settled(), start)
    learned.value()[1].backward()
    assert learned.latent.grad is not None
    assert learned.latent.grad.nonzero().tolist() == [[1]]
    with torch.no_grad():
        learned.latent.sub_(3.0)
    assert (learned.settled() <= start).all()
    assert learned.settled()[1] < start[1]
