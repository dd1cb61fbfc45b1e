"""Connected labels, the families of those that are cut from the same places, and the balance that families must keep."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from penjing.graph.labels import Ledger

Places = Mapping[int, Mapping[tuple[str, int], list[int]]]  # component -> (parameter, dim) -> indices
Rows = list[list[int]]  # components, of which equally many of every row stay


@dataclass(frozen=True)
class Families:
    """What the ledger comes to.

    Attributes:
        component: The number of the connected component of each label.
        places: Where each component is.
        reasons: Components that must stay, and why.
        members: Components that may go, in families that are cut from the same places.
        rows: Of those families that must keep a balance.
    """

    component: np.ndarray
    places: Places
    reasons: Mapping[int, str]
    members: list[list[int]]
    rows: Mapping[int, Rows]


def settled(ledger: Ledger) -> Families:
    """Gather what was joined; a balance that no simple count can keep is kept by joining place with place."""
    while True:
        component = _components(ledger)
        reasons = {int(component[i]): why for labels, why in reversed(ledger.frozen) for i in labels.tolist()}
        places = _places(ledger, component)
        members = _members(places, reasons)
        family = {c: i for i, f in enumerate(members) for c in f}
        rows: dict[int, Rows] = {}
        unkept = [b for b in ledger.balances if not _balanced(component[b.numpy()], family, rows)]
        if not unkept:
            return Families(component, places, reasons, members, rows)
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


def _places(ledger: Ledger, component: np.ndarray) -> Places:
    places: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for (name, dim), start in ledger.first.items():
        size = ledger.shapes[name][dim]
        for index, c in enumerate(component[start : start + size].tolist()):
            places[c][name, dim].append(index)
    return places


def _members(places: Places, reasons: Mapping[int, str]) -> list[list[int]]:
    families: dict[tuple[tuple[str, int, int], ...], list[int]] = defaultdict(list)
    for c, held in sorted(places.items()):
        if c not in reasons:
            families[tuple(sorted((name, dim, len(index)) for (name, dim), index in held.items()))].append(c)
    return list(families.values())


def _balanced(matrix: np.ndarray, family: Mapping[int, int], rows: dict[int, Rows]) -> bool:
    """Whether equal counts of every family in every row keep this balance; notes the rows of each family that it binds."""
    counts = [Counter(c for c in row.tolist() if c in family) for row in matrix]
    if all(c == counts[0] for c in counts):
        return True  # the very same channels in every row
    found: dict[int, Rows] = {}
    for f in {family[c] for row in counts for c in row}:
        own = [{c: n for c, n in row.items() if family[c] == f} for row in counts]
        flat = [c for row in own for c in row]
        alike = len({len(row) for row in own}) == 1 and len({n for row in own for n in row.values()}) == 1
        if not alike or len(set(flat)) < len(flat):
            return False
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
