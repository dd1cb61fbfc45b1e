from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.errors import DataError, ModelError, RecipeError
from penjing.export import RUNTIMES
from penjing.quant import Scheme, quantize
from penjing.quant.apart import decibels, noise_share
from penjing.quant.insert import layers, value_grid
from penjing.quant.learned import WAYS, learn_steps
from penjing.quant.lockstep import parameter
from penjing.quant.targets import WEIGHTED, variants
from penjing.zoo import ZOO

FAKE = ("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine")


def is_fake(node: object) -> bool:
    return any(name in str(getattr(node, "target", "")) for name in FAKE)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("target", RUNTIMES)
@pytest.mark.parametrize("name", ZOO)
def test_every_weighted_layer_reads_integers_and_has_integer_weights(name: str, target: str) -> None:
    make, shape = ZOO[name]
    x = torch.randn(4, *shape)
    module = quantize(make(), x, [x], target=target)
    weighted = [n for n in module.graph.nodes if n.target in WEIGHTED]
    assert weighted
    for layer in weighted:
        assert is_fake(layer.args[0]), f"{layer} reads a float value"
        assert is_fake(layer.args[1]), f"{layer} has float weights"


@pytest.mark.parametrize("name", ZOO)
def test_quantized_is_near_the_original_but_not_it(name: str) -> None:
    make, shape = ZOO[name]
    model, x = make().eval(), torch.randn(16, *shape)
    with torch.no_grad():
        expected, found = model(x), quantize(model, x[:1], [x])(x)
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.1


def test_it_is_trainable_and_every_weight_gets_a_gradient() -> None:
    make, shape = ZOO["mobilenet"]
    x = torch.randn(4, *shape)
    module = quantize(make(), x[:1], [x])
    module(x).square().sum().backward()
    without = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_any_batch_size_runs() -> None:
    make, shape = ZOO["densenet"]
    module = quantize(make(), torch.randn(1, *shape), [torch.randn(3, *shape)])
    assert module(torch.randn(7, *shape)).shape == (7, 10)


def test_passing_operations_share_the_grid_of_what_they_pass() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
    x = torch.randn(8, 1, 8, 8)
    module = quantize(model, x, [x])
    scales = [n.args[1].target for n in module.graph.nodes if "per_tensor" in str(n.target)]
    assert len(scales) == 4  # the input, the ReLU, and behind it the pool and the flattened
    assert len(set(scales)) == 2


def test_the_model_is_left_alone() -> None:
    make, shape = ZOO["resnet20"]
    model = make().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    quantize(model, torch.randn(1, *shape), [torch.randn(2, *shape)])
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def small() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2)), torch.randn(2, 1, 8, 8)


def test_mistakes_are_told() -> None:
    model, x = small()
    with pytest.raises(DataError, match="empty"):
        quantize(model, x, [])
    with pytest.raises(DataError, match="NaN"):
        quantize(model, x, [x, x * float("nan")])
    with pytest.raises(DataError, match="constant: every number of input_1 is"):
        quantize(model, x, [torch.full_like(x, 0.5)])
    with pytest.raises(DataError, match=r"does not take what calibration yields, inputs of shape \[\(2, 3, 8, 8\)\]"):
        quantize(model, x, [torch.randn(2, 3, 8, 8)])
    with pytest.raises(RecipeError, match="from 2 to 8"):
        Scheme(value_bits=1)
    with pytest.raises(RecipeError, match="rounding 'up' is not known"):
        Scheme(rounding="up")
    with pytest.raises(RecipeError, match="onnxruntime"):
        quantize(model, x, [x], target="tensorrt")
    model[0].weight.data[0] = float("nan")
    with pytest.raises(ModelError, match=r"0\.weight"):
        quantize(model, x, [x])


def test_one_tensor_is_no_list_of_batches() -> None:
    with pytest.raises(DataError, match=r"one tensor; give a loader or a list of batches, e\.g\. list\(images\.split\(64\)\)"):
        quantize(nn.Conv2d(1, 2, 1), torch.zeros(1, 1, 4, 4), torch.zeros(8, 1, 4, 4))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"exclude": "2.*"}, "give a tuple of patterns"), ({"weight_bits": 4.0}, "whole number from 2 to 8"),
        ({"block": True}, "block is True"), ({"lost": 7}, "lost is 7"),
    ],
)  # fmt: skip
def test_schemes_are_checked_at_the_door(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Scheme(**wrong)


def test_a_pattern_that_excludes_nothing_is_refused() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 6, 6)
    with pytest.raises(RecipeError, match=r"exclude has 'conv7\.\*', and no layer's weight is called so"):
        quantize(net, x, [x], scheme=Scheme(exclude=("conv7.*",)))


