import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from penjing.errors import ModelError, RecipeError
from penjing.export import export
from penjing.quant import Scheme, quantize, target_named
from penjing.quant.insert import FIXED
from penjing.quant.learned import (
    WAYS,
    learn_steps,
    lsq,
    pact,
    rounded_weights,
    settle,
    trained_steps,
    weight_grids,
    zero_of,
)
from penjing.zoo import ZOO

aten = torch.ops.aten
seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Values of which a third lies outside of a range of about -1 to 1, and the gradient of what becomes of them."""
    generator = torch.Generator().manual_seed(seed)
    x, gradient = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x.requires_grad_(), gradient


def close(found: Tensor | None, expected: object) -> None:
    assert found is not None
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)


def step_gradient(x: float, scale: float, least: int, greatest: int) -> tuple[float, float]:
    """LSQ, equations 3 and 5: of the output by the scale and by the value, for integers around a zero of 0."""
    v = x / scale
    if v <= least:
        return least, 0
    if v >= greatest:
        return greatest, 0
    return round(v) - v, 1


@given(seeds, st.sampled_from([(-8, 7, 0), (0, 15, 0), (0, 15, 6), (-128, 127, 0)]))
def test_the_gradient_of_the_step_is_that_of_the_paper(seed: int, grid: tuple[int, int, int]) -> None:
    low, high, zero = grid
    x, gradient = drawn(seed, 40)
    scale = torch.tensor(2.2 / (high - low), dtype=torch.float64, requires_grad=True)
    lsq(x, scale, torch.tensor(zero), None, low, high, 0.25).backward(gradient)
    parts = [step_gradient(v, scale.item(), low - zero, high - zero) for v in x.tolist()]
    close(scale.grad, 0.25 * sum(g * d for g, (d, _) in zip(gradient.tolist(), parts, strict=True)))
    close(x.grad, [g * d for g, (_, d) in zip(gradient.tolist(), parts, strict=True)])


@given(seeds, st.sampled_from([0, 1]))
def test_each_channel_has_a_step_of_its_own(seed: int, axis: int) -> None:
    x, gradient = drawn(seed, 3, 3, 5)
    scale = torch.tensor([0.05, 0.1, 0.3], dtype=torch.float64, requires_grad=True)
    lsq(x, scale, torch.zeros(3), axis, -8, 7, 1.0).backward(gradient)
    for channel in range(3):
        rows = [t.detach().movedim(axis, 0)[channel].flatten().tolist() for t in (x, gradient, x.grad)]  # type: ignore[union-attr]
        parts = [step_gradient(v, scale[channel].item(), -8, 7) for v in rows[0]]
        close(scale.grad[channel], sum(g * d for g, (d, _) in zip(rows[1], parts, strict=True)))  # type: ignore[index]
        close(torch.tensor(rows[2], dtype=torch.float64), [g * d for g, (_, d) in zip(rows[1], parts, strict=True)])


@given(seeds, st.integers(0, 15))
def test_the_gradient_of_the_offset_is_that_of_the_paper(seed: int, zero: int) -> None:
    """LSQ+, equations 5 to 7: ``round(clip((x - offset) / scale)) * scale + offset``, where that has 0 on its grid."""
    x, gradient = drawn(seed, 40)
    scale = torch.tensor(0.125, dtype=torch.float64, requires_grad=True)
    offset = torch.tensor(-zero * 0.125, dtype=torch.float64, requires_grad=True)
    y = lsq(x, scale, zero_of(offset, scale, 0, 15), None, 0, 15, 1.0)
    y.backward(gradient)
    by_scale = by_offset = 0.0
    for v, g, out in zip(x.tolist(), gradient.tolist(), y.tolist(), strict=True):
        real = (v + zero * 0.125) / 0.125
        inside = 0 < real < 15
        clipped = min(max(real, 0), 15)
        assert out == pytest.approx(round(clipped) * 0.125 - zero * 0.125)
        by_scale += g * (round(real) - real if inside else clipped)
        by_offset += 0 if inside else g
    close(scale.grad, by_scale)
    close(offset.grad, by_offset)


def test_an_offset_beyond_its_limits_is_pulled_back() -> None:
    offset, scale = torch.tensor(0.3, requires_grad=True), torch.tensor(0.1)
    zero = zero_of(offset, scale, 0, 15)
    assert zero.item() == 0
    assert zero_of(torch.tensor(-1234.567), scale, 0, 15).item() == 15  # to the bit
    zero.backward()
    assert offset.grad is not None
    assert offset.grad.item() == pytest.approx(-10)


@given(seeds)
def test_the_gradient_of_the_bound_is_that_of_the_paper(seed: int) -> None:
    x, gradient = drawn(seed, 40)
    with torch.no_grad():
        x[:3] = torch.tensor([1.25, 0.0, -0.01])
    bound = torch.tensor(1.25, dtype=torch.float64, requires_grad=True)
    y = pact(x, bound, 0, 15)
    y.backward(gradient)
    close(y.detach(), [round(min(max(v, 0), 1.25) * 12) / 12 for v in x.tolist()])
    close(bound.grad, sum(g for v, g in zip(x.tolist(), gradient.tolist(), strict=True) if v >= 1.25))
    close(x.grad, [g if 0 < v < 1.25 else 0 for v, g in zip(x.tolist(), gradient.tolist(), strict=True)])


def test_torchs_learnable_operation_differs_in_the_outer_half_steps_alone() -> None:
    """Why it is not used: at 15.3 steps of 15 its gradient is -0.3, the paper's 15."""
    found: list[list[Tensor]] = []
    values = torch.linspace(-3, 18, 85)
    for value in values:
        pair = []
        for own in (True, False):
            x, scale, zero = value.clone()[None].requires_grad_(), torch.ones(1, requires_grad=True), torch.zeros(1)
            if own:
                y = lsq(x, scale[0], zero[0], None, 0, 15, 1.0)
            else:
                y = aten._fake_quantize_learnable_per_tensor_affine(x, scale, zero.requires_grad_(), 0, 15, 1.0)
            y.backward(torch.ones(1))
            assert scale.grad is not None
            assert x.grad is not None
            pair.append(torch.stack([y.detach()[0], scale.grad[0], x.grad[0]]))
        found.append(pair)
    mine, torchs = (torch.stack([pair[i] for pair in found]) for i in (0, 1))
    assert torch.equal(mine[:, 0], torchs[:, 0])
    outer = ((values >= 15) & (values <= 15.5)) | ((values >= -0.5) & (values <= 0))
    torch.testing.assert_close(mine[~outer], torchs[~outer])
    assert not torch.allclose(mine[outer], torchs[outer])
    assert mine[values == 15.25][0].tolist() == [15, 15, 0]


