import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.data import fashion_batches, fashion_sample
from penjing.errors import DataError, ModelError, RecipeError, TrainingError
from penjing.prune.masks import SCOPES
from penjing.prune.textbook import clip, sparsify_textbook
from penjing.task import Loss, Score, Task


def task(train: Any, loss: Loss = F.cross_entropy) -> Task:
    return Task(train=train, search=[], confirm=[], metric=lambda _run, _batches: Score(0, 0, None), loss=loss)


def half_squared(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum()


def test_two_steps_by_hand() -> None:
    """One output ``W x + b`` of four inputs, half the squared error; every number below is worked out with pencil and paper.

    Step 1: output 4 + 2 + 1 + 0.5 + 0 = 7.5, target 5.5, so the error is 2 and J = 2 x = (2, 4, -2, 1), |J|_1 = 9.
    With epsilon 18 the bound is 2, so clip(J) = (2, 2, -2, 1); at a rate of 0.25 the update is (0.5, 0.5, -0.5, 0.25).
    W = (4, 1, -1, 1) - that = (3.5, 0.5, -0.5, 0.75). |W clip(J)| = (7, 1, 1, 0.75): two of four stay, of the equal
    ones the first: W = (3.5, 0.5, 0, 0). The bias: J = 2, bound 18 / 2 = 9, so b = 0 - 0.25 * 2 = -0.5.

    Step 2: output 3.5 + 1 - 0.5 = 4, target 5.5: error -1.5, J = (-1.5, -3, 1.5, -0.75), |J|_1 = 6.75, the bound is 18 / 6.75
    = 8 / 3, so clip(J) = (-1.5, -8/3, 1.5, -0.75). W = (3.875, 7/6, -0.375, 0.1875).
    |W clip(J)| = (5.8125, 28/9, 0.5625, 0.140625): W = (3.875, 7/6, 0, 0). b = -0.5 + 0.375 = -0.125.
    """
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, 1, -1, 1]]))
        model.bias.zero_()
    batch = (torch.tensor([[1.0, 2, -1, 0.5]]), torch.tensor([[5.5]]))
    for steps, weight, bias in ((1, [3.5, 0.5, 0, 0], -0.5), (2, [3.875, 7 / 6, 0, 0], -0.125)):
        found = sparsify_textbook(model, task([batch], half_squared), 0.5, steps=steps, lr=0.25, epsilon=18)
        np.testing.assert_allclose(found.weight.detach().numpy(), np.array([weight]), rtol=1e-6)
        np.testing.assert_allclose(found.bias.detach().numpy(), np.array([bias]), rtol=1e-6)
    assert model.weight.tolist() == [[4, 1, -1, 1]]


def test_the_bound_is_of_each_tensor() -> None:
    gradient = torch.tensor([[3.0, -1], [0.5, 0]])
    assert clip(gradient, 4.5).tolist() == [[1, -1], [0.5, 0]]
    assert clip(torch.zeros(3), 1.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("scope", SCOPES)
def test_it_trains_on_the_sample_and_the_share_is_exact(scope: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    before, seen = copy.deepcopy(model.state_dict()), list[float]()

    def watched(output: Tensor, target: Tensor) -> Tensor:
        value = F.cross_entropy(output, target)
        seen.append(float(value.detach()))
        return value

    data = task(fashion_batches(fashion_sample().train[:512], 64, augment=True), watched)
    found = sparsify_textbook(model, data, 0.3, steps=40, lr=0.5, epsilon=10.0, scope=scope)
    weights = [p for p in found.parameters() if p.ndim > 1]
    assert sum(int(w.count_nonzero()) for w in weights) == round(0.3 * sum(w.numel() for w in weights))
    assert np.mean(seen[-8:]) < 0.9 * np.mean(seen[:3])
    assert not found.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_excluded_and_frozen_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    data = task([(torch.randn(8, 4), torch.randint(0, 2, (8,)))])
    found = sparsify_textbook(model, data, 0.5, steps=3, exclude=("1.weight",))
    assert found[1].weight.all()
    assert not torch.equal(found[1].weight, model[1].weight)
    kept = found[0].weight != 0
    assert kept.sum() == 8
    assert torch.equal(found[0].weight[kept], model[0].weight[kept])
    assert model[0].weight.abs()[kept].min() >= model[0].weight.abs()[~kept].max()


def test_chance_is_the_same_every_time_and_nobody_elses() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))
    data, before = task([(torch.randn(8, 4), torch.randint(0, 2, (8,)))]), torch.get_rng_state()
    a, b = (sparsify_textbook(model, data, 0.5, steps=3) for _ in range(2))
    assert torch.equal(a[1].weight, b[1].weight)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"density": 0}, RecipeError, "density is 0"),
        ({"density": 2}, RecipeError, "density is 2"),
        ({"steps": 0}, RecipeError, "steps is 0"),
        ({"lr": 0}, RecipeError, "lr is 0"),
        ({"epsilon": -1.0}, RecipeError, "epsilon is -1"),
        ({"epsilon": math.nan}, RecipeError, "epsilon is nan"),
        ({"scope": "nonsense"}, RecipeError, "choose one of"),
        ({"exclude": ("*",)}, ModelError, "no weights to cut"),
        ({"task": task([])}, DataError, "empty"),
        ({"task": task([(torch.full((2, 4), torch.nan), torch.tensor([0, 1]))])}, TrainingError, "step 1"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"model": nn.Linear(4, 2), "task": task([(torch.randn(2, 4), torch.tensor([0, 1]))]), "density": 0.5}
    with pytest.raises(error, match=message):
        sparsify_textbook(**(given | settings))
