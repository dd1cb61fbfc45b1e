import math

import pytest
import torch
from torch import nn

from penjing.graph import capture
from penjing.score import Evidence, geometric_median
from tests.nets import CUTTABLE, IMAGE
from tests.oracle import inputs, randomized


def by_brute_force(makers: list[torch.Tensor]) -> list[float]:
    """Each maker has one row a channel."""
    channels = len(makers[0])
    vectors: list[list[float]] = [[] for _ in range(channels)]
    for maker in makers:
        lengths = [math.sqrt(sum(v * v for v in row)) for row in maker.flatten(1).tolist()]
        for i, row in enumerate(maker.flatten(1).tolist()):
            vectors[i] += [v * channels / sum(lengths) for v in row]
    return [sum(math.dist(a, b) for b in vectors) for a in vectors]


def scores_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(geometric_median(Evidence.of(capture(model, inputs(IMAGE)))))


def test_distances_by_brute_force() -> None:
    model = randomized(CUTTABLE["plain"]()).double()
    found = geometric_median(Evidence.of(capture(model, inputs(IMAGE, dtype=torch.float64))))
    for name in ("a", "b"):
        expected = by_brute_force([model.get_submodule(name).weight.detach()])
        assert found[f"{name}.weight"].tolist() == pytest.approx(expected, rel=1e-9)


def test_filters_of_all_layers_that_make_a_channel_count() -> None:
    """A transposed convolution makes channels along its second dimension; the one after it filters each by itself."""
    model = nn.Sequential(nn.ConvTranspose2d(3, 6, 2, 2), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1)).double()
    found = geometric_median(Evidence.of(capture(model, inputs(IMAGE, dtype=torch.float64))))
    expected = by_brute_force([model[0].weight.detach().transpose(0, 1), model[1].weight.detach()])
    assert found["0.weight"].tolist() == pytest.approx(expected, rel=1e-9)


def test_what_the_others_can_stand_in_for_goes_first_though_it_is_large() -> None:
    """A criterion of size would drop the small one."""
    model = CUTTABLE["plain"]()
    weight = model.get_submodule("a").weight
    assert isinstance(weight, nn.Parameter)
    with torch.no_grad():
        weight.copy_(torch.eye(16, 27).view(16, 3, 3, 3))
        weight[4] = 5 * weight[:4].mean(0)
        weight[5:] = 5 * weight[:4].mean(0) + 0.1 * weight[5:]
        weight[0] *= 0.01
    score = scores_of(model)["a.weight"]
    assert score.argmin() == 4
    assert score.argmax() in range(4)
