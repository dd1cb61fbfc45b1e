"""Every network of the zoo is cut rightly: the oracle of ``tests/oracle.py`` holds, whatever is cut."""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from penjing.graph import Channels, capture, find_channels
from penjing.prune import prune_channels
from penjing.zoo import ZOO
from tests.oracle import chosen, difference, inputs, randomized, shifted, zeroed


class Read(NamedTuple):
    """A network of the zoo with random weights and statistics, in float64."""

    model: nn.Module
    shape: tuple[int, ...]
    channels: Channels
    before: dict[str, Tensor]


@pytest.fixture(scope="module", params=ZOO)
def read(request: pytest.FixtureRequest) -> Iterator[Read]:
    make, shape = ZOO[request.param]
    model = randomized(make()).double()
    before = copy.deepcopy(model.state_dict())
    yield Read(model, shape, find_channels(capture(model, inputs((shape,), 1, torch.float64))), before)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.sampled(5)
@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
def test_removing_channels_equals_zeroing_them(read: Read, ratio: float, round_to: int) -> None:
    plan = chosen(read.channels, ratio, round_to)
    assert plan.keep
    small = prune_channels(read.model, plan, inputs((read.shape,), 1, torch.float64), verify=False)
    reference, control = zeroed(read.model, plan), zeroed(read.model, shifted(read.model, plan))
    with torch.no_grad():
        for batch in (1, 3):
            x = inputs((read.shape,), batch, torch.float64)
            expected = reference(*x)
            assert difference(small(*x), expected) < 1e-9
            assert difference(control(*x), expected) > 1e-4


def test_the_check_at_run_time_agrees(read: Read) -> None:
    x = inputs((read.shape,), 1, torch.float64)
    small = prune_channels(read.model, chosen(read.channels, 0.5, 8), x)
    assert type(small) is type(read.model)
    assert small.state_dict().keys() == read.before.keys()
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in read.model.parameters())


@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_widths_are_rounded(read: Read, ratio: float) -> None:
    plan = chosen(read.channels, ratio, 8)
    for group in read.channels.groups:
        axis = group.axes[0]
        kept = set(plan.keep.get(axis.name, {}).get(axis.dim, range(read.channels.shapes[axis.name][axis.dim])))
        stay = sum(set(row) <= kept for row in axis.index.tolist())
        assert stay % 8 == 0 or group.channels <= 8
        assert stay > 0


def test_all_but_inputs_and_outputs_can_be_cut(read: Read) -> None:
    assert set(read.channels.fixed.values()) == {"model input", "model output"}
