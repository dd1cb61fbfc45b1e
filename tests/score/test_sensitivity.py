from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.errors import DataError
from penjing.graph import Group, capture
from penjing.score import Evidence, activation_energy, fisher, taylor
from penjing.zoo import DenseNet, MobileNet, two_convolutions
from tests.nets import CUTTABLE, IMAGE, SHAPES, Make, conv, head, net, pooled
from tests.oracle import inputs, randomized

Net = tuple[Make, tuple[tuple[int, ...], ...]]
UP = nn.ConvTranspose2d(6, 6, 2, 2, groups=6, bias=False)
NETS: dict[str, Net] = {
    "mobilenet": (lambda: MobileNet(width=8), ((1, 8, 8),)),
    "densenet": (lambda: DenseNet(growth=4), ((1, 8, 8),)),
    "flattened": (lambda: two_convolutions(width=4, channels=1), ((1, 32, 32),)),
    **{n: (CUTTABLE[n], SHAPES.get(n, IMAGE)) for n in ("grouped", "transposed", "conv1d", "conv3d", "windows")},
    "depthwise_transposed": (
        net(lambda m, x: m.h(pooled(m.b(F.relu(m.t(m.a(x)))))), a=conv(3, 6), t=UP, b=conv(6, 8), h=head(8)),
        IMAGE,
    ),
}


def read(name: str, samples: int = 5, batch: int = 5) -> tuple[nn.Module, Evidence, Tensor, Tensor]:
    """A network in double precision, what is known of it, and the samples and labels that it is judged by."""
    make, shapes = NETS[name]
    model = randomized(make()).double()
    (x,) = inputs(shapes, samples, torch.float64)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    last.weight.data /= model(inputs(shapes, 5, torch.float64)[0]).std().item()  # so that no class is certain
    last.bias.data *= 0.1
    target = torch.arange(samples) % 5
    data = list(zip(x.split(batch), target.split(batch), strict=True))
    return model, Evidence.of(capture(model, x[:2]), data), x, target


def reads(group: Group, evidence: Evidence) -> list[Any]:
    return [a for a in group.axes if (a.name, a.dim) in evidence.channels.reads]


def weighed(model: nn.Module, evidence: Evidence, value: Tensor, of: Callable[[Group], list[Any]]) -> dict[str, Tensor]:
    """``sum w * dvalue/dw`` over the axes ``of`` each group, by the gradients of the model's own weights."""
    weights = dict(model.named_parameters())
    gradients = dict(
        zip(weights, torch.autograd.grad(value, list(weights.values()), retain_graph=True, allow_unused=True), strict=True)
    )
    sums = {}
    for group in evidence.channels.groups:
        sums[group.name] = torch.zeros(group.channels, dtype=torch.float64)
        for axis in of(group):
            if axis.name in weights:
                product = weights[axis.name].detach() * gradients[axis.name]
                sums[group.name] += product.movedim(axis.dim, 0)[axis.index].flatten(1).sum(1)
    return sums


@pytest.mark.parametrize("name", NETS)
def test_taylor_by_the_gradient_of_every_weight_sample_by_sample(name: str) -> None:
    model, evidence, x, target = read(name)
    expected = {g.name: torch.zeros(g.channels, dtype=torch.float64) for g in evidence.channels.groups}
    for i in range(len(x)):
        loss = F.cross_entropy(model(x[i : i + 1]), target[i : i + 1])
        for group, sums in weighed(model, evidence, loss, lambda g: list(g.axes)).items():
            expected[group] += sums.abs() / len(x)
    assert all(e.max() > 0 for e in expected.values())
    torch.testing.assert_close(dict(taylor(evidence)), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", sorted(NETS.keys() - {"windows"}))  # judged sample by sample, that one takes long
def test_fisher_is_what_many_drawn_labels_give_on_average(name: str) -> None:
    """Against the expectation over all labels, by the gradients of the weights that read the channels."""
    model, evidence, x, _ = read(name, samples=1)
    expected = {g.name: torch.zeros(g.channels, dtype=torch.float64) for g in evidence.channels.groups}
    for log in F.log_softmax(model(x), 1)[0]:
        for group, sums in weighed(model, evidence, -log, lambda g: reads(g, evidence)).items():
            expected[group] += log.exp().item() * sums.square() / 2
    found = fisher(Evidence(evidence.graph, evidence.channels, [x.expand(200, *x.shape[1:])] * 5))
    for group, e in ((n, e) for n, e in expected.items() if len(e) > 1):
        torch.testing.assert_close(found[group], e, rtol=0.25, atol=0.1 * float(e.mean()))


def test_the_gaussian_stands_in_where_the_output_is_an_image() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)))
    x = inputs(IMAGE, 1)[0]
    evidence = Evidence.of(capture(model, x), [x.expand(1500, 3, 8, 8)])
    output = model(x).flatten()
    rows = [weighed(model, evidence, o, lambda g: reads(g, evidence))["0.weight"] for o in output]
    expected = torch.stack(rows).square().sum(0) / 2
    torch.testing.assert_close(fisher(evidence)["0.weight"], expected, rtol=0.15, atol=0)


