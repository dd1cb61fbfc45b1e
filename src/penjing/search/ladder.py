"""What was tried, what it costs, and which of it is taken."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from penjing.search.budget import Budget

SAME = 1.1  # times that differ by less are not told apart on a busy machine: of those the smallest file is taken
SLACK = 0.02  # share by which a latency may be above its limit: clocks are no better
EXACT = 1e-9  # what rounding may add to a difference or a product, as a share
UNITS = {"latency": ("ms", 1.0), "bytes": ("kB", 1e3), "macs": ("M multiply-accumulates", 1e6), "memory": ("kB of memory", 1e3)}


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        latency: ms of one call at the batch size that is judged, in the target's runtime.
        bytes: Of the file.
        macs: Multiply-accumulates of one sample.
        memory: Bytes that one call needs at least, see ``peak_memory``.
    """

    latency: float
    bytes: float
    macs: float
    memory: float


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One network that was tried.

    Attributes:
        key: Of its files.
        kind: "original", "float", "untrained", "trained" or "quantization-aware".
        share: Of the latency of the whole network in integers that it was made for.
        widths: Of the groups that were cut.
        blocks: Residual blocks that were left out.
        floats: Layers that were left in float, by the names of their nodes.
        predicted: The latency that the tables promised before anything was built; None of a form that they were not asked for.
        steps: Of training, and of those the ones in integers.
        score: On the search split.
        status: "chosen", "holds", "too inaccurate", "over the limit" or "does not hold".
    """

    name: str
    key: str
    kind: str
    share: float
    cost: Cost
    widths: Mapping[str, int] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()
    predicted: float | None = None
    steps: int = 0
    steps_in_integers: int = 0
    score: float | None = None
    status: str = "not tried"
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Candidate":
        """Read what ``to_json`` gave."""
        names = {key: tuple(value[key]) for key in ("blocks", "floats")}
        return cls(**{**value, "cost": Cost(**value["cost"]), **names})


def in_integers(name: str) -> str:
    """What a candidate's training in integers is called."""
    return f"{name}, in integers"


def marked(candidate: Candidate, reference: float, ceilings: Mapping[str, float], budget: Budget) -> Candidate:
    """The candidate with its status and why."""
    if missed := over(candidate.cost, ceilings):
        costs = asdict(candidate.cost)
        note = " and ".join(f"{shown(r, costs[r])}, {shown(r, ceilings[r])} allowed" for r in missed)
        return replace(candidate, status="over the limit", note=note)
    if candidate.score is None:
        return replace(candidate, status="too inaccurate", note="the metric gives no number")
    if budget.max_drop is None:
        return replace(candidate, status="holds")
    drop = reference - candidate.score
    holds = within(drop, budget.max_drop)
    note = f"loses {drop:.4g}, {budget.max_drop:.4g} allowed"
    return replace(candidate, status="holds" if holds else "too inaccurate", note=note)


def within(drop: float, allowed: float | None) -> bool:
    """Whether no more is lost than is allowed; a drop that is exactly as large is within, whatever its last digits."""
    return allowed is None or drop <= allowed + EXACT * max(1.0, allowed)


def over(cost: Cost, ceilings: Mapping[str, float]) -> list[str]:
    """The limits that a cost does not keep."""
    costs = asdict(cost)
    return [r for r, most in ceilings.items() if costs[r] > most * (1 + (SLACK if r == "latency" else EXACT))]


def best(candidates: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """Those that hold, the one to take first: the fastest, or the most accurate, as the budget wants.

    Of those that are about as fast the smallest comes first.
    """
    holding = [c for c in candidates if c.status in ("holds", "chosen")]
    if budget.wants_accuracy:
        return sorted(holding, key=lambda c: (-(c.score or 0.0), c.cost.latency))
    found: list[Candidate] = []
    while holding:
        fastest = min(c.cost.latency for c in holding)
        taken = min((c for c in holding if c.cost.latency <= SAME * fastest), key=lambda c: (c.cost.bytes, -(c.score or 0.0)))
        found.append(taken)
        holding.remove(taken)
    return found


def shown(name: str, value: float) -> str:
    """A cost with its unit."""
    unit, size = UNITS[name.partition(" ")[0]]  # "memory at" a layer is memory
    return f"{value / size:.3g} {unit}"