@pytest.mark.parametrize("data", [None, "abc", {"x": 1}, [{"x": torch.zeros(1)}], [1, 2]])
def test_what_is_no_calibration_is_told_so(data: Any) -> None:
    with pytest.raises(DataError, match=r"calibration is \w+; give a loader|a batch has inputs of type"):
        quantize(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 6, 6), data)


def test_nan_is_told_without_the_interpreters_words_and_empty_batches_do_not_count() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 6, 6)
    with pytest.raises(DataError) as told:
        quantize(net, x, [x, x * float("nan")])
    assert str(told.value).endswith("look for NaN or infinity in the images")
    with_none, without = (quantize(net, x, data).state_dict() for data in ([x[:0], x], [x]))
    assert all(torch.equal(with_none[n], without[n]) for n in without)


def test_what_is_quantized_is_not_quantized_again() -> None:
    x = torch.randn(2, 3, 6, 6)
    with pytest.raises(ModelError, match="quantized already"):
        quantize(quantize(nn.Conv2d(3, 4, 3), x, [x]), x, [x])
    for how in WAYS:
        learned = learn_steps(quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), x, [x]), how)
        with pytest.raises(ModelError, match="quantized already"):
            quantize(learned, x, [x])


def test_weights_that_are_computed_are_excluded_by_any_of_their_names() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 3, 6, 6)
    for pattern in ("0.weight", "0.parametrizations.*"):
        assert list(quantize(net, x, [x], scheme=Scheme(exclude=(pattern,))).meta["reasons"].values()) == ["it was excluded"]


@pytest.mark.parametrize("first", [False, True])
def test_an_input_may_be_one_number_for_all_samples(first: bool) -> None:
    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, *given: Tensor) -> Tensor:
            x, t = given[::-1] if first else given
            found: Tensor = self.b(torch.relu(self.a(x)) * t)
            return found

    net, inputs = Timed().eval(), (torch.randn(4, 3, 7, 7), torch.tensor(0.5))
    inputs = inputs[::-1] if first else inputs
    for rounding in ("nearest", "gptq"):
        low = quantize(net, inputs, [inputs], scheme=Scheme(rounding=rounding))
        with torch.no_grad():
            assert decibels(noise_share([[net(*inputs)]], [[low(*inputs)]])) > 30


@pytest.mark.parametrize("pooled", [False, True])
def test_what_the_network_gives_may_share_its_grid(pooled: bool) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.a(x)
            z = nn.functional.max_pool2d(y, 2)
            return z if pooled else y, self.b(y), self.c(z)

    torch.manual_seed(0)
    net, x = Pooled().eval(), torch.randn(4, 3, 12, 12)
    low = quantize(net, x, [x], scheme=Scheme(values="symmetric", outputs="affine"))
    with torch.no_grad():
        assert all(decibels(noise_share([[one]], [[two]])) > 30 for one, two in zip(net(x), low(x), strict=True))


@pytest.mark.parametrize("outputs", [4, 16])
def test_transposed_convolutions_have_a_scale_for_each_channel_also_where_others_have_blocks(outputs: int) -> None:
    x = torch.randn(2, 8, 5, 5)
    low = quantize(nn.ConvTranspose2d(8, outputs, 2), x, [x], target="openvino", scheme=Scheme(block=4))
    assert [tuple(layer.grid.scale.shape) for layer in layers(low)] == [(1, outputs, 1, 1)]


@pytest.mark.parametrize("parts", [False, True])
def test_weights_that_were_merged_are_excluded_by_any_of_their_names(parts: bool) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3 if parts else 1, padding=int(parts))

        def forward(self, x: Tensor) -> Tensor:
            if not parts:
                return torch.relu(self.one(x) + self.other(x))
            first, second = x.chunk(2, 1)
            return torch.cat([self.one(first), self.other(second)], 1)

    net, x = Two(), torch.randn(2, 8 if parts else 4, 6, 6)
    for pattern in ("one.*", "other.*"):
        assert list(quantize(net, x, [x], scheme=Scheme(exclude=(pattern,))).meta["reasons"].values()) == ["it was excluded"]


def test_weights_of_long_computations_are_settled_at_once() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            w = self.w
            for _ in range(40):
                w = w + 0.01 * w.tanh()
            return torch.nn.functional.conv2d(x, w)

    x = torch.randn(2, 3, 6, 6)
    assert quantize(Deep(), x, [x]).meta["reasons"] == {}


