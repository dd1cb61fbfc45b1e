import pytest
import torch
from torch import Tensor, nn

from penjing.graph import capture
from penjing.quant.prepare import prepare
from penjing.quant.targets import OPENVINO
from penjing.zoo import ZOO

aten = torch.ops.aten


@pytest.mark.parametrize("name", ZOO)
def test_the_function_stays_and_no_norm_is_left(name: str) -> None:
    make, shape = ZOO[name]
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(3, *shape, dtype=torch.float64)
    module = capture(model, x).module
    prepare(module, OPENVINO)
    with torch.no_grad():
        torch.testing.assert_close(module(x), model(x), rtol=1e-10, atol=1e-10)
        assert module(x[:1]).shape == model(x[:1]).shape  # any batch size
    assert not any(n.target is aten.batch_norm.default for n in module.graph.nodes)


class Mean(nn.Module):
    def __init__(self, dims: tuple[int, ...] | None) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return torch.mean(x, self.dims)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dims", "kept"), [((2, 3), True), ((-1, -2), True), ((1, 2), False), ((3,), False), (None, False)])
def test_a_mean_over_the_map_keeps_its_dims(dims: tuple[int, ...] | None, kept: bool) -> None:
    x = torch.randn(2, 3, 4, 5)
    module = capture(Mean(dims), x).module
    prepare(module, OPENVINO)
    assert torch.equal(module(x), Mean(dims)(x))
    (mean,) = (n for n in module.graph.nodes if n.target is aten.mean.dim)
    assert (mean.meta["val"].ndim == 4) == kept
