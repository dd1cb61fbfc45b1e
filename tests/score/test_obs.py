"""Structured OBS against least squares solved outright, and its order against every choice there is."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.errors import DataError
from penjing.graph import Axis, Group, capture
from penjing.score import Evidence
from penjing.score.flow import calibration, tensor_of
from penjing.score.gram import input_moments
from penjing.score.obs import Consumer, _energy, greedy_removal, ranked, structured_obs
from penjing.score.products import products
from tests.oracle import randomized


def correlated(samples: int, channels: int, size: int = 6, seed: int = 0) -> Tensor:
    """Images after a ReLU whose channels tell much the same, as in a trained network."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(samples, channels // 2, size, size, generator=generator, dtype=torch.float64)
    mixed = torch.einsum("oc,nchw->nohw", torch.randn(channels, channels // 2, generator=generator, dtype=torch.float64), few)
    noise = torch.randn(mixed.shape, generator=generator, dtype=torch.float64)
    return F.relu(F.avg_pool2d(mixed, 3, 1, 1) + 0.1 * noise + 0.2)


def consumer(layer: nn.Module, x: Tensor, index: Tensor, ridge: float = 1e-14) -> Consumer:
    graph = capture(layer, x[:2])
    (product,) = products(graph).values()
    moments = input_moments(graph, calibration([x], graph), {product.weight})[product.weight]
    return Consumer.of(product, tensor_of(graph, product.weight), moments, index, ridge=ridge)


def design(x: Tensor, kept: list[int], groups: int = 1, intercept: bool = True) -> list[np.ndarray]:
    """By hand: the rows that a 3x3 convolution reads of some channels of each of its groups."""
    parts = []
    for part in x.chunk(groups, 1):
        rows = F.unfold(part[:, kept], 3, padding=1).transpose(1, 2).flatten(0, 1)
        parts.append(torch.cat([rows, torch.ones(len(rows), int(intercept), dtype=rows.dtype)], 1).numpy())
    return parts


def least_error(x: Tensor, y: Tensor, kept: list[int], groups: int = 1, intercept: bool = True) -> float:
    """The squared error, as a share of the output's variance, of the best layer on some of the channels."""
    total = 0.0
    for rows, target in zip(design(x, kept, groups, intercept), y.chunk(groups, 1), strict=True):
        wanted = target.movedim(1, -1).reshape(len(rows), -1).numpy()
        fitted = rows @ np.linalg.lstsq(rows, wanted, rcond=None)[0]
        total += ((wanted - fitted) ** 2).sum()
    return float(total / ((y - y.mean((0, 2, 3), keepdim=True)) ** 2).sum())


@pytest.mark.parametrize(("groups", "bias"), [(1, True), (1, False), (2, True)])
def test_the_error_is_that_of_least_squares_at_every_removal(groups: int, bias: bool) -> None:
    channels = 6 * groups
    x = correlated(8, channels)
    layer = nn.Conv2d(channels, 4, 3, padding=1, groups=groups, bias=bias).double()
    y = layer(x).detach()
    held = consumer(layer, x, torch.arange(6)[:, None])
    alive, total = list(range(6)), 0.0
    for gone in (3, 0, 5):
        errors = held.errors(torch.tensor(alive))
        for place, channel in enumerate(alive):
            expected = least_error(x, y, [c for c in alive if c != channel], groups, bias)
            assert total + float(errors[place]) == pytest.approx(expected, rel=1e-8)
        total += float(errors[alive.index(gone)])
        held.remove(gone)
        alive.remove(gone)


def test_a_channel_of_several_columns_is_one_block() -> None:
    x = correlated(40, 4, size=2)
    layer = nn.Linear(16, 3).double()
    held = consumer(layer, x.flatten(1), torch.arange(16).view(4, 4))
    y, rows = layer(x.flatten(1)).detach(), x.flatten(2)
    for channel, error in enumerate(held.errors(torch.arange(4)).tolist()):
        kept = torch.cat([rows[:, [c for c in range(4) if c != channel]].flatten(1), torch.ones(40, 1)], 1).numpy()
        residual = y.numpy() - kept @ np.linalg.lstsq(kept, y.numpy(), rcond=None)[0]
        assert error == pytest.approx((residual**2).sum() / float(((y - y.mean(0)) ** 2).sum()), rel=1e-8)


def test_greedy_is_near_the_best_of_all_choices_and_refitting_is_worth_more_than_choosing() -> None:
    x = correlated(16, 12, seed=3)
    layer = nn.Conv2d(12, 16, 3, padding=1).double()
    y = layer(x).detach()
    order, errors = greedy_removal([consumer(layer, x, torch.arange(12)[:, None])])
    assert sorted(order.tolist()) == list(range(12))
    for removed in (3, 6):
        kept = sorted(order[removed:].tolist())
        greedy = least_error(x, y, kept)
        assert greedy == pytest.approx(float(errors[:removed].sum()), rel=1e-6)
        best = _best(x, y, 12 - removed)
        assert best <= greedy * (1 + 1e-9)
        assert greedy**0.5 <= 1.05 * best**0.5
        by_norm = layer.weight.square().sum((0, 2, 3)).argsort(descending=True)[: 12 - removed].tolist()
        unrepaired = F.conv2d(x[:, by_norm], layer.weight[:, by_norm], layer.bias, padding=1).detach()
        lost = float((unrepaired - y).square().sum() / (y - y.mean((0, 2, 3), keepdim=True)).square().sum())
        assert lost**0.5 > 2 * greedy**0.5
        assert least_error(x, y, sorted(by_norm)) >= greedy


def _best(x: Tensor, y: Tensor, width: int) -> float:
    """The least error of all choices of ``width`` channels, by the normal equations."""
    (rows,), wanted = design(x, list(range(x.shape[1]))), y.movedim(1, -1).reshape(-1, y.shape[1]).numpy()
    second, cross = rows.T @ rows, rows.T @ wanted
    best = np.inf
    for kept in combinations(range(x.shape[1]), width):
        at = [9 * c + k for c in kept for k in range(9)] + [second.shape[0] - 1]
        best = min(best, -np.sum(cross[at] * np.linalg.solve(second[np.ix_(at, at)], cross[at])))
    return float((best + (wanted**2).sum()) / ((wanted - wanted.mean(0)) ** 2).sum())


def test_scores_rise_along_the_order() -> None:
    order, errors = torch.tensor([2, 0, 3, 1]), torch.tensor([0.0, 0.0, 0.5, 0.25], dtype=torch.float64)
    scores = ranked(order, errors)
    assert scores.argsort(stable=True).tolist() == order.tolist()
    assert len(scores.unique()) == 4
    torch.testing.assert_close(scores, torch.tensor([0, 0.5, 0, 0.5], dtype=torch.float64))


class Branches(nn.Module):
    """A layer that two others read, behind a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.b, self.c, self.head = nn.Conv2d(8, 6, 3), nn.Conv2d(8, 4, 1, bias=False), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.deep(F.relu(self.a(x))))
        out: Tensor = self.head(torch.cat([self.b(y).mean((2, 3)), self.c(y).mean((2, 3))], 1))
        return out


def test_what_several_layers_read_is_summed_and_depthwise_ones_are_passed() -> None:
    model = randomized(Branches()).double()
    x = torch.randn(20, 3, 6, 6, dtype=torch.float64)
    scores = structured_obs(Evidence.of(capture(model, x[:2]), [x]))
    assert set(scores) == {"a.weight", "b.weight", "c.weight"}
    with torch.no_grad():
        y = F.relu(model.deep(F.relu(model.a(x))))
    both = [consumer(layer, y, torch.arange(8)[:, None], 0.01) for layer in (model.b, model.c)]
    torch.testing.assert_close(scores["a.weight"], ranked(*greedy_removal(both)))
    alone = [consumer(model.b, y, torch.arange(8)[:, None], 0.01)]
    assert not torch.allclose(scores["a.weight"], ranked(*greedy_removal(alone)))


def test_a_constant_costs_next_to_nothing_where_something_can_take_it_up() -> None:
    model = randomized(Branches()).double()
    with torch.no_grad():
        model.deep.weight[5], model.deep.bias[5] = 0, 3
    x = torch.randn(20, 3, 6, 6, dtype=torch.float64)
    without = structured_obs(Evidence.of(capture(model, x[:2]), [x]))["a.weight"]
    model.c.bias = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    score = structured_obs(Evidence.of(capture(model, x[:2]), [x]))["a.weight"]
    assert float(score[5]) < 0.2 * float(without[5])


def test_what_no_layer_reads_is_scored_by_its_share_of_the_weights() -> None:
    group = Group((Axis("q.weight", 0, torch.arange(4)[:, None]), Axis("k.weight", 0, torch.arange(4)[:, None])))
    weights = {"q.weight": torch.ones(4, 6), "k.weight": torch.ones(4, 3)}
    weights["q.weight"][2], weights["k.weight"][2] = 0, 0
    torch.testing.assert_close(_energy(group, weights), torch.tensor([1 / 3, 1 / 3, 0, 1 / 3], dtype=torch.float64))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (None, "missing"),
        ([], "empty"),
        ([torch.zeros(0, 3, 6, 6)], "empty"),
        (torch.zeros(4, 3, 6, 6), "is Tensor"),
        ([torch.zeros(2, 3, 6, 5)], r"\(2, 3, 6, 5\).*\(2, 3, 6, 6\)"),
        ([torch.zeros(2, 3, 6, 6, dtype=torch.float64)], "float64"),
        ([torch.full((2, 3, 6, 6), torch.nan)], "NaN"),
        ([{"x": 1}], "dict"),
    ],
)
def test_bad_data_is_refused(data: Any, named: str) -> None:
    with pytest.raises(DataError, match=named):
        structured_obs(Evidence.of(capture(Branches(), torch.zeros(2, 3, 6, 6)), data))


def test_targets_are_not_looked_at_and_batches_may_differ_in_size() -> None:
    graph = capture(Branches(), torch.zeros(2, 3, 6, 6))
    x = torch.randn(9, 3, 6, 6)
    alone = structured_obs(Evidence.of(graph, [x]))
    paired = structured_obs(Evidence.of(graph, [(x[:4], "seven"), (x[4:], None)]))
    for name, score in alone.items():
        torch.testing.assert_close(paired[name], score, rtol=1e-3, atol=1e-9)