def test_biases_that_are_computed_are_settled_too() -> None:
    class NormInTheKernel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.s, self.b = (nn.Parameter(torch.randn(*shape)) for shape in ((4, 3, 3, 3), (4,), (4,)))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.w * self.s.view(-1, 1, 1, 1), self.b - 2 * self.s)

    x, net = torch.randn(4, 3, 6, 6), NormInTheKernel().eval()
    module = quantize(net, x, [x])
    assert module.meta["reasons"] == {}
    assert not any(n.target is torch.ops.aten.sub.Tensor for n in module.graph.nodes)
    with torch.no_grad():
        assert float((module(x) - net(x)).norm()) < 0.02 * float(net(x).norm())


def test_weights_that_are_computed_of_several_values_at_once_are_settled() -> None:
    class Standardized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            spread, mean = torch.std_mean(self.w, dim=(1, 2, 3), keepdim=True)
            return nn.functional.conv2d(x, (self.w - mean) / spread)

    x = torch.randn(2, 3, 6, 6)
    assert quantize(Standardized(), x, [x]).meta["reasons"] == {}


def test_a_batch_that_the_network_was_not_read_for_is_told() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x.reshape(int(x.shape[0]), 12))
            return y

    x = torch.randn(8, 3, 4)
    with pytest.raises(DataError, match=r"takes batches like the example alone, of shape \(2, 3, 4\).*int\(x.shape\[0\]\)"):
        quantize(Fixed().eval(), x[:2], [x])
    quantize(Fixed().eval(), x[:2], [x[:2], x[2:4]])


def test_layers_that_read_weights_alone_stay_in_float() -> None:
    """Integers would buy nothing there, and OpenVINO breaks down over them."""

    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.conv = nn.Parameter(torch.randn(1, 8)), nn.Linear(8, 4), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x) * self.key(self.query)[:, :, None, None].sigmoid()
            return y

    x = torch.randn(4, 3, 6, 6)
    reasons = quantize(Asked().eval(), x, [x], target="openvino").meta["reasons"]
    assert list(reasons.values()) == ["it reads no value of the network, but a weight"]


class Beside(nn.Module):
    """A value that is read by a layer and stands beside one a thousand times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.next, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.next.weight.data *= 2000

    def forward(self, x: Tensor) -> Tensor:
        small = torch.relu(self.first(x))
        found: Tensor = self.last(torch.cat([small, self.next(small)], 1))
        return found


@pytest.mark.parametrize("target", RUNTIMES)
def test_a_value_beside_a_much_larger_one_is_not_lost_to_those_who_read_it_alone(target: str) -> None:
    torch.manual_seed(0)
    net, x = Beside().eval(), torch.randn(8, 3, 10, 10)
    low = quantize(net, x, [x], target=target)
    with torch.no_grad():
        assert decibels(noise_share([[net(x)]], [[low(x)]])) > 30


class Depth(nn.Module):
    """Reads colors around 0 and depths in millimeters, which weigh alike in what its first layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 16, 3), nn.Conv2d(16, 4, 3)
        self.first.weight.data[:, 3] /= 2000

    def forward(self, colors: Tensor, depths: Tensor) -> Tensor:
        found: Tensor = self.last(torch.relu(self.first(torch.cat([colors, depths], 1))))
        return found


@pytest.mark.parametrize("target", RUNTIMES)
def test_a_layer_that_reads_channels_of_very_different_size_stays_in_float_and_says_why(target: str) -> None:
    torch.manual_seed(0)
    net, x = Depth().eval(), (torch.randn(8, 3, 10, 10), 5000 * torch.rand(8, 1, 10, 10))
    low = quantize(net, x, [x], target=target)
    (why,) = low.meta["reasons"].values()
    assert "differ too much in size" in why
    with torch.no_grad():
        assert decibels(noise_share([[net(*x)]], [[low(*x)]])) > 30
    assert not quantize(net, x, [x], target=target, scheme=Scheme(noise=float("inf"))).meta["reasons"]
    net.first.weight.data[:, 3] *= 2000  # now the depths are all that counts
    assert not quantize(net, x, [x], target=target).meta["reasons"]


