from dataclasses import replace

import pytest
import torch
from torch import nn

from penjing.errors import BudgetError
from penjing.graph import capture
from penjing.measure import layers, macs
from penjing.prune import allowed_widths, drop_blocks, plan_widths, prune_channels
from penjing.score import Evidence
from penjing.search import Damage, Prices, Tables, allocate, extremes, scaled
from penjing.search.allocate import BESIDE, problem
from penjing.search.knapsack import priced
from penjing.search.price_fit import Coefficients


class Net(nn.Module):
    """Everything that counts differently: a residual stream, a depthwise and a grouped convolution, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 32, 3, padding=1)
        self.depthwise: nn.Module = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.outer = nn.Conv2d(32, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.outer(self.depthwise(self.inner(x).relu()).relu())
        return self.head(torch.cat([x, self.grouped(x).relu()], 1).mean((2, 3)))


EXAMPLE = (torch.zeros(1, 3, 8, 8),)
TIME = {"int8": Coefficients(0.1, 0.0, 0.001, 0.0001), "float": Coefficients(0.1, 0.0, 0.002, 0.0004)}


class Transposed(Net):
    """The same sizes, with a transposed convolution among them."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.ConvTranspose2d(32, 32, 3, padding=1, groups=32)


def tables(noise: dict[str, float] | None = None, net: type[Net] = Net) -> Tables:
    torch.manual_seed(0)
    graph = capture(net().eval(), EXAMPLE)
    channels = Evidence.of(graph).channels
    damage = {}
    for i, g in enumerate(channels.groups):
        widths = allowed_widths(g.channels, 8, blocks=g.equal)
        damage[g.name] = Damage({w: (i + 1) * (1 - w / g.channels) ** 2 for w in widths}, [float(c) for c in range(g.channels)])
    coefficients = {
        p: {layer.weight: replace(c, product=0.0) if layer.weight.startswith("depthwise") else c for layer in layers(graph)}
        for p, c in TIME.items()
    }
    return Tables(graph, channels, damage, noise or {}, Prices(coefficients, {"int8": 0.5, "float": 0.5}, 4, 1, 0.0), 1000.0)


def with_block(error: float) -> Tables:
    return replace(tables(), blocks={"inner.weight": error})


def test_costs_are_those_of_the_network_cut_for_real() -> None:
    found = tables()
    for share in (0.75, 0.5, 0.3):
        whole = extremes(found)[0].costs["macs"]
        chosen = allocate(found, {"macs": share * whole})
        scores = {name: torch.tensor(row.scores) for name, row in found.damage.items()}
        plan = plan_widths(found.channels, scores, chosen.widths)
        model = Net().eval()
        small = prune_channels(model, plan, EXAMPLE, verify=False)
        graph = capture(small, EXAMPLE)
        assert chosen.costs["macs"] == macs(graph) <= share * whole
        assert chosen.costs["latency"] == pytest.approx(
            found.prices.predict(layers(graph)), rel=0.02
        )  # groups are padded one by one
        kept = sum(layer.shape[0] * BESIDE["int8"] for layer in layers(graph)) + sum(
            p.numel() for p in small.parameters() if p.ndim > 1
        )
        assert chosen.costs["bytes"] == 1000 + kept


def test_a_depthwise_layer_gets_cheaper_whether_it_is_transposed_or_not() -> None:
    plain, transposed = (extremes(tables(net=net)) for net in (Net, Transposed))
    for one, other in zip(plain, transposed, strict=True):
        assert one.costs == pytest.approx(other.costs)


def uniform(tables: Tables, share: float) -> dict[str, int]:
    """The widths nearest to the same share of every group: what an allocation is compared with."""
    return {name: min(row.errors, key=lambda w: abs(w - share * max(row.errors))) for name, row in tables.damage.items()}


def test_no_uniform_width_within_the_limit_loses_less() -> None:
    found = tables()
    free = problem(found, {}, most={})
    integers = {s.name: "int8" for s in free.sites}
    for share in (0.75, 0.5, 0.25):
        alike = priced(free, uniform(found, share), integers)
        chosen = allocate(found, {"latency": alike.costs["latency"]})
        assert chosen.costs["latency"] <= alike.costs["latency"] * (1 + 1e-6)
        assert chosen.error <= alike.error + 1e-6


