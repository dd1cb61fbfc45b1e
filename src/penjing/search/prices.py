"""What every layer costs at every width and precision, measured in the graph on the target runtime.

A few networks of other widths are written, run and watched; what their layers took gives a price that the time of any other
widths can be summed from. What was measured stays in the ledger, so that it is measured once on a machine.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from penjing.errors import RecipeError, entry
from penjing.export import RUNTIMES
from penjing.graph.layers import Layer
from penjing.measure import cores, machine
from penjing.progress import Progress, silent
from penjing.quant import Target, target_named
from penjing.search.ledger import Ledger
from penjing.search.price_fit import Coefficients, Row, fit_geometry, fit_whole, layer_price, mean, rows_of
from penjing.search.price_samples import PRECISIONS, Sample, Sampler, Site, draw_widths, site, structure

FORMAT = 1  # of what the ledger holds
FEW, ENOUGH = 4, 6  # networks that do where each geometry is known, at so many widths or as many as there are


@dataclass(frozen=True, kw_only=True)
class PriceSettings:
    """How layers are priced."""

    batch: int = 1  # the batch size that latency is judged at
    threads: int | None = None  # of the runtime; None for all cores
    samples: int = 8  # networks of other widths to watch, each in two precisions
    seconds: float = 0.3  # to time each file, twice that to profile it

    def __post_init__(self) -> None:
        if self.samples < FEW:
            raise RecipeError(f"samples is {self.samples}; prices have four unknowns, so give at least {FEW}")


@dataclass(frozen=True)
class Prices:
    """The time of a network as a sum over its layers, in ms.

    ``constant + sum of base + inputs * i + outputs * o + product * i * o`` over its layers, with ``i`` and ``o`` the padded
    numbers of their channels.

    Attributes:
        coefficients: ``{"int8" or "float": {name of the layer's weight: its price}}``; float is the runtime's default.
        constant: ``{precision: ms of the call itself}``, the same for all, so that precisions can be mixed.
        lanes: Channels that the runtime takes at a time.
        networks: How many networks of other widths the prices come from.
        error: The median over these of the relative error of their predicted time.
    """

    coefficients: Mapping[str, Mapping[str, Coefficients]]
    constant: Mapping[str, float]
    lanes: int
    networks: int
    error: float

    def padded(self, channels: int) -> int:
        """So many channels as the runtime runs them."""
        return math.ceil(channels / self.lanes) * self.lanes

    def predict(self, layers: Sequence[Layer], precision: Mapping[str, str] | None = None) -> float:
        """The time of one call of a network of these layers, in ms.

        Prices were taken where all layers have one precision. Where precisions change along the network, what the runtime does
        to turn values from one into the other is not in them: up to a tenth of a call in OpenVINO, a quarter in ONNX Runtime.

        Args:
            layers: Of the network, or of the network cut: ``cut_layers`` gives these without cutting it.
            precision: ``{name of the layer's weight: "int8" or "float"}``; int8 for those it does not name, and without it.

        Raises:
            RecipeError: A layer or a precision has no price.
        """
        precision = precision or {}
        call = min(self.constant.values())
        return call + sum(self._of(layer.weight, precision.get(layer.weight, PRECISIONS[0]), layer.widths) for layer in layers)

    def of_sites(self, sites: Sequence[Site], precision: str) -> float:
        """As ``predict``, with all layers in one precision."""
        return self.constant[precision] + sum(self._of(s.weight, precision, s.widths) for s in sites)

    def _of(self, weight: str, precision: str, widths: tuple[int, int]) -> float:
        price = entry(entry(self.coefficients, precision, "precision"), weight, "priced layer")
        return price.at(*(self.padded(n) for n in widths))

    def to_json(self) -> dict[str, Any]:
        """The prices as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Prices":
        """Read what ``to_json`` gave.

        Raises:
            RecipeError: The value is something else.
        """
        try:
            table = {p: {name: Coefficients(**c) for name, c in held.items()} for p, held in value["coefficients"].items()}
            return cls(table, dict(value["constant"]), value["lanes"], value["networks"], value["error"])
        except (KeyError, TypeError, AttributeError) as e:
            raise RecipeError(f"these are not prices ({e!r}); give what Prices.to_json gave") from e


@dataclass(frozen=True)
class PricingCost:
    """What is still to be measured."""

    networks: int  # each in two precisions
    seconds: float  # about


class Pricing:
    """The prices of one network's layers: what is known of them, what it costs to know the rest, and the rest."""

    def __init__(
        self,
        model: nn.Module,
        example: Tensor | Sequence[Tensor],
        *,
        target: str,
        settings: PriceSettings | None = None,
        ledger: Ledger | None = None,
        fresh: bool = False,
    ) -> None:
        """Read the model and the ledger, run nothing.

        Args:
            target: The runtime.
            ledger: Where earlier measurements are; by default in the user's cache.
            fresh: Whether to measure what is known as well.

        Raises:
            ModelError: The model cannot be read.
            RecipeError: The target is not known.
        """
        self.settings, self.ledger, self.fresh = settings or PriceSettings(), ledger or Ledger(), fresh
        threads = self.settings.threads or cores()
        profile = target_named(target)
        s = self.settings
        self.sampler = Sampler(model, example, target=profile, batch=s.batch, threads=threads, seconds=s.seconds)
        self.conditions = _conditions(profile, s.batch, threads)
        self.known: dict[str, Any] = {} if fresh else self.ledger.read(self.conditions)
        self.sites = [site(layer) for layer in self.sampler.layers]
        self.name = structure(self.sampler.graph)
        self.widths = self._drawn(s.samples)
        if self._are_known(self.widths):
            self.widths = self._drawn(FEW)

    @property
    def cost(self) -> PricingCost:
        """What ``prices`` will have to measure; nothing when they are in the ledger."""
        missing = 0 if self._settled() in self.known else len(self._missing())
        nodes = len(self.sampler.graph.module.graph.nodes)
        return PricingCost(missing, missing * (0.6 + 0.016 * nodes + 8 * self.settings.seconds))  # on a core of 2.6 GHz

    def prices(self, progress: Progress = silent) -> Prices:
        """The prices, measured where they must be.

        Raises:
            ExportError: The network cannot be written, or the runtime refuses it.
        """
        if (held := self.known.get(self._settled())) is not None:
            return Prices.from_json(held)
        if missing := self._missing():
            label = f"pricing layers, about {self.cost.seconds:.0f} s"
            found = self.sampler.samples([self.widths[i] for i in missing], progress, label)
            self._write(self._entries(missing, found))
        rows = {p: {s.geometry: self._rows(s.geometry, p) for s in self.sites} for p in PRECISIONS}
        prices = fit_prices(self.samples(), rows, self.sampler.target.lanes)
        self._write({self._settled(): prices.to_json()})
        return Prices.from_json(self.known[self._settled()])

    def samples(self) -> list[Sample]:
        """The networks that were watched; all of them once ``prices`` has been asked for."""
        names = [self._net(i, p) for i in range(len(self.widths)) for p in PRECISIONS]
        return [Sample.from_json(self.known[name]) for name in names if name in self.known]

    def _drawn(self, count: int) -> list[dict[str, int]]:
        return draw_widths(self.sampler.channels, count, self.sampler.target.lanes)

    def _are_known(self, drawn: Sequence[Mapping[str, int]]) -> bool:
        """Whether the ledger has as many widths of each geometry as these networks would give, or enough of them."""
        given = defaultdict(set)
        for widths in drawn:
            for s in self.sampler.sites(widths):
                given[s.geometry].add(s.widths)
        least = {geometry: min(ENOUGH, len(found)) for geometry, found in given.items()}
        return all(len(self._rows(g, p)) >= n for g, n in least.items() for p in PRECISIONS)

    def _rows(self, geometry: str, precision: str) -> list[Row]:
        """Everything known of the layers of a geometry."""
        start = _layer_name(geometry, precision)
        held = [self.known[name] for name in sorted(n for n in self.known if n.startswith(start))]
        return [Row((v["widths"][0], v["widths"][1]), v["ms"]) for v in held]

    def _missing(self) -> list[int]:
        return [i for i in range(len(self.widths)) if any(self._net(i, p) not in self.known for p in PRECISIONS)]

    def _settled(self) -> str:
        return f"prices {self.name} {self.settings.samples}"

    def _net(self, i: int, precision: str) -> str:
        """The ledger's name of a network; the last of few is not the last of many."""
        widths = " ".join(str(n) for n in self.widths[i].values())
        return f"net {self.name} {precision} {widths}"

    def _entries(self, indices: Sequence[int], samples: Sequence[Sample]) -> dict[str, Any]:
        """What is to be remembered: the networks, and the layers for other networks."""
        nets = zip(((i, p) for i in indices for p in PRECISIONS), samples, strict=True)
        entries: dict[str, Any] = {self._net(i, p): sample.to_json() for (i, p), sample in nets}
        for precision, by_geometry in rows_of(samples).items():
            for geometry, rows in by_geometry.items():
                start = _layer_name(geometry, precision)
                entries |= {f"{start}{r.widths[0]}x{r.widths[1]}": {"widths": list(r.widths), "ms": r.ms} for r in rows}
        return entries

    def _write(self, entries: Mapping[str, Any]) -> None:
        held = self.ledger.write(self.conditions, entries, fresh=self.fresh)
        self.known = self.known | {k: held[k] for k in entries} if self.fresh else held


def measure_prices(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    target: str,
    settings: PriceSettings | None = None,
    ledger: Ledger | None = None,
    fresh: bool = False,
    progress: Progress = silent,
) -> Prices:
    """What the layers of ``model`` cost at other widths and in other precisions; see ``Pricing``."""
    return Pricing(model, example, target=target, settings=settings, ledger=ledger, fresh=fresh).prices(progress)


def fit_prices(samples: Sequence[Sample], rows: Mapping[str, Mapping[str, Sequence[Row]]], lanes: int) -> Prices:
    """Prices from what was measured.

    Args:
        samples: Networks of one structure, in every precision.
        rows: ``{precision: {geometry: layers of that geometry}}``, of these networks and of others.
    """

    def pad(channels: int) -> int:
        return math.ceil(channels / lanes) * lanes

    table: dict[str, dict[str, Coefficients]] = {}
    wholes = {}
    for precision, by_geometry in rows.items():
        of = [s for s in samples if s.precision == precision]
        prices = {g: fit_geometry(g, found, pad) for g, found in by_geometry.items()}
        wholes[precision] = whole = fit_whole(of, prices, pad)
        uses = defaultdict(list)
        for s in of[0].sites:
            uses[s.weight].append(layer_price(s, prices[s.geometry], whole))
        table[precision] = {weight: mean(found) for weight, found in uses.items()}
    constant = min(w.constant for w in wholes.values())
    shared = {p: _spread(table[p], w.constant - constant, samples[0].sites) for p, w in wholes.items()}
    found = Prices(shared, dict.fromkeys(wholes, constant), lanes, len(samples) // len(rows), 0.0)
    errors = [abs(found.of_sites(s.sites, s.precision) / s.wall - 1) for s in samples]
    return replace(found, error=statistics.median(errors))


def _spread(prices: Mapping[str, Coefficients], ms: float, sites: Sequence[Site]) -> dict[str, Coefficients]:
    """Lay what calls in this precision take longer than in another on the layers, so that precisions can be mixed."""
    return {weight: replace(c, base=c.base + ms / len(sites)) for weight, c in prices.items()}


def _conditions(target: Target, batch: int, threads: int) -> dict[str, Any]:
    """What must be the same for a number to be taken over."""
    here = machine()
    runtime = RUNTIMES[target.runtime]
    return {
        "format": FORMAT,
        "cpu": here["cpu"],
        "features": here["features"],
        "threads": threads,
        "runtime": target.runtime,
        "version": runtime.version(),
        "target": target.name,
        "batch": batch,
    }


def _layer_name(geometry: str, precision: str) -> str:
    return f"layer {precision} {geometry}: "
