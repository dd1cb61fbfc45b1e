import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.errors import DataError, ModelError, RecipeError
from penjing.export import export
from penjing.files import read_tensors, write_tensors
from penjing.prune.masks import SCOPES
from penjing.prune.sparsify import sparsify
from penjing.quant import quantize
from penjing.score.weight_evidence import WeightEvidence
from penjing.score.weights import WEIGHT_CRITERIA, magnitude
from penjing.task import Score, Task
from penjing.train import Training, fit
from penjing.zoo import ZOO

Pairs = list[tuple[Tensor, Tensor]]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, bias=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def batches() -> Pairs:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 4, 6, 6, generator=generator), torch.randint(0, 4, (8,), generator=generator)) for _ in range(2)]


def task(train: Any = None) -> Task:
    train = batches() if train is None else train
    return Task(train=train, search=[], confirm=[], metric=lambda _run, _batches: Score(0, 0, None))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.ndim > 1}


def kept(model: nn.Module) -> int:
    return sum(int(w.count_nonzero()) for w in weights(model).values())


TOTAL = 4 * 16 * 9 + 16 * 16 * 9 + 16 * 4


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("criterion", WEIGHT_CRITERIA)
def test_the_share_is_exact_and_the_argument_left_alone(criterion: str, scope: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    sparse = sparsify(model, 0.1, criterion=criterion, scope=scope, task=task())
    assert kept(sparse) == round(0.1 * TOTAL)
    assert all(w.any() for w in weights(sparse).values())
    assert type(sparse) is type(model)
    assert sparse.state_dict().keys() == before.keys()
    assert not sparse.training
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for name, p in sparse.named_parameters():
        if p.ndim == 1:
            assert torch.equal(p, before[name])
        elif criterion != "obs":
            assert torch.equal(p[p != 0], before[name][p != 0])


@pytest.mark.parametrize("name", ZOO)
def test_every_network_of_the_zoo(name: str) -> None:
    make, shape = ZOO[name]
    model = make()
    total = sum(w.numel() for w in weights(model).values())
    sparse = sparsify(model, 0.3, scope="erk")
    assert kept(sparse) == round(0.3 * total)
    assert not torch.equal(sparse(torch.randn(2, *shape)), model.eval()(torch.randn(2, *shape)))


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
def test_n_of_m(pattern: str, criterion: str) -> None:
    n, m = (int(x) for x in pattern.split(":"))
    sparse = sparsify(network(), pattern=pattern, criterion=criterion, data=batches())
    for w in weights(sparse).values():
        rows = w.reshape(w.shape[0], w.shape[1] // m, m, -1)
        assert ((rows != 0).sum(2) == n).all()


@pytest.mark.parametrize(("pattern", "unit"), [("block:1x4", 4), ("block:4x1", 4), ("kernel", 9)])
def test_blocks_and_kernels(pattern: str, unit: int) -> None:
    sparse = sparsify(network(), 0.25, pattern=pattern, scope="global")
    assert abs(kept(sparse) - 0.25 * TOTAL) <= unit
    w = weights(sparse)["3.weight"] != 0
    shaped = {
        "block:1x4": w.view(16, 4, 4, 9).sum(2), "block:4x1": w.view(4, 4, 16, 9).sum(1), "kernel": w.flatten(2).sum(2),
    }[pattern]  # fmt: skip
    assert set(shaped.unique().tolist()) == {0, unit}


def test_equal_weights_are_counted_exactly() -> None:
    model = network()
    for w in weights(model).values():
        w.fill_(0.5)
    for scope in SCOPES:
        assert kept(sparsify(model, 0.3, scope=scope)) == round(0.3 * TOTAL)


def test_cutting_twice_is_cutting_once() -> None:
    once = sparsify(network(), 0.3)
    twice = sparsify(once, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))
    further = sparsify(once, 0.1)
    assert all(((b != 0) <= (a != 0)).all() for a, b in zip(once.parameters(), further.parameters(), strict=True))


def test_refitting_lowers_the_error() -> None:
    model, (x, _) = network().eval(), batches()[0]
    plain, fitted = (sparsify(model, 0.4, data=batches(), refit=refit) for refit in (False, True))
    assert all(torch.equal(a == 0, b == 0) for a, b in zip(weights(plain).values(), weights(fitted).values(), strict=True))
    with torch.no_grad():
        errors = [float((net(x) - model(x)).square().mean()) for net in (plain, fitted)]
    assert errors[1] < 0.7 * errors[0]


def test_excluded_weights_and_a_users_criterion() -> None:
    def first(evidence: WeightEvidence) -> dict[str, Tensor]:
        return {name: -torch.arange(w.numel()).view(w.shape) for name, w in evidence.weights.items()}

    model = network()
    sparse = sparsify(model, 0.25, criterion=first, exclude="[07].weight")
    assert torch.equal(sparse[0].weight, model[0].weight)
    assert torch.equal(sparse[7].weight, model[7].weight)
    assert torch.equal(sparse[3].weight != 0, torch.arange(2304).view(16, 16, 3, 3) < 576)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"density": 0}, RecipeError, "density is 0"),
        ({"density": 1.5}, RecipeError, r"density is 1\.5"),
        ({"density": -0.1}, RecipeError, "density is"),
        ({"density": float("nan")}, RecipeError, "density is nan"),
        ({"pattern": "diagonal"}, RecipeError, "choose 'unstructured'"),
        ({"criterion": "magic"}, RecipeError, "choose one of.*snip"),
        ({"scope": "everywhere"}, RecipeError, "choose one of.*erk"),
        ({"pattern": "2:4", "density": 0.3}, RecipeError, r"keeps 0\.5"),
        ({"pattern": "2:4", "scope": "global"}, RecipeError, "leave scope"),
        ({"pattern": "1:3"}, RecipeError, r"does not divide.*0\.weight, 3\.weight, 7\.weight.*exclude="),
        ({"pattern": "block:3x1"}, RecipeError, "does not divide"),
        ({"criterion": "snip"}, DataError, "needs data"),
        ({"refit": True}, DataError, "needs data"),
        ({"criterion": "snip", "data": []}, DataError, "empty"),
        ({"batches": 0}, RecipeError, "batches is 0"),
        ({"exclude": ("*",)}, ModelError, "no weights to cut"),
        ({"exclude": ("conv",)}, RecipeError, "conv"),
        ({"density": 1e-5}, RecipeError, "give at least"),
        ({"criterion": lambda _: {}}, RecipeError, "gives scores none"),
        ({"criterion": lambda e: {n: w * torch.nan for n, w in magnitude(e).items()}}, RecipeError, "finite"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sparsify(network(), **settings)


def test_a_model_that_is_sparser_already_is_refused() -> None:
    with pytest.raises(ModelError, match="ask for less"):
        sparsify(sparsify(network(), 0.1), 0.5)


# Exact zeros are the mask: whatever happens to the network, they stay.


def trained(model: nn.Module) -> nn.Module:
    return fit(model, task(), epochs=3, settings=Training(lr=0.1, precision="32-true"))


def reloaded(path: Path) -> Callable[[nn.Module], nn.Module]:
    def through(model: nn.Module) -> nn.Module:
        write_tensors(path, model.state_dict())
        fresh = network()
        fresh.load_state_dict(read_tensors(path)[0])
        return fresh

    return through


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "kernel"])
def test_training_and_reloading_keep_the_zeros(pattern: str, tmp_path: Path) -> None:
    sparse = sparsify(network(), pattern=pattern)
    for step in (trained, reloaded(tmp_path / "w.safetensors")):
        after = step(sparse)
        for name, w in weights(after).items():
            assert torch.equal(w == 0, weights(sparse)[name] == 0)
        assert (step is trained) == (not torch.equal(after[3].weight, sparse[3].weight))