class Divided(nn.Module):
    """A value divided by what is next to nothing at one place, as an image's dark corner is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 1)
        self.first.weight.data *= 5

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        found: Tensor = self.last(y * torch.rsqrt(y.square().mean(1, keepdim=True) + 1e-6))
        return found


def test_what_can_stay_in_float_does_where_integers_would_lose_half_of_it() -> None:
    torch.manual_seed(0)
    net, x = Divided().eval(), torch.randn(8, 3, 10, 10)
    x[:, :, 0, 0] = 0
    low = quantize(net, x, [x])
    with torch.no_grad():
        assert decibels(noise_share([[net(x)]], [[low(x)]])) > 25
    assert not low.meta["reasons"]  # of layers


class Heads(nn.Module):
    """One layer that reads two values of different size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        found: Tensor = self.head(y.mean((2, 3))) + self.head(50 * y.amax((2, 3)))
        return found


def share_equal(found: Tensor, expected: Tensor) -> float:
    """Of samples that no value within rounding of a half has made another."""
    return float(torch.isclose(found, expected, rtol=1e-4, atol=1e-4).all(1).double().mean())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_bias_that_serves_two_layers_is_rounded_as_each_of_them_adds_it(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Heads().eval(), torch.randn(8, 3, 10, 10)
    low = quantize(net, x, [x], scheme=Scheme(weight_bits=bits, value_bits=bits, edge_bits=bits))
    biases = [str(layer.bias) for layer in layers(low)]
    assert len(set(biases)) == len(biases) == 3
    assert not torch.equal(*(parameter(low, b) for b in biases[1:]))
    with torch.no_grad():
        expected = low(x)
    assert share_equal(pj.export(low, x, tmp_path / "net.onnx").load(1, "f32")(x), expected) > 0.8


@pytest.mark.sampled(4)
@pytest.mark.parametrize("how", ["lsq", "lsq+", "pact", None])
def test_biases_that_were_trained_are_what_kernels_add(how: str | None, tmp_path: Path) -> None:
    make, shape = ZOO["resnet20"]
    torch.manual_seed(0)
    x, y = torch.randn(16, *shape), torch.randint(10, (16,))
    low = quantize(make(), x, [x], scheme=Scheme(weight_bits=4, value_bits=4))
    task = pj.Task(train=[(x, y)] * 2, search=[(x, y)], confirm=[(x, y)], metric=pj.measure.top1)
    low = pj.fit(pj.learn_steps(low, how) if how else low, task, epochs=1)
    with torch.no_grad():
        expected = low(x)
    assert share_equal(pj.export(low, x, tmp_path / "net.onnx").load(1, "f32")(x), expected) > 0.8


def test_biases_of_the_first_layer_have_room_on_the_grids_that_it_has() -> None:
    """A channel of next to no weight and an ordinary bias, as a norm leaves: kernels hold biases in 32 bits."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    with torch.no_grad():
        net[0].weight[0] *= 1e-9
    x = torch.rand(8, 3, 10, 10)
    low = quantize(net, x, [x], scheme=Scheme(value_bits=2))
    layer = next(iter(layers(low)))
    read = value_grid(low, layer.node.args[0])
    assert read is not None
    steps = net[0].bias.abs() / (layer.grid.scale.flatten() * read.scale)
    assert steps.max() < 2**31


@pytest.mark.sampled(2)
@pytest.mark.parametrize("target", RUNTIMES)
def test_norms_that_stay_in_float_are_no_layers(target: str, tmp_path: Path) -> None:
    """Behind a concatenation a norm folds into nothing: a convolution in integers, in float a product and a sum."""
    torch.manual_seed(0)
    net = pj.zoo.DenseNet(growth=8).eval()
    x = torch.randn(8, 1, 28, 28)
    quantizer = pj.Quantizer(net, x[:1], [x], target=pj.quant.target_named(target))
    for name, profile in {"default": quantizer.target, **variants(quantizer.target)}.items():
        if name not in ("default", "norms in float"):
            continue
        low = quantizer.module(target=profile)
        with torch.no_grad():
            assert decibels(noise_share([[net(x)]], [[low(x)]])) > 25
        file = pj.export(low, x[:1], tmp_path / "net.onnx", target=target)
        norms = [k.layer for k in file.kernels() if k.weighted and "norm" in k.layer]
        assert bool(norms) == (name == "default")
        assert not low.meta["reasons"]
    plain = quantizer.plain()
    with torch.no_grad():
        torch.testing.assert_close(plain(x), net(x), rtol=1e-4, atol=1e-4)
    groups = [n.args[6] for n in plain.graph.nodes if n.target is torch.ops.aten.conv2d.default and len(n.args) > 6]
    assert all(g == 1 for g in groups)
