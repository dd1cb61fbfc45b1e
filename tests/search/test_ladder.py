from dataclasses import replace

import pytest

from penjing.errors import BudgetError
from penjing.search import Budget, Candidate, Cost, climb, within_limits

ORIGINAL = Cost(latency=8.0, bytes=4e6, macs=1e8)
TIMES = {0.0: 4.0, 0.25: 3.0, 0.5: 1.0, 0.75: 0.9}
RUNGS = [Candidate(r, Cost(latency=t, bytes=1e6 * (1 - r) ** 2, macs=1e8 * (1 - r) ** 2)) for r, t in TIMES.items()]
SCORES = {0.0: 0.94, 0.25: 0.938, 0.5: 0.933, 0.75: 0.90}


def statuses(results: list[Candidate]) -> list[str]:
    return [c.status for c in results]


def test_the_fastest_that_holds_is_chosen_and_the_rest_of_the_ladder_is_not_tried() -> None:
    tried: list[float] = []

    def attempt(c: Candidate) -> float:
        tried.append(c.ratio)
        return SCORES[c.ratio]

    results = climb(RUNGS, 0.94, Budget(max_drop=0.005), attempt)
    assert statuses(results) == ["holds", "chosen", "too inaccurate", "not tried"]
    assert tried == [0.0, 0.25, 0.5]


def test_fastest_means_measured_not_smallest() -> None:
    slow_and_small = [RUNGS[0], Candidate(0.5, Cost(latency=5.0, bytes=1.0, macs=1.0))]
    results = climb(slow_and_small, 0.94, Budget(max_drop=0.5), lambda c: SCORES[c.ratio])
    assert statuses(results) == ["chosen", "holds"]


def test_of_those_that_are_as_fast_the_smallest_is_chosen() -> None:
    as_fast = [Candidate(0.5, Cost(latency=1.0, bytes=5.0, macs=1.0)), Candidate(0.6, Cost(latency=1.05, bytes=4.0, macs=1.0))]
    assert statuses(climb(as_fast, 0.9, Budget(max_drop=0.5), lambda _: 0.9)) == ["holds", "chosen"]
    slower = [as_fast[0], replace(as_fast[1], cost=Cost(1.2, 4.0, 1.0))]
    assert statuses(climb(slower, 0.9, Budget(max_drop=0.5), lambda _: 0.9)) == ["chosen", "holds"]


def test_what_costs_too_much_is_not_tried() -> None:
    marked = within_limits(RUNGS, ORIGINAL, Budget(latency=0.25))
    assert statuses(marked) == ["over the limit", "over the limit", "not tried", "not tried"]
    results = climb(marked, 0.94, Budget(max_drop=0.5), lambda c: SCORES[c.ratio])
    assert [c.score for c in results] == [None, None, 0.933, 0.90]


def test_an_infeasible_budget_names_the_nearest() -> None:
    with pytest.raises(BudgetError, match=r"latency at most 0\.08 ms was asked, 0\.9 ms \(0\.113x\) can be met.*dropping 75%"):
        within_limits(RUNGS, ORIGINAL, Budget(latency=0.01))


def test_an_accuracy_that_nothing_keeps_names_the_nearest() -> None:
    with pytest.raises(BudgetError, match=r"at most 0\.00 points; the nearest drops 0% of the channels and loses 1\.00"):
        climb(RUNGS, 0.95, Budget(max_drop=0.0), lambda c: SCORES[c.ratio])
