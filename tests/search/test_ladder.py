from dataclasses import replace

from penjing.search import Budget, Candidate, Cost, best, marked

COST = Cost(latency=1.0, bytes=1e6, macs=1e8, memory=1e6)


def candidate(name: str, latency: float, score: float, size: float = 1e6) -> Candidate:
    return Candidate(
        name=name, key=name, kind="trained", share=0.5, cost=replace(COST, latency=latency, bytes=size), score=score
    )


def test_a_candidate_is_marked_by_every_limit_and_by_its_drop() -> None:
    budget = Budget(max_drop=0.01)
    assert marked(candidate("a", 1.0, 0.93), 0.94, {}, budget).status == "holds"
    lost = marked(candidate("a", 1.0, 0.92), 0.94, {}, budget)
    assert (lost.status, lost.note) == ("too inaccurate", "loses 0.02, 0.01 allowed")
    kept = 0.9 - 0.01
    assert 0.9 - kept > 0.01  # as floats: exactly what is allowed is lost
    assert marked(candidate("a", 1.0, kept), 0.9, {}, budget).status == "holds"
    assert marked(candidate("a", 1.0, kept - 1e-6), 0.9, {}, budget).status == "too inaccurate"
    over = marked(candidate("a", 1.0, 0.94), 0.94, {"latency": 0.5, "bytes": 5e5, "macs": 2e8}, budget)
    assert over.status == "over the limit"
    assert over.note == "1 ms, 0.5 ms allowed and 1e+03 kB, 500 kB allowed"
    assert marked(candidate("a", 1.01, 0.1), 0.94, {"latency": 1.0}, Budget(max_drop=None, latency=1.0)).status == "holds"


def test_the_fastest_comes_first_and_of_those_about_as_fast_the_smallest() -> None:
    tried = [
        replace(candidate("slow", 2.0, 0.94), status="holds"),
        replace(candidate("fast", 1.0, 0.94), status="holds"),
        replace(candidate("as fast, smaller", 1.05, 0.94, size=5e5), status="holds"),
        replace(candidate("faster, wrong", 0.5, 0.5), status="too inaccurate"),
    ]
    assert [c.name for c in best(tried, Budget(max_drop=0.01))] == ["as fast, smaller", "fast", "slow"]


def test_without_a_limit_on_the_drop_the_most_accurate_comes_first() -> None:
    tried = [replace(candidate(n, t, s), status="holds") for n, t, s in (("a", 1.0, 0.90), ("b", 2.0, 0.93))]
    assert [c.name for c in best(tried, Budget(max_drop=None, latency=1.0))] == ["b", "a"]


def test_a_candidate_survives_its_file() -> None:
    made = replace(candidate("a", 1.0, 0.9), widths={"g": 16}, floats=("conv2d",), steps=7, predicted=0.9)
    assert Candidate.from_json(made.to_json()) == made


def test_a_candidate_without_a_score_never_holds() -> None:
    nameless = Candidate(name="a", key="a", kind="trained", share=1.0, cost=Cost(1, 1, 1, 1), score=None)
    for budget in (Budget(max_drop=0.5), Budget(max_drop=None, latency=0.5)):
        found = marked(nameless, 0.9, {}, budget)
        assert (found.status, found.note) == ("too inaccurate", "the metric gives no number")
