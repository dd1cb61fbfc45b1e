"""From what was measured to the prices of layers: non-negative least squares of relative errors.

A layer takes ``base + inputs * i + outputs * o + product * i * o`` with ``i`` and ``o`` its channels as the runtime pads them;
that holds for kernels that walk over blocks of channels, whatever lies in memory between them. Layers of one geometry share
their numbers. What is not a layer with weights (additions, pools, changes of layout, the call itself) is read off whole calls.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from penjing.search.price_samples import Sample, Site

SHORT = 3e-3  # ms: shorter kernels weigh no more, since runtimes count in microseconds
TRUST = 1.0  # in layers' times: a scale that is off by 0.1 costs as much as an error of 10 % in one call
Pad = Callable[[int], int]


@dataclass(frozen=True)
class Coefficients:
    """The price of a layer in ms, of channels padded to what the runtime takes at a time."""

    base: float = 0.0
    inputs: float = 0.0
    outputs: float = 0.0
    product: float = 0.0

    def at(self, inputs: int, outputs: int) -> float:
        """The time with so many padded channels."""
        return self.base + self.inputs * inputs + self.outputs * outputs + self.product * inputs * outputs


@dataclass(frozen=True)
class Row:
    """A layer of some widths and what it took."""

    widths: tuple[int, int]
    ms: float


def rows_of(samples: Sequence[Sample]) -> dict[str, dict[str, list[Row]]]:
    """``{precision: {geometry: rows}}``: one row for all layers of the same widths, with the median of what they took."""
    times: dict[tuple[str, str, tuple[int, int]], list[float]] = {}
    for sample in samples:
        for s, ms in zip(sample.sites, sample.times, strict=True):
            times.setdefault((sample.precision, s.geometry, s.widths), []).append(ms)
    found: dict[str, dict[str, list[Row]]] = {}
    for (precision, geometry, widths), every in times.items():
        found.setdefault(precision, {}).setdefault(geometry, []).append(Row(widths, statistics.median(every)))
    return found


@dataclass(frozen=True)
class Whole:
    """What turns the times of layers into the time of a call."""

    constant: float  # ms of the call itself
    bases: float  # of a layer's base this share: profiling makes every kernel longer by about the same
    scale: float  # of the rest of a layer's time
    values: float  # ms for each padded channel of a layer's output, at each position


def fit_geometry(geometry: str, rows: Sequence[Row], pad: Pad) -> Coefficients:
    """The price of the layers of one geometry; of a depthwise convolution only its outputs count."""
    counted = [r for r in rows if r.ms > 0]
    if not counted:
        return Coefficients()
    both = np.array([[pad(n) for n in r.widths] for r in counted], dtype=float)
    i, o = both.T
    none = np.zeros_like(i)
    features = [np.ones_like(i), none, o, none] if " depthwise " in geometry else [np.ones_like(i), i, o, i * o]
    ms = np.array([r.ms for r in counted])
    return Coefficients(*_solved(np.stack(features, axis=1), ms, 1 / np.maximum(ms, SHORT)))


def fit_whole(samples: Sequence[Sample], prices: Mapping[str, Coefficients], pad: Pad) -> Whole:
    """How the calls' times follow from their layers' prices (by geometry); all samples have the same layers.

    What does not depend on widths is one number, of which the layers' bases get no more than they took in the profile.
    """
    bases = sum(prices[s.geometry].base for s in samples[0].sites)
    sums = [sum(prices[s.geometry].at(*padded(s, pad)) for s in x.sites) - bases for x in samples]
    rows = np.array([(1.0, varied, _values(x.sites, pad)) for x, varied in zip(samples, sums, strict=True)])
    walls = np.array([x.wall for x in samples])
    # The last row draws the scale to 1: outputs' values grow along with the layers' times, which were measured and they not.
    still, scale, values = _solved(np.vstack([rows, (0.0, 1.0, 0.0)]), np.append(walls, 1.0), np.append(1 / walls, TRUST))
    share = min(scale, still / bases) if bases else 0.0
    return Whole(still - share * bases, share, scale, values)


def layer_price(site: Site, geometry: Coefficients, whole: Whole) -> Coefficients:
    """The price of a layer with its share of what is not a layer."""
    inputs, outputs, product = (whole.scale * v for v in (geometry.inputs, geometry.outputs, geometry.product))
    return Coefficients(whole.bases * geometry.base, inputs, outputs + whole.values * site.positions, product)


def mean(prices: Iterable[Coefficients]) -> Coefficients:
    """The price of a layer that is used several times, for each use."""
    table = np.array([astuple(p) for p in prices])
    return Coefficients(*(float(v) for v in table.mean(axis=0)))


def padded(site: Site, pad: Pad) -> tuple[int, int]:
    """The layer's inputs and outputs as the runtime pads them."""
    return pad(site.widths[0]), pad(site.widths[1])


def _values(sites: Iterable[Site], pad: Pad) -> float:
    """How many values all layers give for one sample."""
    return float(sum(s.positions * pad(s.widths[1]) for s in sites))


def _solved(features: np.ndarray, target: np.ndarray, weights: np.ndarray) -> list[float]:
    from scipy.optimize import nnls

    weighted = features * weights[:, None]
    size = np.linalg.norm(weighted, axis=0)
    size[size == 0] = 1.0
    found, _ = nnls(weighted / size, target * weights)
    return [float(v) for v in found / size]
