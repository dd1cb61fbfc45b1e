"""A short ladder of candidates, gentlest first: say early what cannot be met, keep the fastest that holds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from penjing.errors import BudgetError
from penjing.search.budget import Budget

SAME = 1.1  # times that differ by less are not told apart on a busy machine: of those the smallest file is taken
UNITS = {"latency": ("ms", 1.0), "bytes": ("kB", 1e3), "macs": ("M multiply-accumulates", 1e6)}


@dataclass(frozen=True)
class Cost:
    """What a candidate costs before it is trained; weights do not change it."""

    latency: float  # ms
    bytes: float
    macs: float


@dataclass(frozen=True)
class Candidate:
    """One rung of the ladder.

    Attributes:
        ratio: Share of channels dropped.
        score: On the search split; ``None`` when it was not tried.
        drop: The original's score less this one's.
        status: "not tried", "over the limit", "too inaccurate", "holds" or "chosen".
        note: Why.
    """

    ratio: float
    cost: Cost
    score: float | None = None
    drop: float | None = None
    status: str = "not tried"
    note: str = ""


def within_limits(candidates: Sequence[Candidate], original: Cost, budget: Budget) -> list[Candidate]:
    """Mark what costs too much.

    Raises:
        BudgetError: All of them do; names the nearest.
    """
    ceilings = {name: limit.of(getattr(original, name)) for name, limit in budget.limits().items()}
    marked = [_marked(c, ceilings) for c in candidates]
    if all(c.status == "over the limit" for c in marked):
        raise BudgetError(_infeasible(candidates, original, ceilings))
    return marked


def climb(
    candidates: Sequence[Candidate], reference: float, budget: Budget, attempt: Callable[[Candidate], float]
) -> list[Candidate]:
    """Try the candidates from gentle to strong until one loses too much, and mark the fastest that holds as chosen.

    Args:
        reference: The original's score.
        attempt: Train a candidate and give its score.

    Raises:
        BudgetError: None holds; names the nearest.
    """
    results: list[Candidate] = []
    failed = False
    for c in candidates:
        if c.status == "over the limit" or failed:
            results.append(c if c.status == "over the limit" else replace(c, note="a gentler one had lost too much already"))
            continue
        score = attempt(c)
        drop = reference - score
        holds = drop <= budget.max_drop + 1e-12
        failed = not holds
        note = f"{100 * drop:+.2f} points lost, {100 * budget.max_drop:.2f} allowed"
        results.append(replace(c, score=score, drop=drop, status="holds" if holds else "too inaccurate", note=note))
    return _with_chosen(results, budget)


def _with_chosen(results: list[Candidate], budget: Budget) -> list[Candidate]:
    holding = [c for c in results if c.status == "holds"]
    if not holding:
        nearest = min((c for c in results if c.drop is not None), key=lambda c: c.drop or 0.0)
        raise BudgetError(
            f"no candidate loses at most {100 * budget.max_drop:.2f} points; the nearest drops {nearest.ratio:.0%} of the "
            f"channels and loses {100 * (nearest.drop or 0.0):.2f}; allow that much, loosen the other limits or train longer"
        )
    fastest = min(c.cost.latency for c in holding)
    chosen = min((c for c in holding if c.cost.latency <= SAME * fastest), key=lambda c: c.cost.bytes)
    return [replace(c, status="chosen") if c is chosen else c for c in results]


def _marked(candidate: Candidate, ceilings: Mapping[str, float]) -> Candidate:
    over = [_shown(n, getattr(candidate.cost, n)) for n, most in ceilings.items() if getattr(candidate.cost, n) > most]
    return replace(candidate, status="over the limit", note=" and ".join(over)) if over else candidate


def _infeasible(candidates: Sequence[Candidate], original: Cost, ceilings: Mapping[str, float]) -> str:
    def excess(c: Candidate) -> float:
        return float(max(getattr(c.cost, n) / most for n, most in ceilings.items()))

    nearest = min(candidates, key=excess)
    parts = [
        f"{n} at most {_shown(n, most)} was asked, {_shown(n, getattr(nearest.cost, n))} "
        f"({getattr(nearest.cost, n) / getattr(original, n):.3f}x) can be met"
        for n, most in ceilings.items()
        if getattr(nearest.cost, n) > most
    ]
    return f"no candidate meets the budget: {'; '.join(parts)}, by dropping {nearest.ratio:.0%} of the channels"


def _shown(name: str, value: float) -> str:
    unit, size = UNITS[name]
    return f"{value / size:.3g} {unit}"
