"""Networks of all kinds in integers, on both runtimes: the file computes what the module computes, and that the network."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import penjing as pj
from penjing.errors import ExportError
from penjing.export import RUNTIMES
from tests.nets import IMAGE, SHAPES, STEPS, Shapes, chain
from tests.oracle import NETS, inputs, randomized

BY_CHANCE = {"dropout_always_on"}
IN_HALF = {"autocast_inside"}  # whose float is bfloat16, where rounding differs from machine to machine
NOT_IN_ONNX = {"of_mixed_kernels", "of_mixed_kernels, rewritten"}  # as many groups as samples
CHAINS = st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=4)
OF_ONE_SIZE = {"view_of_a_counted_batch"}  # of batch: two samples, as everywhere in the tests
SPREAD_LITTLE = {"four_groups_as_batch", "a_group_each", "instance_norm"}  # norms make the means that the head reads alike
KEPT = 0.5  # share of how far samples differ that integers may be off, in small random networks
STEP = 0.03  # share of how far samples differ: values within rounding of a half may fall to either side


def differ(net: nn.Module, shapes: Shapes, target: str, out: Path, *, samples: int = 8) -> tuple[float, float]:
    """How far the file in integers is from its module, and that from the network, as shares of how far samples differ."""
    x = inputs(shapes, samples)
    module = pj.quantize(net, tuple(v[:2] for v in x), [x if len(x) > 1 else x[0]], target=target)
    file = pj.export(module, tuple(v[:2] for v in x), out / f"{target}.onnx", target=target)
    with torch.no_grad():
        meant, expected = net(*x), module(*x)
    return _apart(expected, file.load(1, "f32")(*x)), _apart(meant, expected)


def _apart(expected: Any, found: Any) -> float:
    pairs = list(zip(_tensors(expected), _tensors(found), strict=True))
    return max(float((a - b).norm() / ((a - a.mean(0)).norm() + 1e-3 * a.norm() + 1e-6)) for a, b in pairs)


def _tensors(outputs: Any) -> list[Tensor]:
    return [torch.as_tensor(y).double() for y in tree_leaves(outputs)]


@pytest.mark.slow
@pytest.mark.parametrize("target", RUNTIMES)
@pytest.mark.parametrize("name", sorted(NETS.keys() - BY_CHANCE - IN_HALF))
def test_files_of_all_networks_agree(name: str, target: str, tmp_path: Path) -> None:
    net, shapes = randomized(NETS[name]()), SHAPES.get(name, IMAGE)
    if name in NOT_IN_ONNX:
        with pytest.raises(ExportError, match="cannot be written as ONNX"):
            differ(net, shapes, target, tmp_path)
        return
    rounded, lost = differ(net, shapes, target, tmp_path, samples=2 if name in OF_ONE_SIZE else 8)
    assert rounded < STEP
    assert lost < KEPT or name in SPREAD_LITTLE


@settings(max_examples=6)
@given(
    st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=4), st.integers(0, 10**6), st.sampled_from(sorted(RUNTIMES))
)
def test_files_of_networks_put_together_by_lot_agree(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], seed: int, target: str
) -> None:
    net = randomized(chain(*steps)(), seed)
    rounded, lost = differ(net, IMAGE, target, tmp_path_factory.mktemp("lot"))
    assert rounded < STEP
    assert lost < KEPT
