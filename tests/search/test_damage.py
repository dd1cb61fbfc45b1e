import copy

import pytest
import torch
from torch import nn

from penjing.errors import DataError
from penjing.graph import capture
from penjing.measure import macs
from penjing.prune import allowed_widths, plan_widths, prune_channels
from penjing.score import Evidence
from penjing.search import Damage, in_power, narrowing
from penjing.search.damage import _interpolated


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()


def evidence(model: nn.Module, samples: int = 96) -> Evidence:
    torch.manual_seed(1)
    return Evidence.of(capture(model, (torch.randn(1, 3, 8, 8),)), list(torch.randn(samples, 3, 8, 8).split(32)))


def table(found: Evidence, **changed: object) -> dict[str, Damage]:
    widths = {g.name: allowed_widths(g.channels, 4) for g in found.channels.groups}
    return narrowing(found, widths, work=macs(found.graph), **changed)  # type: ignore[arg-type]


def test_the_error_is_that_of_the_network_cut_and_its_readers_fitted() -> None:
    """The same another way: cut for real, refit the one reader by plain least squares in float64 on the same samples."""
    model = network()
    found = evidence(model)
    row = table(found)["0.weight"]
    fitted, judged = torch.cat(found.data).split([72, 24])  # type: ignore[arg-type]
    scores = {
        g.name: torch.tensor(row.scores) if g.name == "0.weight" else torch.ones(g.channels) for g in found.channels.groups
    }
    plan = plan_widths(found.channels, scores, {"0.weight": 4})
    small = copy.deepcopy(prune_channels(model, plan, torch.randn(1, 3, 8, 8)))
    reader = small[3]
    assert isinstance(reader, nn.Conv2d)
    with torch.no_grad():
        x = nn.functional.unfold(small[:3](fitted), 3, padding=1).transpose(1, 2).flatten(0, 1).double()
        y = model[:4](fitted).flatten(2).transpose(1, 2).flatten(0, 1).double()
        ones = torch.cat([x, torch.ones(len(x), 1)], 1)
        solution = torch.linalg.lstsq(ones, y).solution.T
        reader.weight.copy_(solution[:, :-1].view_as(reader.weight))
        reader.bias.copy_(solution[:, -1])
        exact, got = model(judged).double(), small(judged).double()
    expected = float((exact - got).square().sum() / exact.square().sum())
    assert row.errors[4] == pytest.approx(expected, rel=0.1)  # but for the ridge, and the places that were looked at
    assert row.errors[12] == 0


def test_errors_rise_as_widths_fall_and_the_network_is_left_as_it_was() -> None:
    model = network()
    found = evidence(model)
    before = {k: v.clone() for k, v in found.graph.module.state_dict().items()}
    rows = table(found)
    assert set(rows) == {"0.weight", "3.weight"}
    for row in rows.values():
        errors = [row.errors[w] for w in sorted(row.errors, reverse=True)]
        assert errors == sorted(errors)
        assert errors[-1] > 0
    assert all(torch.equal(v, before[k]) for k, v in found.graph.module.state_dict().items())


def test_what_is_known_is_not_measured_again() -> None:
    found = evidence(network())
    rows = table(found)
    told: list[str] = []
    again = table(found, known={"0.weight": rows["0.weight"]}, on_group=lambda name, _row: told.append(name))
    assert told == ["3.weight"]
    assert again == rows


def test_between_measured_widths_the_error_follows_the_readers() -> None:
    local = {8: 0.0, 6: 1.0, 4: 3.0, 2: 9.0}
    assert _interpolated({8: 0.0, 2: 0.9}, local, [8, 6, 4, 2]) == pytest.approx({8: 0.0, 6: 0.1, 4: 0.3, 2: 0.9})


def test_values_that_are_not_finite_are_refused() -> None:
    model = network()
    found = evidence(model)
    data = [x.clone() for x in found.data]  # type: ignore[union-attr]
    data[0][0, 0, 0, 0] = torch.inf
    with pytest.raises(DataError):
        table(Evidence(found.graph, found.channels, data))


def test_decibels_as_power() -> None:
    assert in_power(20.0) == pytest.approx(0.01)
    assert in_power(float("inf")) == 0
