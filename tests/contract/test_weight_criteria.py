"""Every criterion for single weights gives one finite score for each weight, and leaves the model alone."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.errors import DataError, ModelError, RecipeError
from penjing.score.layer_weights import layer_weights
from penjing.score.weight_evidence import WeightCriterion, WeightEvidence
from penjing.score.weights import WEIGHT_CRITERIA, magnitude, movement, obs, snip, taylor, weight_criterion_named

Pairs = list[tuple[Tensor, Tensor]]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip


def batches() -> Pairs:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(6, 3, 6, 6, generator=generator), torch.randint(0, 3, (6,), generator=generator)) for _ in range(3)]


def evidence(model: nn.Module, data: object = None) -> WeightEvidence:
    return WeightEvidence(model, layer_weights(model), data if data is not None else batches())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", WEIGHT_CRITERIA)
def test_one_finite_score_for_each_weight(name: str) -> None:
    model = network().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    scores = WEIGHT_CRITERIA[name](evidence(model))
    assert scores.keys() == {"0.weight", "3.weight", "5.weight", "8.weight"}
    for weight, score in scores.items():
        assert score.shape == before[weight].shape
        assert score.isfinite().all()
        assert len(score.unique()) > score.numel() // 2
        assert not score.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())
    again = WEIGHT_CRITERIA[name](evidence(model))
    assert all(torch.equal(s, again[n]) for n, s in scores.items())


@pytest.mark.parametrize("name", sorted(set(WEIGHT_CRITERIA) - {"magnitude", "random"}))
def test_data_must_be_there(name: str) -> None:
    model = network()
    with pytest.raises(DataError, match="needs data"):
        WEIGHT_CRITERIA[name](WeightEvidence(model, layer_weights(model)))
    with pytest.raises(DataError, match="empty"):
        WEIGHT_CRITERIA[name](evidence(model, []))
    with pytest.raises(DataError, match="NaN"):
        WEIGHT_CRITERIA[name](evidence(model, [(x * torch.nan, y) for x, y in batches()]))


@pytest.mark.parametrize("name", ["snip", "taylor", "movement"])
def test_labels_must_be_there(name: str) -> None:
    with pytest.raises(DataError, match="labels"):
        WEIGHT_CRITERIA[name](evidence(network(), [x for x, _ in batches()]))


@pytest.mark.parametrize("name", sorted(WEIGHT_CRITERIA))
def test_in_half_precision_no_score_vanishes(name: str) -> None:
    """Squares of small weights, and of small gradients, are nothing in float16."""
    model, data = network().half(), [(x.half(), y) for x, y in batches()]
    with torch.no_grad():
        model[8].weight.mul_(2**-10)
    score = WEIGHT_CRITERIA[name](evidence(model, data))["8.weight"]
    assert score.count_nonzero() == score.numel()


@pytest.mark.parametrize("name", sorted(set(WEIGHT_CRITERIA) - {"magnitude", "random"}))
def test_a_model_of_two_inputs_is_given_both(name: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor, t: Tensor, weight: float = 1.0) -> Tensor:
            return self.a(x) + weight * self.b(t)  # type: ignore[no-any-return]

    model, x, t, y = Two().eval(), torch.randn(5, 3), torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 0])
    assert WEIGHT_CRITERIA[name](evidence(model, [((x, t), y)])).keys() == {"a.weight", "b.weight"}
    if name == "obs":
        assert WEIGHT_CRITERIA[name](evidence(model, [(x, t)])).keys() == {"a.weight", "b.weight"}


def test_gradient_criteria_against_finite_differences() -> None:
    """The slope of the loss along one weight, by moving it, in float64."""
    model = network().double()
    data = [(x.double(), y) for x, y in batches()]
    weight, at = model[3].weight, (2, 1, 0, 2)

    def slopes() -> Tensor:
        found = []
        for x, y in data:
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight[at] += sign * 1e-6
                    values.append(F.cross_entropy(model(x), y))
                    weight[at] -= sign * 1e-6
            found.append((values[0] - values[1]) / 2e-6)
        return torch.stack(found)

    each, w = slopes(), weight.detach()[at]
    for criterion, expected in (
        (snip, (w * each.mean()).abs()), (taylor, (w * each).square().mean()), (movement, -(w * each).mean()),
        (magnitude, w.abs()),
    ):  # fmt: skip
        found = criterion(evidence(model, data))["3.weight"][at]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-12)


def test_only_so_many_batches_are_looked_at() -> None:
    model, data = network(), batches()
    few = WeightEvidence(model, layer_weights(model), data, batches=1)
    assert torch.equal(snip(few)["8.weight"], snip(evidence(model, data[:1]))["8.weight"])
    assert not torch.equal(snip(few)["8.weight"], snip(evidence(model, data))["8.weight"])


def test_other_names_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"choose one of.*magnitude"):
        weight_criterion_named("magic")
    assert weight_criterion_named("snip") is snip


def test_layers_are_found_once_and_by_name() -> None:
    model = network()
    assert [w.name for w in layer_weights(model, exclude=("0.*",))] == ["3.weight", "5.weight", "8.weight"]
    shared = nn.Linear(4, 4)
    assert len(layer_weights(nn.Sequential(shared, nn.ReLU(), shared, nn.Embedding(3, 4)))) == 1
    with pytest.raises(RecipeError, match="nonsense"):
        layer_weights(model, exclude=("nonsense",))
    with pytest.raises(ModelError, match="exclude leaves none"):
        layer_weights(model, exclude=("*",))
    with pytest.raises(ModelError, match="no weights to cut"):
        layer_weights(nn.Sequential(nn.BatchNorm2d(3), nn.Embedding(3, 4)))


@pytest.mark.parametrize("criterion", [snip, movement])
def test_a_small_last_batch_counts_no_more_than_its_samples(criterion: WeightCriterion) -> None:
    model, (x, y) = network(), batches()[0]
    whole, parts = ([(x, y)], [(x[:1], y[:1]), (x[1:], y[1:])])
    expected, found = (criterion(evidence(model, data))["8.weight"] for data in (whole, parts))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_inputs_alone_are_data_as_well() -> None:
    model, data = network(), batches()
    alone = [[x] for x, _ in data]
    assert torch.equal(obs(evidence(model, alone))["8.weight"], obs(evidence(model, data))["8.weight"])
    with pytest.raises(DataError, match="needs labels"):
        snip(evidence(model, alone))
    with pytest.raises(DataError, match="yields dict"):
        obs(evidence(model, [{"x": data[0][0]}]))
