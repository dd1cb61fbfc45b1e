"""The oracle: on data, the layer's squared error is what the second moments say, and no other weights of the mask do better."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import ModelError
from penjing.score import layer_inputs
from penjing.score.layer_inputs import second_moments
from penjing.score.layer_weights import layer_weights
from penjing.score.weight_evidence import WeightEvidence
from penjing.score.weight_obs import DAMPING, obs, refitted

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (6,)),
    "linear of a sequence": (lambda: nn.Linear(6, 5), (7, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), (4, 11)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), padding=(1, 0)), (3, 5, 6)),
    "conv2d, same": (lambda: nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(2, 1)), (3, 5, 6)),
    "conv2d, reflect": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 5, 6)),
    "conv2d, grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 5, 6)),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (4, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, padding=1), (2, 3, 4, 3)),
    "transposed, 1d": (lambda: nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1, output_padding=1), (4, 6)),
    "transposed, 2d": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), groups=2, dilation=2), (4, 3, 4)),
}


def made(name: str) -> tuple[nn.Module, WeightEvidence]:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().double().eval()
    data = [torch.randn(8, *shape, dtype=torch.float64) for _ in range(2)]
    return layer, WeightEvidence(layer, layer_weights(layer), data)


def output_error(layer: nn.Module, evidence: WeightEvidence, weight: Tensor) -> float:
    """Squared error of the outputs, summed over the places that ``second_moments`` counts, per place."""
    error, places = 0.0, 0
    assert evidence.data is not None
    with torch.no_grad():
        for x in evidence.data:
            found = torch.func.functional_call(layer, {"weight": weight}, (x,))
            error += float((found - layer(x)).square().sum())
            places += found.numel() // weight_rows(evidence)
    return error / places


def weight_rows(evidence: WeightEvidence) -> int:
    return evidence.layers[0].by_output(evidence.weights["weight"]).shape[0]


def form(evidence: WeightEvidence, change: Tensor, moments: Tensor) -> float:
    """``tr(dW H dW')``, group by group."""
    rows = evidence.layers[0].by_output(change).flatten(1).view(len(moments), -1, moments.shape[1])
    return float(torch.einsum("goi,gij,goj->", rows, moments, rows))


@pytest.mark.parametrize("name", LAYERS)
def test_second_moments_tell_the_error_of_the_outputs(name: str) -> None:
    layer, evidence = made(name)
    weight = evidence.weights["weight"]
    change = torch.randn_like(weight)
    expected = output_error(layer, evidence, weight + change)
    assert form(evidence, change, evidence.moments["weight"]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("share", [0.2, 0.7])
@pytest.mark.parametrize("name", LAYERS)
def test_no_other_weights_of_the_mask_do_better(name: str, share: float) -> None:
    """The gradient of the (damped) error is zero at the weights that are kept."""
    _, evidence = made(name)
    weight = evidence.weights["weight"]
    mask = torch.rand(weight.shape) < share
    new = refitted(evidence, {"weight": mask})["weight"]
    moments = evidence.moments["weight"]
    pull = DAMPING * moments.diagonal(dim1=1, dim2=2).mean(1)
    damped = moments + torch.diag_embed(pull[:, None].expand(moments.shape[:2]))
    at = new.clone().requires_grad_()
    rows = evidence.layers[0].by_output(at - weight).flatten(1).view(len(damped), -1, damped.shape[1])
    (slope,) = torch.autograd.grad(torch.einsum("goi,gij,goj->", rows, damped, rows), at)
    assert (new[~mask] == 0).all()
    assert slope[mask].abs().max() < 1e-9
    assert slope[~mask].abs().max() > 1e-3  # control


def test_a_score_is_what_dropping_the_weight_costs() -> None:
    _, evidence = made("conv2d, grouped")
    scores, weight = obs(evidence)["weight"], evidence.weights["weight"]
    moments = evidence.moments["weight"]
    pull = DAMPING * moments.diagonal(dim1=1, dim2=2).mean(1)
    damped = moments + torch.diag_embed(pull[:, None].expand(moments.shape[:2]))
    for at in [(0, 0, 0, 0), (4, 1, 2, 0)]:
        mask = torch.ones_like(weight, dtype=torch.bool)
        mask[at] = False
        change = refitted(evidence, {"weight": mask})["weight"] - weight
        assert form(evidence, change, damped) == pytest.approx(float(scores[at]), rel=1e-9)


def test_of_large_maps_some_positions_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_inputs, "ROWS", 1)
    monkeypatch.setattr(layer_inputs, "LEAST_ROWS", 400)
    layer = nn.Conv2d(2, 3, 3, padding=1)
    data = [(torch.randn(8, 2, 16, 16),)]
    some = second_moments(layer, layer_weights(layer), data)["weight"]
    again = second_moments(layer, layer_weights(layer), data)["weight"]
    monkeypatch.setattr(layer_inputs, "LEAST_ROWS", 10**6)
    whole = second_moments(layer, layer_weights(layer), data)["weight"]
    assert torch.equal(some, again)
    assert not torch.equal(some, whole)
    assert (some - whole).norm() < 0.3 * whole.norm()


def test_a_layer_that_is_not_called_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    model.spare = nn.Linear(2, 2)
    model.forward = lambda x: model[0](x)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"spare\.weight is not called"):
        obs(WeightEvidence(model, layer_weights(model), [torch.randn(4, 3)]))
