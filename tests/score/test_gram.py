"""Rows times matrix equals the layer, for every kind of layer; moments and least squares against numpy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from penjing.errors import DataError
from penjing.graph import capture
from penjing.score.flow import calibration, tensor_of
from penjing.score.gram import Moments, input_moments, least_squares, places, squared_error
from penjing.score.products import Product, norm_of, products

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (6,)),
    "linear over positions": (lambda: nn.Linear(6, 5, bias=False), (3, 4, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 5, 3, 2, 1, 2), (6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 5, (3, 2), (2, 1), (1, 2), (1, 3)), (6, 8, 7)),
    "conv2d same": (lambda: nn.Conv2d(6, 5, (4, 3), padding="same", dilation=(1, 2)), (6, 8, 7)),
    "conv2d valid": (lambda: nn.Conv2d(6, 5, 3, padding="valid", bias=False), (6, 8, 7)),
    "conv2d circular": (lambda: nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular"), (6, 8, 7)),
    "conv3d": (lambda: nn.Conv3d(6, 5, (1, 3, 2), (1, 2, 1), (0, 1, 1)), (6, 3, 5, 4)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2, padding=1), (6, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6, padding=1), (6, 5, 5)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(6, 5, 3, 2, 1, 1), (6, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 5, (3, 4), (2, 3), (1, 0), (1, 2), dilation=(2, 1)), (6, 5, 4)),
    "transposed cropped": (lambda: nn.ConvTranspose2d(6, 5, 2, 2, 2), (6, 5, 4)),
    "transposed grouped": (lambda: nn.ConvTranspose2d(6, 4, 3, 2, groups=2, bias=False), (6, 4, 4)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(6, 5, 2, (2, 1, 2)), (6, 3, 2, 3)),
}


def read(name: str) -> tuple[Product, Tensor, Tensor, Tensor, Tensor | None]:
    """A layer as a product, its input, its output, its weight and its bias."""
    make, shape = LAYERS[name]
    layer = make().double()
    x = torch.randn(3, *shape, dtype=torch.float64)
    graph = capture(layer, x)
    (product,) = products(graph).values()
    with torch.no_grad():
        y = layer(x)
        source = x
        if name == "conv2d circular":
            source = nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
    return product, source, y, tensor_of(graph, product.weight), layer.bias


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_the_matrix_are_the_layer(name: str) -> None:
    product, x, y, weight, bias = read(name)
    at = torch.cat(list(places(product, y, 3, torch.Generator().manual_seed(0))))
    rows, matrix = product.rows(x, at), product.matrix(weight)
    assert rows.shape == (product.groups, len(at), product.columns + 1)
    assert (
        len(at)
        == len(y) * product.positions(y)
        == y.numel() // weight.shape[product.writes] // (product.groups if product.transposed else 1)
    )
    assert bool((rows[:, :, -1] == 1).all())
    found = rows[:, :, :-1] @ matrix.mT
    if bias is not None:
        found = found + bias.view(product.groups, 1, -1)
    torch.testing.assert_close(found, product.outputs(y, at))
    assert torch.equal(product.unmatrix(matrix, weight.shape), weight)


@pytest.mark.parametrize("name", ["conv2d", "transposed", "linear over positions"])
def test_a_channel_s_columns_lie_side_by_side(name: str) -> None:
    product, _, _, weight, _ = read(name)
    alone = torch.zeros_like(weight).index_copy_(product.reads, torch.tensor([2]), weight.narrow(product.reads, 2, 1))
    used = product.matrix(alone).abs().sum((0, 1)).nonzero().flatten()
    assert used.tolist() == list(range(2 * product.taps, 3 * product.taps))


def test_places_are_drawn_evenly_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penjing.score.gram.LEAST_ROWS", 30)
    monkeypatch.setattr("penjing.score.gram.ROWS", 0)
    monkeypatch.setattr("penjing.score.gram.CHUNK", 200)
    product, _, y, _, _ = read("grouped")
    drawn = list(places(product, y, 6, torch.Generator().manual_seed(0)))
    assert max(map(len, drawn)) <= 200 // (product.columns * product.groups)
    at = torch.cat(drawn)
    assert len(at.unique()) == len(at)
    assert (at // 25).bincount().tolist() == [5, 5, 5]  # 30 of 6 samples, of which this batch holds 3
    again = torch.cat(list(places(product, y, 6, torch.Generator().manual_seed(0))))
    assert torch.equal(at, again)
    assert not torch.equal(at, torch.cat(list(places(product, y, 6, torch.Generator().manual_seed(1)))))


def test_moments_and_least_squares_against_numpy() -> None:
    x, y = torch.randn(1, 50, 5, dtype=torch.float64) + 2, torch.randn(1, 50, 3, dtype=torch.float64)
    x = torch.cat([x, torch.ones(1, 50, 1, dtype=torch.float64)], 2)
    moments = Moments()
    for part in range(0, 50, 20):
        moments.add(x[:, part : part + 20], y[:, part : part + 20])
    expected, residual, _, _ = np.linalg.lstsq(x[0].numpy(), y[0].numpy(), rcond=None)
    found = least_squares(moments, torch.zeros(1, 3, 6, dtype=torch.float64), 1e-14, columns=5)
    np.testing.assert_allclose(found[0].mT.numpy(), expected, rtol=1e-8)
    spread = ((y - y.mean(1, keepdim=True)) ** 2).sum()
    assert squared_error(moments, found) == pytest.approx(residual.sum() / float(spread), rel=1e-9)


def test_a_ridge_holds_to_the_old_weights_and_lets_the_constant_go() -> None:
    x = torch.cat([torch.randn(1, 50, 5, dtype=torch.float64), torch.ones(1, 50, 1, dtype=torch.float64)], 2)
    old = torch.randn(1, 3, 6, dtype=torch.float64)
    moments = Moments()
    moments.add(x, x @ (old + torch.tensor([0, 0, 0, 0, 0, 7.0])).mT)
    found = least_squares(moments, old, 1e6, columns=5)
    torch.testing.assert_close(found[:, :, :5], old[:, :, :5], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[:, :, 5], old[:, :, 5] + 7)
    right = least_squares(moments, old + torch.tensor([0, 0, 0, 0, 0, 7.0]), 0.1, columns=5)
    torch.testing.assert_close(right, old + torch.tensor([0, 0, 0, 0, 0, 7.0]))  # what is right already stays


def test_moments_of_single_precision_rows_are_summed_in_double() -> None:
    x = torch.randn(1, 4000, 3) + 100
    moments = Moments()
    for part in x.split(100, dim=1):
        moments.add(part)
    exact = x.double().mT @ x.double()
    assert float(((moments.xx - exact) / exact).abs().max()) < 1e-6


class Shared(nn.Module):
    """A weight that is used twice, one that is computed, and a norm behind a layer that somebody else reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 1, bias=False) for _ in range(3))
        self.n, self.m = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.a(x))
        y = self.n(self.b(y))
        y = nn.functional.conv2d(y, self.b.weight * 0 + 1)
        z = self.c(y)
        out: Tensor = self.m(z) + z
        return out


