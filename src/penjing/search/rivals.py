"""Several choices that meet the same limits.

Errors that were measured alone are added up to choose by, and misleading so where much goes at once: what one layer loses the
next can no longer make good. How they mislead depends on the network. So there are several ways to add them up, and whoever
can look at whole networks chooses among what they give (as SPDY does with random ways; Frantar and Alistarh 2022,
arXiv:2203.02461).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from penjing.errors import BudgetError
from penjing.search.allocate import Tables, problem
from penjing.search.knapsack import Allocation, Problem, priced, solve

LEAST_SUM = "least sum"  # the way that reaches every limit that can be reached
DEPTH = 0.75  # times the error of the nearest choice that keeps all blocks: what leaves blocks out must be nearer than that
EVEN = 2.0  # the power of single errors that spreads them: many small ones rather than few large ones


def _as_measured(problem: Problem) -> Problem:
    return problem


def _blocks_stay(problem: Problem) -> Problem:
    return replace(problem, blocks={})


def _spread(problem: Problem) -> Problem:
    widths = {group: {w: e**EVEN for w, e in row.items()} for group, row in problem.widths.items()}
    sites = [replace(s, errors={p: e**EVEN for p, e in s.errors.items()}) for s in problem.sites]
    return replace(_blocks_stay(problem), widths=widths, sites=sites)


WAYS: Mapping[str, Callable[[Problem], Problem]] = {
    LEAST_SUM: _as_measured,
    "blocks stay": _blocks_stay,
    "spread": _spread,
}


def allocate(
    tables: Tables,
    ceilings: Mapping[str, float],
    *,
    way: str = LEAST_SUM,
    most: Mapping[str, int] | None = None,
    gone: Sequence[str] = (),
) -> Allocation:
    """The widths, precisions and blocks that lose least within the ceilings.

    Args:
        ceilings: Of ``latency`` (ms), ``bytes``, ``macs`` and ``memory`` (bytes of activations); what is not named is free.
        way: How errors are added up, a name in ``WAYS``; the error that is told is always the sum of what was measured.
        most: The widths that groups have now, where the network was cut before.
        gone: Blocks that were left out before; they are not told again.

    Raises:
        BudgetError: See ``solve``.
    """
    whole = problem(tables, ceilings, most=most or {}, gone=gone)
    found = solve(WAYS[way](whole))
    return priced(whole, found.widths, found.precisions, found.blocks)


def rivals(
    tables: Tables, ceilings: Mapping[str, float], *, most: Mapping[str, int] | None = None, gone: Sequence[str] = ()
) -> dict[str, Allocation]:
    """What the ways choose, as ``allocate`` does; each choice once, under the name of the first that makes it.

    Raises:
        BudgetError: Nothing meets the ceilings.
    """
    found: dict[str, Allocation] = {}
    refused: BudgetError | None = None
    for way in WAYS:
        try:
            made = allocate(tables, ceilings, way=way, most=most, gone=gone)
        except BudgetError as e:  # not every way reaches every ceiling
            refused = refused or e
            continue
        if made not in found.values():
            found[way] = made
    if not found:
        assert refused is not None
        raise refused
    return found


def nearest(errors: Mapping[str, float], choices: Mapping[str, Allocation]) -> str:
    """The choice whose network is nearest to the original, for those whose errors are told; the first where there are none.

    Training wins back width more easily than depth: of networks about as near, one that keeps its blocks goes before.
    """
    best = min(errors, key=lambda name: errors[name], default=next(iter(choices)))
    whole = [name for name in errors if not choices[name].blocks]
    if choices[best].blocks and whole:
        stays = min(whole, key=lambda name: errors[name])
        return best if errors[best] < DEPTH * errors[stays] else stays
    return best
