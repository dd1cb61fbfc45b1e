"""Networks are trained in channels_last where they run in it."""

import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.train.layout import channels_last


class Viewed(nn.Module):
    """As many networks end: flat by ``view``, which takes values in torch's own format only."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x).relu()).relu()
        out: Tensor = self.head(x.view(x.size(0), -1))
        return out


X, Y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
TASK = pj.Task(train=[(X, Y)] * 2, search=[(X, Y)], confirm=[(X, Y)], metric=pj.measure.top1)


@pytest.mark.parametrize("make", [Viewed, lambda: nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten())])
def test_only_what_runs_in_it_is_laid_out(make: type[nn.Module]) -> None:
    net = make()
    before = [p.clone() for p in net.parameters()]
    net = channels_last(net, (X[:2],))
    laid_out = {
        p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in net.parameters() if p.ndim == 4
    }
    assert laid_out == {make is not Viewed}
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    net(X)


def test_a_network_that_is_flattened_by_view_is_trained_taught_and_quantized() -> None:
    net = pj.fit(Viewed(), TASK, epochs=1, teacher=Viewed(), loss=pj.distill.kl(4.0))
    net = pj.fit(net, TASK, epochs=1)
    int8 = pj.quantize(net, X[:1], [X, X])
    with torch.no_grad():
        assert (int8(X) - net(X)).norm() < 0.1 * net(X).norm()
    assert pj.fit(int8, TASK, epochs=1)(X).shape == (4, 2)
