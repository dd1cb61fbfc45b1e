"""Connected labels, the families of those that are cut from the same places, and the balance that families must keep."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from penjing.graph.labels import Ledger

Place = tuple[str, int]  # a dimension of a parameter
Rows = list[list[int]]  # components, of which equally many of every row stay


@dataclass(frozen=True)
class Held:
    """Where the components are: what component ``c`` holds stands from ``start[c]`` to ``start[c + 1]``, place by place."""

    places: Sequence[Place]
    start: np.ndarray  # (components + 1,)
    place: np.ndarray  # (labels,), numbers of places
    index: np.ndarray  # (labels,), indices there

    def layout(self, c: int) -> np.ndarray:
        """The numbers of the places that a component holds indices of, one for every index."""
        return self.place[self.start[c] : self.start[c + 1]]

    def axes(self, members: Sequence[int]) -> dict[Place, np.ndarray]:
        """The indices that components of one layout hold, of shape ``(members, k)``, by place."""
        layout = self.layout(members[0])
        every = self.start[np.asarray(members)][:, None] + np.arange(len(layout))
        return {self.places[p]: self.index[every[:, layout == p]] for p in np.unique(layout)}


@dataclass(frozen=True)
class Families:
    """What the ledger comes to.

    Attributes:
        component: The number of the connected component of each label.
        held: Where each component is.
        reasons: Components that must stay, and why.
        members: Components that may go, in families that are cut from the same places.
        rows: Of those families that must keep a balance.
    """

    component: np.ndarray
    held: Held
    reasons: Mapping[int, str]
    members: list[list[int]]
    rows: Mapping[int, Rows]

    @property
    def fixed(self) -> dict[Place, str]:
        """Dimensions of which some indices must stay, and why."""
        return {self.held.places[p]: why for c, why in self.reasons.items() for p in np.unique(self.held.layout(c))}


def settled(ledger: Ledger) -> Families:
    """Gather what was joined; a balance that no simple count can keep is kept by joining place with place."""
    while True:
        component = _components(ledger)
        reasons = {int(component[i]): why for labels, why in reversed(ledger.frozen) for i in labels.tolist()}
        held = _held(ledger, component)
        members = _members(held, reasons)
        family = {c: i for i, f in enumerate(members) for c in f}
        rows: dict[int, Rows] = {}
        unkept = [b for b in ledger.balances if not _balanced(component[b.numpy()], family, rows)]
        single = [c for f, own in rows.items() if len(own[0]) == 1 for c in members[f]]
        if not unkept and single:  # none of them could go
            ledger.freeze(torch.from_numpy(np.isin(component, single).nonzero()[0]), "equal parts of one channel")
        elif not unkept:
            return Families(component, held, reasons, members, rows)
        for balance in unkept:
            ledger.join(balance[:1].expand_as(balance), balance, "equal parts")
        ledger.balances = [b for b in ledger.balances if not any(b is u for u in unkept)]


def _components(ledger: Ledger) -> np.ndarray:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b = (torch.cat([j[i] for j in ledger.joins] or [torch.empty(0, dtype=torch.int64)]).numpy() for i in (0, 1))
    met = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(ledger.count, ledger.count))
    _, component = connected_components(met, directed=False)
    return np.asarray(component)


def _held(ledger: Ledger, component: np.ndarray) -> Held:
    places = list(ledger.first)
    sizes = [ledger.shapes[name][dim] for name, dim in places]
    # Labels are handed out dimension by dimension, so that they stand in the order of the places already.
    place = np.repeat(np.arange(len(places)), sizes)
    index = np.concatenate([np.arange(n) for n in sizes]) if sizes else np.zeros(0, dtype=np.int64)
    order = np.argsort(component, kind="stable")
    count = int(component.max()) + 1 if len(component) else 0
    start = np.searchsorted(component[order], np.arange(count + 1))
    return Held(places, start, place[order], index[order])


def _members(held: Held, reasons: Mapping[int, str]) -> list[list[int]]:
    families: dict[bytes, list[int]] = defaultdict(list)
    for c in range(len(held.start) - 1):
        if c not in reasons:
            families[held.layout(c).tobytes()].append(c)
    return list(families.values())


def _balanced(matrix: np.ndarray, family: Mapping[int, int], rows: dict[int, Rows]) -> bool:
    """Whether equal counts of every family in every row keep this balance; notes the rows of each family that it binds."""
    counts = [Counter(c for c in row.tolist() if c in family) for row in matrix]
    if all(c == counts[0] for c in counts):
        return True  # the very same channels in every row
    found: dict[int, Rows] = {}
    for f in {family[c] for row in counts for c in row}:
        every = [frozenset((c, n) for c, n in row.items() if family[c] == f) for row in counts]
        own = [dict(row) for row in dict.fromkeys(every)]  # rows of the very same channels say it once
        flat = [c for row in own for c in row]
        alike = len({len(row) for row in own}) == 1 and len({n for row in own for n in row.values()}) == 1
        if not alike or len(set(flat)) < len(flat):
            return False
        if len(own) > 1:
            found[f] = [list(row) for row in own]
    for f, new in found.items():
        finer = _finer(rows[f], new) if f in rows else new
        if finer is None:
            return False
        rows[f] = finer
    return True


def _finer(a: Rows, b: Rows) -> Rows | None:
    """The finer of two balances of one family, when it implies the other."""
    short, long = sorted((a, b), key=lambda rows: len(rows[0]))
    row_of = {c: i for i, row in enumerate(long) for c in row}
    inside = all(len({row_of.get(c, -1) for c in row}) == 1 for row in short)
    return short if inside and {c for row in short for c in row} == set(row_of) else None