def test_one_logit_is_no_distribution_over_classes() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(3, 6, 8), nn.Flatten(), nn.ReLU(), nn.Linear(6, 1)))
    x = inputs(IMAGE, 8)[0]
    assert fisher(Evidence.of(capture(model, x), [x]))["0.weight"].max() > 0


def test_taylor_is_the_slope_of_the_loss_when_the_readers_are_scaled() -> None:
    """Finite differences, with the loss of one sample: all that reads and makes channel 3 grows by a share."""
    model, evidence, x, target = read("densenet", samples=1)
    group = evidence.channels.groups[1]

    def loss(share: float) -> float:
        with torch.no_grad():
            held = dict(model.named_parameters())
            before = {n: w.clone() for n, w in held.items()}
            for axis in group.axes:
                if axis.name in held:
                    held[axis.name].index_copy_(
                        axis.dim, axis.index[3], held[axis.name].index_select(axis.dim, axis.index[3]) * (1 + share)
                    )
            value = F.cross_entropy(model(x), target).item()
            for n, w in held.items():
                w.copy_(before[n])
        return value

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert taylor(evidence)[group.name][3].item() == pytest.approx(abs(slope), rel=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_energy_by_hooks_on_the_layers(name: str) -> None:
    model, evidence, x, _ = read(name, samples=4, batch=3)
    seen: dict[str, Tensor] = {}
    for layer, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            module.register_forward_pre_hook(lambda _m, args, n=layer: seen.update({f"{n}.weight": args[0].detach()}))
    model(x)
    for group in (g for g in evidence.channels.groups if g.channels > 1):
        means = []
        for axis in reads(group, evidence):
            value = seen[axis.name]
            if value.ndim > 2:  # (N, C, ...) -> (C, everything else)
                value = value.movedim(1, 0).flatten(1).t()
            squares = value.square().mean(0)  # (C,)
            size = evidence.channels.shapes[axis.name][axis.dim]
            means.append(squares.view(-1, size).mean(0)[axis.index].mean(1))
        torch.testing.assert_close(activation_energy(evidence)[group.name], torch.stack(means).mean(0))


def test_taylor_says_that_it_needs_labels() -> None:
    model, x = CUTTABLE["plain"](), inputs(IMAGE)[0]
    with pytest.raises(DataError, match="taylor needs labels"):
        taylor(Evidence.of(capture(model, x), [x]))


def test_a_seed_of_its_own_draws_other_labels() -> None:
    _, evidence, _, _ = read("densenet")
    first, other = fisher(evidence), fisher(evidence, seed=1)
    assert all(torch.equal(first[n], fisher(evidence)[n]) for n in first)
    assert any(not torch.allclose(first[n], other[n]) for n in first)


class Attention(nn.Module):
    """Channels that only a product of two values reads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = (nn.Conv2d(3, 8, 1) for _ in range(4))
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
        mixed = v @ torch.softmax(q.transpose(1, 2) @ k, 2)
        out: Tensor = self.head(mixed.unflatten(2, x.shape[2:]))
        return out


@pytest.mark.parametrize("criterion", [activation_energy, fisher])
def test_channels_that_no_layer_reads_are_judged_where_they_are_made(criterion: Any) -> None:
    x = inputs(IMAGE, 4)[0]
    evidence = Evidence.of(capture(randomized(Attention()), x), [x])
    for group in evidence.channels.groups:  # as many as are understood
        score = criterion(evidence)[group.name]
        assert score.isfinite().all()
        assert len(score.unique()) == group.channels