@given(seeds, st.sampled_from([torch.float32, torch.bfloat16]), st.floats(1e-6, 1e3), st.integers(0, 15))
def test_the_values_are_those_of_the_operations_that_ship(seed: int, dtype: torch.dtype, size: float, zero: int) -> None:
    x = (drawn(seed, 3, 50)[0].detach() * size).to(dtype)
    scale, origin = torch.tensor(size / 7.3), torch.tensor(zero, dtype=torch.int32)
    expected = aten.fake_quantize_per_tensor_affine.tensor_qparams(x.float(), scale, origin, 0, 15)
    assert torch.equal(lsq(x, scale, origin, None, 0, 15, 1.0), expected)
    scales, zeros = scale * torch.tensor([0.5, 1.0, 3.0]), torch.full((3,), zero, dtype=torch.int32)
    expected = aten.fake_quantize_per_channel_affine.default(x.float(), scales, zeros, 0, 0, 15)
    assert torch.equal(lsq(x, scales, zeros, 0, 0, 15, 1.0), expected)


def test_under_autocast_the_arithmetic_is_float32() -> None:
    x = torch.randn(64, dtype=torch.bfloat16, requires_grad=True)
    scale = torch.tensor(0.1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = lsq(x, scale, torch.tensor(0), None, -8, 7, 1.0)
    y.sum().backward()
    assert (y.dtype, scale.grad.dtype, x.grad.dtype) == (torch.float32, torch.float32, torch.bfloat16)  # type: ignore[union-attr]
    assert torch.equal(y / 0.1, (y / 0.1).round())
    parts = [step_gradient(v, 0.1, -8, 7)[0] for v in x.tolist()]
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(sum(parts), rel=1e-4)


def network(scheme: Scheme | None = None) -> tuple[fx.GraphModule, Tensor]:
    """Two values that share a grid (the pool's), one that goes below zero (the input), one-sided ones."""
    torch.manual_seed(0)
    x = torch.randn(16, 4, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    return quantize(model, x[:2], [x], scheme=scheme or Scheme(weight_bits=4, value_bits=4)), x


def moved(module: fx.GraphModule) -> fx.GraphModule:
    """As training might leave it: steps a little off, one of them negative, offsets between two integers."""
    with torch.no_grad():
        for i, p in enumerate(trained_steps(module)):
            p.mul_(torch.linspace(0.9, 1.1, max(1, p.numel())).view(p.shape)).mul_(-1 if i == 1 else 1)
    return module


SCHEMES = [
    Scheme(weight_bits=4, value_bits=4),
    Scheme(block="tensor", values="symmetric"),
    Scheme(weight_bits=3, block=2, weights="affine", values="mean_centered"),
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("scheme", SCHEMES, ids=["channel", "tensor", "blocks"])
@pytest.mark.parametrize("how", WAYS)
def test_it_starts_where_it_was_and_settles_where_it_is(how: str, scheme: Scheme) -> None:
    module, x = network(scheme)
    learned = learn_steps(module, how)
    # To the bit but for PACT, whose step is a bound of so many steps, divided again.
    torch.testing.assert_close(learned(x), module(x), **({} if how == "pact" else {"rtol": 0, "atol": 0}))
    moved(learned)
    settled = settle(learned)
    assert torch.equal(settled(x), learned(x))
    assert not torch.equal(settled(x), module(x))
    assert settled.state_dict().keys() == module.state_dict().keys()
    assert all(v.dtype == module.state_dict()[k].dtype for k, v in settled.state_dict().items())
    assert {n for n, _ in settled.named_parameters()} == {n for n, _ in module.named_parameters()}
    assert all((v > 0).all() for k, v in settled.state_dict().items() if k.endswith(".scale"))
    assert trained_steps(settled) == []


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["mobilenet", "densenet"])
def test_every_network_learns(name: str) -> None:
    make, shape = ZOO[name]
    x = torch.randn(4, *shape)
    module = learn_steps(quantize(make(), x, [x]), "lsq+")
    module(x).square().sum().backward()
    steps = trained_steps(module)
    assert len(steps) > 2
    without = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    assert torch.equal(settle(module)(x), module(x))


@pytest.mark.parametrize("how", WAYS)
def test_the_argument_is_left_alone(how: str) -> None:
    module, x = network()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    code, y = module.code, module(x)
    other = settle(moved(learn_steps(module, how)))
    assert module.code == code
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(module(x), y)
    assert other is not module


@pytest.mark.parametrize(("how", "leaves"), [("lsq", ["scale"]), ("lsq+", ["offset", "scale"]), ("pact", ["bound", "scale"])])
def test_what_is_learned(how: str, leaves: list[str]) -> None:
    module, x = network()
    learned = learn_steps(module, how)
    names = [n for n, p in learned.named_parameters() if any(p is s for s in trained_steps(learned))]
    assert sorted({n.rpartition(".")[2] for n in names}) == leaves
    weights = {n for n in names if "weight" in n}
    assert {n.rpartition(".")[2] for n in weights} == {"scale"}
    assert {n for n, _ in learned.named_parameters()} - set(names) == {n for n, _ in module.named_parameters()}
    learned(2 * x).square().sum().backward()  # beyond what calibration saw, so that all is clipped somewhere
    assert [n for n in names if not learned.get_parameter(n).grad.abs().sum() > 0] == []  # type: ignore[union-attr]


def test_another_way_can_be_taken_up_later() -> None:
    module, x = network()
    first = moved(learn_steps(module, "lsq"))
    second = learn_steps(first, "lsq+")
    assert torch.equal(second(x), first(x))
    assert len(trained_steps(second)) > len(trained_steps(first))


def test_gradients_are_scaled_by_how_many_share_the_step() -> None:
    learned = learn_steps(network()[0])
    found = {str(n.args[1].target): n.args[-1] for n in learned.graph.nodes if n.target is lsq}
    weights = [f for n, f in found.items() if "weight" in n]
    edge = 2 ** (target_named("onnxruntime").weight_bits - 1) - 1  # 63 without VNNI
    assert weights == pytest.approx([1 / math.sqrt(36 * edge), 1 / math.sqrt(72 * 7), 1 / math.sqrt(8 * edge)])
    (image,) = [f for n, f in found.items() if n == "grids.of_x.scale" or "input" in n]
    assert image <= 1 / math.sqrt(4 * 64 * 7)


def test_learned_grids_are_written_as_they_are(tmp_path: Path) -> None:
    module, x = network()
    learned = moved(learn_steps(module, "lsq+"))
    artifact = export(learned, x[:1], tmp_path / "net.onnx")
    with torch.no_grad():
        expected, before = learned(x[:1]), module(x[:1])
    found = torch.as_tensor(artifact.load(threads=1)(x[:1]))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found, before, rtol=1e-3, atol=1e-3)


def test_grids_of_weights_are_told_as_they_are() -> None:
    module, _ = network(Scheme(weight_bits=4, block=2))
    learned = learn_steps(module)
    grids = weight_grids(learned)
    assert set(grids) == set(weight_grids(module)) == {n for n, p in module.named_parameters() if p.ndim > 1}
    before = {name: grid.now() for name, grid in grids.items()}
    with torch.no_grad():
        for p in trained_steps(learned):
            p.mul_(-2)
    for name, grid in grids.items():
        torch.testing.assert_close(grid.now().scale, 2 * before[name].scale)
        weight = learned.get_parameter(name)
        assert grid.now().nearest(weight).shape == weight.shape
    assert weight_grids(nn.Linear(2, 2)) == {}


def test_weights_are_rounded_when_all_of_their_values_are() -> None:
    module, _ = network()
    assert rounded_weights(module) == []
    grids = weight_grids(module)
    with torch.no_grad():
        for name, grid in grids.items():
            weight = module.get_parameter(name)
            weight.copy_(grid.now().nearest(weight))
    assert set(rounded_weights(module)) == set(rounded_weights(learn_steps(module))) == set(grids)
    name = next(iter(grids))
    with torch.no_grad():
        module.get_parameter(name).flatten()[3] *= 1.001
    assert set(rounded_weights(module)) == set(grids) - {name}


def test_mistakes_are_told() -> None:
    module, x = network()
    with pytest.raises(RecipeError, match="lsqq"):
        learn_steps(module, "lsqq")
    plain = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ModelError, match="no grids"):
        learn_steps(plain)
    assert not any(n.target in FIXED for n in plain.graph.nodes)
    assert torch.equal(settle(module)(x), module(x))
