import torch
from torch import Tensor, fx, nn

from penjing.graph import capture
from penjing.quant.calibrate import calibrate, together
from penjing.quant.observers import MinMax, MovingAverage


def network(batch: int | None = None) -> fx.GraphModule:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layers(x).view(batch, 4, -1)
            return found

    return capture(Fixed() if batch else layers, torch.randn(batch or 1, 3, 12, 12)).module


def images(sizes: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 12, 12, generator=generator) * (i + 1) for i, n in enumerate(sizes)]


def names(net: fx.GraphModule) -> list[str]:
    return [n.name for n in net.graph.nodes if "conv2d" in n.name or n.name == "relu"]


def test_what_is_seen_is_that_of_all_batches() -> None:
    """Though small ones are run together: values, means and least values, against plain torch."""
    net, batches = network(), images([1, 1, 1, 5, 2, 2])
    first, relu, last = names(net)
    found = calibrate(net, batches, {first, last}, MinMax, means={relu}, least={first})
    weight, bias, other, its_bias = (p.detach() for p in net.parameters())
    x = torch.conv2d(torch.cat(batches), weight, bias)
    y = torch.conv2d(x.relu(), other, its_bias)
    for name, value in ((first, x), (last, y)):
        torch.testing.assert_close(torch.cat(found.values[name].limits()), torch.stack([value.min(), value.max()]))
        torch.testing.assert_close(found.values[name].mean()[0], value.double().mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.means[relu], x.relu().mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.lowest[first], x.amin((0, 2, 3)))


def runs(net: fx.GraphModule, batches: list[Tensor], make: type = MinMax) -> list[int]:
    """How many samples each run of the network has."""
    seen: list[int] = []

    class Counting(make):  # type: ignore[misc]
        def update(self, rows: Tensor) -> None:
            seen.append(rows.numel() // (8 * 100))
            super().update(rows)

    calibrate(net, batches, {names(net)[0]}, Counting)
    return seen


def test_small_batches_of_one_shape_are_run_together() -> None:
    batches = images([1, 1, 1, 2, 2, 1])
    assert runs(network(), batches) == [3, 4, 1]
    assert runs(network(), batches, MovingAverage) == [1, 1, 1, 2, 2, 1]  # it takes the mean of what each batch has
    assert runs(network(2), images([2, 2, 2])) == [2, 2, 2]  # it takes no other


def test_no_more_are_run_together_than_memory_is_meant_for() -> None:
    assert [count for _, count in together(network(), images([1] * 5), 2)] == [2, 2, 1]
    large = [torch.zeros(1, 3, 300, 600)] * 3  # of half a million numbers each
    assert [count for _, count in together(network(), large)] == [1, 1, 1]
    assert [count for _, count in together(network(), [x[..., :500] for x in large])] == [2, 1]


def test_means_are_of_all_rows_where_others_are_folded_into_the_batch() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.conv(x.flatten(0, 1)).relu()
            return found

    net = capture(Frames(), torch.randn(2, 5, 3, 12, 12)).module
    (name,) = (n.name for n in net.graph.nodes if n.name == "relu")
    x = torch.randn(4, 5, 3, 12, 12)
    found = calibrate(net, [x[:1], x[1:]], set(), MinMax, means={name})
    with torch.no_grad():
        torch.testing.assert_close(found.means[name], net(x).mean((0, 2, 3)))
