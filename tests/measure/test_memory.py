import torch
from torch import nn

from penjing.graph import capture
from penjing.measure import peak_memory
from penjing.quant import quantize


def test_weights_and_the_values_that_are_alive_together() -> None:
    """A residual block by hand: input, skipped value and branch are alive together while the sum is taken."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(4, 8, 1, bias=False)
            self.second = nn.Conv2d(8, 8, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skipped = self.first(x)
            return skipped + torch.relu(self.second(skipped))

    graph = capture(Block().eval(), (torch.zeros(1, 4, 6, 6),))
    weights = 4 * (4 * 8 + 8 * 8)
    value = 4 * 8 * 36
    assert peak_memory(graph) == weights + 3 * value  # skipped, and what goes into and comes out of ReLU or sum
    assert peak_memory(graph, batch=5) == weights + 5 * 3 * value


def test_what_only_shows_a_value_anew_needs_none_and_keeps_it_alive() -> None:
    class Views(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen = x.flatten(1)
            return torch.relu(x * 2).flatten(1) + seen

    graph = capture(Views().eval(), (torch.zeros(1, 2, 3, 3),))
    assert peak_memory(graph) == 3 * 4 * 18  # x, seen through its view to the end; the product or ReLU; the sum


def test_integers_take_a_byte() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, bias=False)
    ).eval()
    x = torch.randn(8, 3, 12, 12)
    small = quantize(model, x[:1], [x], target="onnxruntime")
    exact, integers = peak_memory(capture(model, (x[:1],))), peak_memory(small)
    assert 0.2 < integers / exact < 0.6
