import lzma

import numpy as np
import pytest
import torch
from torch import nn

from penjing.errors import ModelError
from penjing.measure.sparsity import sparsity
from penjing.prune.sparsify import sparsify


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 32, 3), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(32, 10))


def test_density_is_counted_layer_by_layer() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[:8] = 0
    report = sparsity(model)
    assert report.layers == {"0.weight": 0.75, "3.weight": 1.0}
    assert report.density == (0.75 * 2304 + 320) / 2624


def test_bytes_are_those_of_all_parameters_and_of_a_real_compression() -> None:
    dense, sparse = sparsity(network()), sparsity(sparsify(network(), 0.1))
    assert dense.dense_bytes == sparse.dense_bytes == 4 * (2304 + 32 + 32 + 32 + 320 + 10)
    plain = b"".join(p.detach().numpy().tobytes() for p in network().parameters())
    assert dense.compressed_bytes < 1.02 * len(lzma.compress(plain))
    least = sum(p.numel() for p in sparsify(network(), 0.1).parameters() if p.ndim > 1) * (0.1 * 22 + 0.45) / 8
    assert least < sparse.compressed_bytes < 0.25 * dense.compressed_bytes


def test_half_of_the_bits_of_random_numbers_cannot_be_saved() -> None:
    """Control: what has no zeros and no order does not shrink."""
    model = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        bits = np.random.default_rng(0).integers(1 << 23, 1 << 30, (64, 64)).astype(np.int32)
        model.weight.copy_(torch.from_numpy(bits.view(np.float32)))
    assert sparsity(model).compressed_bytes > 0.95 * sparsity(model).dense_bytes


def test_it_says_that_nothing_becomes_faster() -> None:
    text = str(sparsity(sparsify(network(), 0.1)))
    assert "10.0" in text
    assert "Neither ONNX Runtime nor OpenVINO computes sparse convolutions faster" in text
    assert "no latency" in text
    assert "3.weight" in text


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="no weights"):
        sparsity(nn.ReLU())