def test_a_network_that_was_cut_stays_cut() -> None:
    found = tables()
    name = next(iter(found.damage))
    narrow = min(found.damage[name].errors)
    assert allocate(found, {}, most={name: narrow}).widths[name] == narrow


def test_a_layer_whose_integers_cost_most_is_left_in_float_where_time_allows() -> None:
    found = tables({"conv2d": 0.5, "conv2d_1": 1e-6})
    free = allocate(found, {})
    assert free.precisions["conv2d"] == "float"
    assert free.precisions["conv2d_1"] == "int8"
    tight = allocate(found, {"latency": 1.02 * extremes(found)[1].costs["latency"]})
    assert tight.precisions["conv2d"] == "int8"


def test_layers_that_integers_slow_down_are_left_in_float() -> None:
    found = tables()
    slow = replace(TIME["int8"], base=0.5, product=0.001)
    integers = {w: slow if w.startswith("inner") else c for w, c in found.prices.coefficients["int8"].items()}
    quicker = replace(found, prices=replace(found.prices, coefficients={**found.prices.coefficients, "int8": integers}))
    whole, _ = extremes(quicker)
    assert {name for name, p in whole.precisions.items() if p == "float"} == {"conv2d_1"}
    tight = allocate(quicker, {"latency": 0.9 * whole.costs["latency"]})
    assert tight.precisions == whole.precisions
    assert {p for a in extremes(found) for p in a.precisions.values()} == {"int8"}


def test_a_few_hundredths_are_not_worth_an_island_of_floats() -> None:
    found = tables()
    held = {p: dict(row) for p, row in found.prices.coefficients.items()}
    held["int8"]["outer.weight"], held["float"]["outer.weight"] = Coefficients(0.01), Coefficients(0.001)
    few = replace(found, prices=replace(found.prices, coefficients=held))
    assert set(extremes(few)[0].precisions.values()) == {"int8"}
    held["int8"]["outer.weight"] = Coefficients(1.0)
    assert extremes(few)[0].precisions["conv2d_3"] == "float"


def test_memory_limits_what_any_layer_reads_and_writes() -> None:
    found = tables()
    chosen = allocate(found, {"memory": 64 * 40})  # positions times channels read and written, a byte each
    inner = next(w for g, w in chosen.widths.items() if g.startswith("inner"))
    assert 64 * 2 * inner <= 64 * 40
    with pytest.raises(BudgetError, match="nearest"):
        allocate(found, {"memory": 64})


def test_ceilings_follow_what_was_measured() -> None:
    assert scaled({"latency": 2.0, "bytes": 10.0}, {"latency": 4.0}, {"latency": 3.0, "bytes": 9.0}) == {
        "latency": 1.5,
        "bytes": 10.0,
    }


def test_a_block_goes_with_its_layers() -> None:
    found = with_block(0.2)
    assert problem(found, {}, most={}).blocks["inner.weight"].sites == ("conv2d_1", "conv2d_2", "conv2d_3")
    whole, narrowest = extremes(found)
    assert (whole.blocks, narrowest.blocks) == ((), ("inner.weight",))
    assert allocate(found, {}).blocks == ()
    tight = {"macs": 1.1 * narrowest.costs["macs"]}
    chosen = allocate(found, tight)
    assert chosen.blocks == ("inner.weight",)
    assert set(chosen.precisions) == {"conv2d", "conv2d_4", "linear"}
    small = drop_blocks(Net().eval(), chosen.blocks, EXAMPLE)
    channels = Evidence.of(capture(small, EXAMPLE)).channels
    there = {g.name: chosen.widths[g.name] for g in channels.groups}
    plan = plan_widths(channels, {g.name: torch.ones(g.channels) for g in channels.groups}, there)
    assert chosen.costs["macs"] == macs(capture(prune_channels(small, plan, EXAMPLE, verify=False), EXAMPLE))
    again = allocate(found, tight, most=chosen.widths, gone=chosen.blocks)
    assert again.blocks == ()  # it has gone already, and is neither told nor paid for twice
    assert again.costs["macs"] == chosen.costs["macs"]
