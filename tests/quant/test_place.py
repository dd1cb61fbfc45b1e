from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from penjing import processor
from penjing.errors import RecipeError
from penjing.graph import capture
from penjing.quant import TARGETS, Quantizer, Scheme, joined, quantize, target_named, variants
from penjing.quant.insert import layers, value_grid
from penjing.quant.place import place
from penjing.quant.targets import ADDS, ONNXRUNTIME, OPENVINO

aten = torch.ops.aten


class Every(nn.Module):
    """Each reason to stay in float."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.mixer = nn.Conv2d(8, 8, 1)
        self.scale, self.turn = nn.Parameter(torch.ones(8, 1, 1, 1)), nn.Parameter(torch.eye(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(torch.relu(self.a(x)))
        y = nn.functional.conv2d(y, self.mixer.weight * self.scale)
        return y.flatten(2) @ y.flatten(2).mT @ self.turn.T


def test_every_layer_in_float_has_its_reason() -> None:
    module = capture(Every(), torch.randn(2, 3, 8, 8)).module
    placement = place(module, ONNXRUNTIME, exclude=("a.*",))
    assert placement.weights == {}
    assert placement.reasons == {
        "conv2d": "it was excluded",
        "conv_transpose2d": "onnxruntime has no int8 kernel for conv_transpose2d",
        "conv2d_1": "its weight is computed in the network",
        "matmul": "both of its operands are computed, neither is a weight",
        "matmul_1": "it is a product with a parameter, not a linear layer; write x @ W as F.linear(x, W.T)",
    }
    assert set(place(module, OPENVINO).weights) == {"conv2d", "conv_transpose2d"}


def grids(module: fx.GraphModule) -> list[tuple[int, int, int]]:
    found = (value_grid(module, n) for n in module.graph.nodes)
    return [(g.low, g.high, int(g.zero_point)) for g in found if g is not None]


def test_each_runtime_gets_the_integers_it_is_fast_on() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.Hardswish(), nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(4, 3, 12, 12)
    assert grids(quantize(model, x, [x], target="openvino")) == [(-128, 127, 0), (0, 255, 0), (-128, 127, 0)]
    for low, high, _ in grids(quantize(model, x, [x], target="onnxruntime")):
        assert (low, high) == (0, 255)


def test_a_grid_never_reaches_beyond_the_clip_before_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.Hardtanh(0, 1), nn.Conv2d(8, 4, 1)).eval()
    x = 100 * torch.randn(4, 3, 12, 12)
    module = quantize(model, x, [x], target="openvino")
    ends = [float(g.scale) * 255 for n in module.graph.nodes if (g := value_grid(module, n)) is not None and g.low == 0]
    assert ends == pytest.approx([6, 1], rel=1e-5)
    assert ends[0] <= 6
    assert ends[1] <= 1


class Heavy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.tanh(self.first(x)))
        return y


def test_a_layer_whose_input_no_grid_fits_stays_in_float() -> None:
    torch.manual_seed(0)
    model, x = Heavy().eval(), torch.randn(8, 1, 24, 24)
    x[:, :, ::12, ::12] *= 3000
    module = quantize(model, x, [x])
    assert list(module.meta["reasons"]) == ["conv2d"]
    assert "of what is not zero in x would become zero" in module.meta["reasons"]["conv2d"]
    assert [layer.weight for layer in layers(module)] == ["second.weight"]
    forced = quantize(model, x, [x], scheme=Scheme(lost=1.0))
    with torch.no_grad():
        expected = model(x)
        near, far = ((m(x) - expected).norm() / expected.norm() for m in (module, forced))
    assert near < 0.02
    assert far > 0.3


def test_a_convolution_whose_output_no_grid_fits_stays_in_float_where_it_needs_one() -> None:
    """As before ONNX Runtime; to round its weights alone would buy nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 4, 1)).eval()
    net[0].weight.data.copy_(torch.tensor([1.0, -1.0]).view(1, 2, 1, 1))  # type: ignore[union-attr, operator]
    alike = torch.rand(8, 1, 24, 24)
    other = alike + 0.02 * torch.randn_like(alike)
    other[:, :, ::12, ::12] = -30
    x = torch.cat([alike, other], 1)
    for target, floats in (("onnxruntime", ["conv2d", "conv2d_1"]), ("openvino", ["conv2d_1"])):
        reasons = quantize(net, x, [x], target=target).meta["reasons"]
        assert sorted(reasons) == floats, target
        assert all("in relu would become zero" in why for why in reasons.values())


