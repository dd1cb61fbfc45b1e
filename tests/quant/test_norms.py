import pytest
import torch
from torch import Tensor, nn

from penjing.graph import capture
from penjing.quant.norms import norms_over_channels


class Permuted(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Elsewhere(nn.LayerNorm):
    """Over the width: no norm over channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 1, 3, 2)).permute(0, 3, 1, 2)


def norms(model: nn.Module, x: Tensor) -> int:
    """Layer norms that are left; the function must be the same."""
    for p in model.parameters():
        nn.init.normal_(p)
    model = model.double().eval()
    module = capture(model, x).module
    norms_over_channels(module)
    with torch.no_grad():
        torch.testing.assert_close(module(x), model(x), rtol=1e-10, atol=1e-10)
    assert all("val" in n.meta for n in module.graph.nodes if n.op != "output")
    return sum(n.target is torch.ops.aten.layer_norm.default for n in module.graph.nodes)


@pytest.mark.parametrize("plain", [True, False])
def test_a_norm_over_channels_is_rewritten(plain: bool) -> None:
    x = 3 * torch.randn(2, 6, 5, 4, dtype=torch.float64) + 1
    assert norms(nn.Sequential(nn.Conv2d(6, 6, 1), Permuted(6, elementwise_affine=plain), nn.Conv2d(6, 3, 1)), x) == 0


def test_any_other_norm_stays() -> None:
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    assert norms(nn.Sequential(nn.Conv2d(6, 6, 1), Elsewhere(5)), x) == 1
    assert norms(nn.LayerNorm([6, 5, 4]), x) == 1