def test_weights_that_are_shared_or_computed_are_left_out() -> None:
    found = list(products(capture(Shared(), torch.randn(2, 4, 3, 3))).values())
    assert [p.weight for p in found] == ["c.weight"]
    assert found[0].norm is None
    assert found[0].intercept is None


def test_the_norm_behind_a_layer_takes_its_constant() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    first, last = products(capture(net, torch.randn(2, 3, 3, 3))).values()
    assert (first.intercept, last.intercept) == ("1.running_mean", "2.bias")


def test_a_norm_without_statistics_is_none() -> None:
    graph = capture(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), torch.randn(2, 3, 3, 3))
    assert all(norm_of(n) is None for n in graph.module.graph.nodes)


def test_input_moments_are_those_of_what_the_layer_reads() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    x = torch.randn(30, 3, dtype=torch.float64)
    graph = capture(net, x)
    found = input_moments(graph, calibration(x.split(8), graph), {"2.weight"})
    with torch.no_grad():
        read = torch.cat([net[1](net[0](x)), torch.ones(30, 1, dtype=torch.float64)], 1)
    assert found.keys() == {"2.weight"}
    torch.testing.assert_close(found["2.weight"].xx[0], read.mT @ read)
    assert found["2.weight"].count == 30


def test_activations_that_are_not_finite_are_named() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    x = torch.full((8, 3), 3e38)
    graph = capture(net, x)
    with pytest.raises(DataError, match=r"1\.weight.*NaN"):
        input_moments(graph, calibration([x], graph), {"1.weight"})