def test_int8_and_the_file_keep_the_zeros(tmp_path: Path) -> None:
    sparse, x = trained(sparsify(network(), 0.1)), batches()[0][0]
    module = quantize(sparse, x[:1], [x])
    again = fit(module, task(), epochs=2, settings=Training(lr=0.05, precision="32-true"))
    for net, name in ((sparse, "float"), (module, "int8"), (again, "int8, trained")):
        proto = onnx.load(export(net, x[:1], tmp_path / f"{name}.onnx").path)
        held = [onnx.numpy_helper.to_array(t) for t in proto.graph.initializer]
        stored = sorted((w.shape, int((w == 0).sum())) for w in held if w.ndim > 1)
        expected = sorted((tuple(w.shape), int((w == 0).sum())) for w in weights(sparse).values())
        assert [s for s, _ in stored] == [s for s, _ in expected]
        # Integers add a few zeros of their own, where a weight is less than half a step.
        spare = 0 if name == "float" else 3
        assert all(0 <= found - zeros <= spare for (_, found), (_, zeros) in zip(stored, expected, strict=True))


def test_a_quantized_graph_can_be_cut() -> None:
    x = batches()[0][0]
    module = quantize(network(), x[:1], [x])
    sparse = sparsify(module, 0.2, criterion="snip", data=batches())
    assert kept(sparse) == round(0.2 * TOTAL)
    assert kept(module) == TOTAL
    with pytest.raises(ModelError, match="before quantize"):
        sparsify(module, 0.2, criterion="obs", data=batches())


def test_accuracy_falls_with_the_density_and_magnitude_beats_chance() -> None:
    """On a network that knows its task: what is said of a class is the channel that is brightest."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (256,), generator=generator)
    x = torch.randn(256, 4, 6, 6, generator=generator) + 2 * F.one_hot(y, 4)[:, :, None, None]
    data = list(zip(x.split(32), y.split(32), strict=True))
    model = fit(network(), task(data), epochs=4, settings=Training(lr=0.1, precision="32-true"))

    def loss(**settings: Any) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(sparsify(model, data=data, **settings)(x), y))

    assert loss(density=1.0) <= loss(density=0.5) + 1e-3 < loss(density=0.05)
    for criterion in ("magnitude", "obs"):
        assert loss(density=0.3, criterion=criterion) < loss(density=0.3, criterion="random")