def test_biases_are_what_int8_kernels_add_and_never_overflow() -> None:
    torch.manual_seed(0)
    model, x = nn.Conv2d(3, 8, 3).eval(), torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        model.weight[:4] = 0  # dead channels, whose bias is all that is left of them
        model.weight[4] *= 1e-9
    module = quantize(model, x, [x])
    (layer,) = layers(module)
    bias = module.get_parameter(str(layer.bias)).detach().double()
    step = value_grid(module, layer.node.args[0]).scale.double() * layer.grid.scale.double().flatten()  # type: ignore[union-attr,arg-type]
    integers = bias / step
    torch.testing.assert_close(integers, integers.round(), rtol=1e-6, atol=1e-3)
    assert integers.abs().max() < 2**31
    torch.testing.assert_close(bias[:4], model.bias.detach()[:4].double(), rtol=0, atol=float(step[:4].max()) * 0.51)


def test_weights_have_seven_bits_without_vnni() -> None:
    x = torch.randn(2, 3, 8, 8)
    module = quantize(nn.Conv2d(3, 8, 3), x, [x], target="onnxruntime-avx2")
    (layer,) = layers(module)
    assert (layer.grid.low, layer.grid.high) == (-64, 63)
    assert TARGETS["onnxruntime-avx2"].runtime == "onnxruntime"
    assert "overflow" in TARGETS["onnxruntime-avx2"].needs


@pytest.mark.parametrize(
    ("features", "bits"),
    [
        ({"avx2"}, 7),
        ({"avx2", "avx512f"}, 7),
        ({"avx2", "avx_vnni"}, 8),
        ({"avx2", "avx512_vnni"}, 8),
        ({"asimddp"}, 8),
        (set(), 8),
    ],
)
def test_the_runtimes_name_means_the_flavor_of_this_processor(
    features: set[str], bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "processor", lambda: ("some", frozenset(features)))
    for name in ("onnxruntime", "openvino"):
        assert target_named(name).weight_bits == bits
        assert target_named(f"{name}-avx2").weight_bits == 7
        assert target_named(name).runtime == name


def test_variants_change_one_thing_each_and_join() -> None:
    for target in (ONNXRUNTIME, OPENVINO):
        found = variants(target)
        assert len(set(map(repr, found.values()))) == len(found) >= 6
        assert target not in found.values()
        both = joined(target, [found["depthwise convolutions in float"], found["the first layer in float"]])
        assert both == replace(target, depthwise=False, first=False)
    assert joined(OPENVINO, [variants(OPENVINO)["additions in integers"]]).integer >= ADDS
    assert not ADDS & joined(ONNXRUNTIME, [variants(ONNXRUNTIME)["additions in float"]]).integer


def test_a_profile_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(RecipeError, match="two roles"):
        replace(OPENVINO, integer=frozenset({aten.relu.default}))
    with pytest.raises(RecipeError, match="weight_bits"):
        replace(OPENVINO, weight_bits=9)
    with pytest.raises(RecipeError, match="weighted"):
        replace(OPENVINO, weighted={aten.relu.default: 0})


def test_a_mixed_network_is_placed_around_its_floats() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(4))).eval()
    x = torch.randn(4, 4, 16, 16)
    quantizer = Quantizer(model, x, [x], target=target_named("openvino"))
    module = quantizer.module(["conv2d_1", "conv2d_2"])
    assert [layer.weight for layer in layers(module)] == ["0.weight", "3.weight"]
    assert set(module.meta["reasons"]) == {"conv2d_1", "conv2d_2"}
    assert len(grids(module)) == 2  # what the first and the last layer read


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_transposed_convolutions_in_groups_stay_in_float(groups: int) -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 2, 2, groups=groups)).eval(), torch.randn(2, 3, 8, 8)
    reasons = quantize(net, x, [x], target="openvino").meta["reasons"]
    why = ["openvino has no int8 kernel for transposed convolutions in groups"]
    assert list(reasons.values()) == (why if groups > 1 else [])
