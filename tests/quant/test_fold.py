import pytest
import torch
from torch import Tensor, nn

from penjing.graph import capture
from penjing.quant.fold import NORM, fold_batch_norm


def stirred(model: nn.Module) -> nn.Module:
    """Norms as after training: nothing is at its default."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            if m.affine:
                m.weight.data.uniform_(-1.5, 1.5)
                m.bias.data.normal_()
    return model.eval()


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


FOLDED = {
    "conv": nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
    "no bias": nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
    "not affine": nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)),
    "depthwise": nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)),
    "transposed": nn.Sequential(nn.ConvTranspose2d(3, 8, 2, 2), nn.BatchNorm2d(8)),
}
KEPT = {
    "two readers": TwoReaders(),
    "after the activation": nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)),
    "before": nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3)),
    "grouped transposed": nn.Sequential(nn.ConvTranspose2d(3, 6, 2, groups=3), nn.BatchNorm2d(6)),
}


@pytest.mark.parametrize(("name", "norms"), [*((n, 0) for n in FOLDED), *((n, 1) for n in KEPT)])
def test_folding_changes_nothing_but_the_graph(name: str, norms: int) -> None:
    model = stirred({**FOLDED, **KEPT}[name]).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    module = capture(model, x).module
    fold_batch_norm(module)
    assert sum(n.target is NORM for n in module.graph.nodes) == norms
    torch.testing.assert_close(module(x), model(x), rtol=1e-10, atol=1e-10)


def test_linear_norm_folds() -> None:
    model = stirred(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7))).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    module = capture(model, x).module
    fold_batch_norm(module)
    assert not any(n.target is NORM for n in module.graph.nodes)
    torch.testing.assert_close(module(x), model(x), rtol=1e-10, atol=1e-10)
