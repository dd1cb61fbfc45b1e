import math

import pytest
import torch
from torch import nn

from penjing.errors import DataError
from penjing.quant import Scheme, quantize, sensitivity
from penjing.quant.insert import layers


def test_it_equals_a_network_in_which_only_that_layer_is_quantized() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.randn(16, 2, 8, 8)
    module = quantize(model, x, [x], scheme=Scheme(correct_bias=False))
    found = sensitivity(module, [(x,)])
    assert list(found.values()) == sorted(found.values())
    names = [layer.node.name for layer in layers(module)]
    for at, keep in enumerate(("0.*", "2.*", "4.*")):
        others = tuple(p for p in ("0.*", "2.*", "4.*") if p != keep)
        alone = quantize(model, x, [x], scheme=Scheme(exclude=others, correct_bias=False))
        for n in alone.graph.nodes:  # a grid behind the layer is not its own
            if "per_tensor" in str(n.target) and names[at] not in {reader.name for reader in n.users}:
                n.replace_all_uses_with(n.args[0])
        alone.recompile()
        with torch.no_grad():
            exact, other = model(x).double(), alone(x).double()
        expected = 10 * math.log10(float(exact.square().sum() / (exact - other).square().sum()))
        assert found[names[at]] == pytest.approx(expected, abs=0.3)  # biases are rounded


def test_a_bad_layer_is_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(4))).eval()
    x = torch.randn(4, 4, 16, 16)
    module = quantize(model, x, [x])
    spoiled = next(layer for layer in layers(module) if layer.weight == "2.weight")
    module.get_buffer(str(spoiled.node.args[1].args[1].target)).mul_(20)  # type: ignore[union-attr]
    assert next(iter(sensitivity(module, [(x,)]))) == spoiled.node.name


def test_no_batch() -> None:
    model, x = nn.Conv2d(1, 1, 1), torch.randn(1, 1, 4, 4)
    with pytest.raises(DataError, match="at least one batch"):
        sensitivity(quantize(model, x, [x]), [])
