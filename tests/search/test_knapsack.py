import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.errors import BudgetError
from penjing.search.knapsack import Allocation, Droppable, Problem, Side, Site, priced, solve
from penjing.search.price_fit import Coefficients

small = st.floats(0, 4, allow_nan=False).map(lambda v: round(v, 2))


def every_choice(problem: Problem) -> Iterator[Allocation]:
    groups, sites = list(problem.widths), [s.name for s in problem.sites]
    for gone in (list(problem.blocks)[:n] for n in range(len(problem.blocks) + 1)):
        for widths in itertools.product(*(problem.widths[g] for g in groups)):
            for precisions in itertools.product(*(s.errors for s in problem.sites)):
                chosen = dict(zip(groups, widths, strict=True)), dict(zip(sites, precisions, strict=True))
                yield priced(problem, *chosen, gone)


def within(problem: Problem, a: Allocation, slack: float = 0.0) -> bool:
    return all(a.costs[r] <= most * (1 + slack) for r, most in problem.ceilings.items())


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    groups = [f"g{i}" for i in range(draw(st.integers(1, 3)))]
    widths = {g: dict(zip((16, 8, 4), sorted(draw(st.lists(small, min_size=3, max_size=3))), strict=True)) for g in groups}
    sites = []
    for i in range(draw(st.integers(1, 3))):
        sides = [
            Side(draw(st.sampled_from([0, 0, 3])), dict.fromkeys(draw(st.sets(st.sampled_from(groups), max_size=2)), n))
            for n in (1, draw(st.sampled_from([1, 2])))
        ]
        precisions = draw(st.sampled_from([["int8"], ["int8", "float"]]))
        costs = {p: {r: Coefficients(*(draw(small) for _ in range(4))) for r in ("latency", "bytes")} for p in precisions}
        sites.append(Site(f"s{i}", *sides, {p: draw(small) for p in precisions}, costs))
    last = draw(st.integers(0, len(sites)))  # the sites from here on are in one block, and the first may be in another
    blocks = {"late": Droppable(draw(small), tuple(s.name for s in sites[last:]))} if last < len(sites) else {}
    if last and draw(st.booleans()):
        blocks["first"] = Droppable(draw(small), (sites[0].name,))
    free = Problem(widths, sites, {"latency": draw(small)}, {}, {"latency": lambda n: -(-n // 8) * 8}, blocks)
    costs = [a.costs for a in every_choice(free)]
    share = draw(st.floats(0, 1))
    names = draw(st.sampled_from([["latency"], ["latency", "bytes"]]))
    ceilings = {r: max(0.01, share * max(c[r] for c in costs) + (1 - share) * min(c[r] for c in costs)) for r in names}
    return replace(free, ceilings=ceilings)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_solver_finds_what_trying_everything_finds(problem: Problem) -> None:
    holding = [a for a in every_choice(problem) if within(problem, a)]
    if not holding:
        if not [a for a in every_choice(problem) if within(problem, a, 1e-6)]:
            with pytest.raises(BudgetError, match="nearest"):
                solve(problem)
        return
    found = solve(problem)
    assert within(problem, found, 1e-6)
    best = min(a.error for a in holding)
    assert found.error <= best + 1e-3 * max(1.0, best)


def chain(ceiling: float) -> Problem:
    work = {"int8": {"latency": Coefficients(product=1.0)}, "float": {"latency": Coefficients(product=4.0)}}
    sites = [
        Site("first", Side(3), Side(0, {"a": 1}), {"int8": 0.5, "float": 0.0}, work),
        Site("second", Side(0, {"a": 1}), Side(10), {"int8": 0.1, "float": 0.0}, work),
    ]
    return Problem({"a": {4: 0.0, 2: 1.0}}, sites, {}, {"latency": ceiling})


def test_precision_is_bought_where_it_is_worth_most() -> None:
    assert solve(chain(1000)).precisions == {"first": "float", "second": "float"}
    found = solve(chain(90))  # the first layer in float costs 48, the second 160; in integers 12 and 40
    assert (found.widths, found.precisions) == ({"a": 4}, {"first": "float", "second": "int8"})
    assert found.costs["latency"] == 88


def test_what_cannot_be_met_is_said_with_what_comes_nearest() -> None:
    with pytest.raises(BudgetError, match=r"latency of 26 ms where at most 20 ms was asked"):
        solve(chain(20))


def test_of_equally_good_choices_the_cheaper_is_taken() -> None:
    work = {"int8": {"bytes": Coefficients(outputs=1.0)}}
    site = Site("s", Side(3), Side(0, {"a": 1}), {"int8": 0.0}, work)
    assert solve(Problem({"a": {8: 0.0, 4: 0.0}}, [site], {}, {"bytes": 100.0})).widths == {"a": 4}


def test_of_equally_good_choices_the_faster_is_taken_beside_a_resource_of_large_numbers() -> None:
    costs = {"latency": Coefficients(outputs=0.01), "macs": Coefficients(outputs=1e8)}
    sites = [Site(n, Side(3), Side(0, {n: 1}), {"int8": 0.0}, {"int8": costs}) for n in ("s", "t")]
    widths = {n: {8: 1.0, 4: 1.0} for n in ("s", "t")}
    assert solve(Problem(widths, sites, {}, {"latency": 100.0})).widths == {"s": 4, "t": 4}


def test_a_block_goes_where_that_loses_least_and_its_layers_cost_nothing_then() -> None:
    whole = chain(12)  # both layers at width 2 take 26
    with pytest.raises(BudgetError):
        solve(whole)
    found = solve(replace(whole, blocks={"late": Droppable(3.0, ("second",))}))
    assert (found.blocks, found.costs["latency"], found.precisions) == (("late",), 12, {"first": "int8"})
    assert found.error == 3.5  # the width is free again: nothing that is left is narrowed
    assert solve(replace(whole, ceilings={"latency": 52.0}, blocks={"late": Droppable(3.0, ("second",))})).blocks == ()
