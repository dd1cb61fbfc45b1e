"""Candidates of networks whose sizes stand in ``forward``, and of those whose channels are freed where a block goes."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.files import read_json
from penjing.graph import capture, find_channels
from penjing.plan import ChannelPlan
from penjing.prune import RewrittenWarning, drop_blocks, prune_channels, prune_to_look
from penjing.run.choose import Chooser, _Aim
from penjing.search import Allocation, Budget, Candidate, Cost, regrouped
from penjing.settings import Settings
from tests.run.test_run import SETTINGS, task

SHUFFLED = 32


class Shuffle(nn.Module):
    """A residual block that ties every channel to another; its sizes are written in."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(SHUFFLED, SHUFFLED, 3, padding=1, groups=2)
        self.out = nn.Conv2d(SHUFFLED, SHUFFLED, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x.view(-1, 2, SHUFFLED // 2, 8, 8).transpose(1, 2).reshape(-1, SHUFFLED, 8, 8)
        return x + 0.01 * self.out(self.wide(y).relu())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, SHUFFLED, 3, padding=1)
        self.block = Shuffle()
        self.head = nn.Linear(SHUFFLED, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.stem(x).relu()).mean((2, 3)))
        return out


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_groups_that_a_block_tied_are_free_without_it() -> None:
    whole = find_channels(capture(net(), X))
    without = find_channels(capture(drop_blocks(net(), ["block"], X), X))
    tied, free = whole.groups[0], without.groups[0]
    assert (tied.name, free.name) == ("stem.weight", "stem.weight")
    assert tied.channels < free.channels == SHUFFLED
    half = regrouped({tied.name: tied.channels // 2}, whole, without, ChannelPlan({}), {})
    assert half == {"stem.weight": SHUFFLED // 2}
    quarter = regrouped({tied.name: tied.channels // 4}, whole, without, ChannelPlan({}), {tied.name: tied.channels // 2})
    assert quarter == half
    assert regrouped({g.name: 2 for g in whole.groups}, whole, whole, ChannelPlan({}), {}) == {g.name: 2 for g in whole.groups}


def test_a_limit_on_latency_is_met_as_measured_and_not_as_foretold() -> None:
    """Tables of a busy moment foretell too long a time: once a file was measured, a wider one is asked for."""
    chooser = object.__new__(Chooser)
    chooser.ceilings, chooser.whole = {"latency": 6.0}, Allocation({}, {}, 0.0, {"latency": 30.0})
    limit, faster = (_Aim(chooser._foretold(share), {}, "least sum") for share in (0.2, 0.1))
    for chooser.ratio, most in ((1.0, 6.0), (0.8, 7.5)):
        assert chooser._wanted(limit)["latency"] == pytest.approx(most)
        assert chooser._wanted(faster)["latency"] == pytest.approx(3.0)


@pytest.mark.filterwarnings("ignore::penjing.prune.RewrittenWarning")
def test_a_cut_that_is_only_looked_at_has_the_shapes_of_the_proven_one() -> None:
    plan = pj.plan_channels(net(), X, ratio=0.5, round_to=1)
    with pytest.warns(RewrittenWarning):
        proven = prune_channels(net(), plan, X)
    looked = prune_to_look(net(), plan, X)
    with torch.no_grad():
        torch.testing.assert_close(looked(X), proven(X))


@pytest.mark.filterwarnings("ignore::penjing.prune.RewrittenWarning")
@pytest.mark.slow
@pytest.mark.parametrize("blocks", [False, True])
def test_a_network_with_sizes_in_its_forward_is_compressed(blocks: bool, tmp_path: Path) -> None:
    how = replace(SETTINGS, epochs=0, control=False, generalization=0, drop_blocks=blocks)
    budget = pj.Budget(max_drop=None, macs="0.05x" if blocks else "0.3x")  # which leaves the stem and the head
    result = pj.compress(net(), task(), budget=budget, out=tmp_path / "out", settings=how)
    was, now = result.data["size"]["macs"]
    assert now <= (0.05 if blocks else 0.3) * was
    assert bool(result.plan.blocks) == blocks
    made, choice = (read_json(result.folder / f"stages/{result.data['chosen']}{end}.json") for end in ("", "-widths"))
    assert made["predicted"] == choice["allocation"]["costs"]["latency"]  # by the tables, before it was measured
    assert result.artifact.load(1)(X).shape == (2, 2)


def test_where_nothing_holds_the_widest_gets_all_the_training_there_is() -> None:
    running = importlib.import_module("penjing.run")
    asked: list[tuple[str, bool, int]] = []

    def make(_share: float, source: Candidate | None, *, trained: bool, trials: int) -> Candidate:
        asked.append((source.key if source else "", trained, trials))
        score = 0.5 if not trained else 0.6 if source is None else 0.85
        steps = 10 if trained else 0
        return Candidate(name="", key=str(len(asked)), kind="", share=1.0, cost=Cost(1, 1, 1, 1), score=score, steps=steps)

    chooser = SimpleNamespace(bounds=lambda: (1.0, 0.1), ceilings={})
    maker = SimpleNamespace(chooser=chooser, trainer=SimpleNamespace(trains=True), make=make)
    job = SimpleNamespace(budget=Budget(max_drop=0.1), settings=Settings(attempts=3, probes=2))
    found = running._Search(job, maker, SimpleNamespace(score=0.9)).run()
    assert asked == [("", False, 1), ("", True, 3), ("2", True, 1)]
    assert [c.key for c in found if c.status == "holds"] == ["3"]
