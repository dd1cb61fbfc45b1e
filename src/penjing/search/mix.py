"""Integers where they are fast and exact enough, floats elsewhere: by measurement, on the file, in the runtime."""

import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, fx, nn

from penjing.errors import BudgetError, RecipeError
from penjing.export import Artifact, Kernel, Runner, export
from penjing.files import PART, check_writable, whole_file
from penjing.graph import as_inputs, repeated
from penjing.measure import Measurement
from penjing.progress import Progress, silent
from penjing.quant import Placement, Quantizer, Target, joined, sensitivity, variants
from penjing.search.damage import few
from penjing.search.timer import Contender, Timer

SAMPLES = 16  # that sensitivity is judged by
FASTER = 0.97  # share of the simpler one's time that another must come below to be taken: less is noise
SOONER = 0.985  # share of the default's time that another placement must come below to be taken, at the median of three looks
PLAINLY = 0.6  # so much of float's time is below it at any moment
FLOAT = "the runtime's float"
INTEGERS = "integers"
BOLD = "integers also where they are noisy"
Evaluate = Callable[[Runner], float]


@dataclass(frozen=True)
class Tried:
    """One way to run the network.

    Attributes:
        precision: What to load the file with: ``None`` for the runtime's default, or ``"f32"``.
        floats: Layers that were returned to float for accuracy's sake, most sensitive first.
        score: What ``evaluate`` gave.
        latency: One call's time; ``None`` where the score is too low to matter.
    """

    name: str
    artifact: Artifact
    precision: str | None
    floats: tuple[str, ...]
    score: float
    latency: Measurement | None = None


@dataclass(frozen=True)
class Mix:
    """What came out.

    Attributes:
        module: The network that the file was made from; in fake-quantized float where it has integers.
        tried: All candidates, with the chosen one.
        placement: Which of the target's placements the integers have.
        sensitivity: ``{layer: dB}`` of signal over noise at the output with that layer alone in integers; empty where
            integers everywhere were good enough.
    """

    module: nn.Module = field(repr=False)
    chosen: Tried
    tried: tuple[Tried, ...]
    placement: str = "default"
    sensitivity: Mapping[str, float] = field(default_factory=dict)

    def kernels(self) -> list[Kernel]:
        """What the runtime executes, with the reason of every layer in float."""
        return self.chosen.artifact.kernels(self.chosen.precision)


@dataclass(frozen=True, kw_only=True)
class MixSettings:
    """How long to look."""

    threads: int | None = None  # of the runtime; None for its choice
    batch: int = 1  # the batch size that latency is judged at
    seconds: float = 1.0  # to time each contender
    placements: bool = True  # also try the target's other placements

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 < self.seconds < math.inf or (self.threads is not None and self.threads < 1):
            raise RecipeError(f"{self}: give a batch and threads of at least 1, and seconds above 0")


def fastest_mix(  # noqa: PLR0913 - the whole of what can be asked for, by name
    quantizer: Quantizer,
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    path: str | Path,
    *,
    evaluate: Evaluate,
    least: float = -math.inf,
    drop: float = math.inf,
    floats: Sequence[str] = (),
    settings: MixSettings | None = None,
    timer: Timer | None = None,
    progress: Progress = silent,
) -> Mix:
    """The fastest of: integers, integers with the most sensitive layers in float, float as the runtime likes it, fp32.

    Where ``Scheme.noise`` leaves layers in float, integers there too are tried beside, and taken where they hold and save time.

    A candidate holds when ``evaluate`` gives its file at least ``least``, and no more than ``drop`` less than the file in fp32.
    Layers go back to float in the order of their sensitivity, and their number is found by bisection, so about
    ``log2(layers)`` files are scored.

    Args:
        quantizer: Made from ``model``.
        path: The ONNX file to write.
        floats: Layers that somebody else would leave in float; that is tried beside integers everywhere.
        timer: What times the files; by default one that remembers nothing.

    Raises:
        BudgetError: Not even fp32 reaches ``least``.
        ExportError: The network cannot be written.
    """
    settings, inputs = settings or MixSettings(), as_inputs(example)
    if timer is None:
        timer = Timer(repeated(inputs, settings.batch), threads=settings.threads, seconds=settings.seconds, progress=progress)
    where = Path(path)
    check_writable(where)
    where.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=where.parent, prefix=f".{where.stem}.", suffix=PART) as parts:
        asked = _Asked(evaluate, least, drop, tuple(floats))
        return _Search(quantizer, model, inputs, where, Path(parts), asked, settings, timer, progress).mix()


@dataclass(frozen=True)
class _Asked:
    """What candidates must be, and which layers somebody would leave in float."""

    evaluate: Evaluate
    least: float
    drop: float
    floats: tuple[str, ...]


class _Search:
    def __init__(
        self,
        quantizer: Quantizer,
        model: nn.Module,
        example: tuple[Tensor, ...],
        path: Path,
        parts: Path,
        asked: _Asked,
        settings: MixSettings,
        timer: Timer,
        progress: Progress,
    ) -> None:
        self.quantizer, self.model, self.example, self.path, self.parts = quantizer, model, example, path, parts
        self.asked, self.least, self.settings, self.progress = asked, asked.least, settings, progress
        self.count = 0
        self.target, self.timer = quantizer.target, timer
        self.noise: dict[str, float] = {}
        self.placement = "default"
        self.modules: dict[str, nn.Module] = {}

    def mix(self) -> Mix:
        whole = export(self.model, self.example, self._part("whole"), target=self.target.name)
        self.modules[FLOAT] = self.quantizer.plain()
        folded = export(self.modules[FLOAT], self.example, self._part("float"), target=self.target.name)
        plain = [self._tried("fp32", whole, "f32"), self._tried(FLOAT, folded, None)]
        if math.isfinite(self.asked.drop):
            self.least = max(self.least, plain[0].score - self.asked.drop)
        if not plain[0].score >= self.least:  # NaN is no score
            raise BudgetError(f"the network in fp32 scores {plain[0].score:.6g}, below {self.least:.6g}; ask for less")
        if self.settings.placements:
            self.target = self._fastest_placement()
        tried = [*plain, *self._integers()]
        timed = self._timings([t for t in tried if t.score >= self.least])
        chosen = self._sure(_worth_their_noise(timed))
        shown = [next((t for t in timed if t.name == old.name), old) for old in tried]
        chosen = replace(chosen, artifact=self._kept(chosen, tried))
        return Mix(self.modules.get(chosen.name, self.model), chosen, tuple(shown), self.placement, self.noise)

    def _sure(self, timed: Sequence[Tried]) -> Tried:
        """The fastest; integers only where they are so by more than what may be noise."""
        plain = min((t for t in timed if not self._has_integers(t)), key=_time)
        best = min(timed, key=_time)
        if _time(best) < FASTER * _time(plain) and (not self._has_integers(best) or self._stands(best, plain)):
            return best
        return plain

    def _stands(self, best: Tried, plain: Tried) -> bool:
        """Whether integers are faster at another moment too, where they are not so by far: one moment may have misled."""
        if _time(best) < PLAINLY * _time(plain):
            return True
        again = self.timer({t.name: (t.artifact, t.precision) for t in (best, plain)}, " forms again")
        return again[best.name].value < FASTER * again[plain.name].value

    def _has_integers(self, tried: Tried) -> bool:
        return isinstance(self.modules.get(tried.name), fx.GraphModule) and tried.name != FLOAT

    def _part(self, name: str) -> Path:
        self.count += 1
        return self.parts / f"{self.count}.{name}.onnx"

    def _kept(self, chosen: Tried, tried: Sequence[Tried]) -> Artifact:
        with whole_file(self.path) as part:
            part.write_bytes(chosen.artifact.path.read_bytes())
        reasons = dict(chosen.artifact.reasons)
        if chosen.name in [t.name for t in tried[:2]]:  # a file without integers
            held = any(t.score >= self.least for t in tried[2:])
            reasons = dict.fromkeys(reasons, "float was faster" if held else "integers cost too much accuracy")
        return replace(chosen.artifact, path=self.path, reasons=reasons)

    def _tried(self, name: str, artifact: Artifact, precision: str | None, floats: Sequence[str] = ()) -> Tried:
        score = self.asked.evaluate(artifact.load(self.settings.threads, precision))
        return Tried(name, artifact, precision, tuple(floats), score)

    def _fastest_placement(self) -> Target:
        """The profile whose file is fastest, of single changes and then of those together that helped; all are as accurate."""
        singles = variants(self.target)
        shares = self._shares_of({"default": self.target} | singles, " alone")
        helped = sorted((name for name in shares if shares[name] < SOONER), key=lambda name: shares[name])
        together = {
            " and ".join(helped[:n]): joined(self.target, [singles[name] for name in helped[:n]])
            for n in range(1, len(helped) + 1)
        }
        if not together:
            return self.target
        shares = self._shares_of({"default": self.target} | together, " together")
        best = min(shares, key=lambda name: shares[name])
        if shares[best] >= SOONER:
            return self.target
        self.placement = best
        return together[best]

    def _shares_of(self, profiles: Mapping[str, Target], moment: str) -> dict[str, float]:
        """One call's time with each profile, as a share of the default's; of profiles that place alike the first alone.

        What is compared was timed at one moment, none of it looked up from another.
        """
        placed: list[Placement] = []
        runs: dict[str, Contender] = {}
        with self.progress("placements", len(profiles)) as advance:
            for name, profile in profiles.items():
                placement = self.quantizer.placement(target=profile)
                if placement not in placed:
                    placed.append(placement)
                    module = self.quantizer.module(target=profile)
                    artifact = export(module, self.example, self._part("placement"), target=self.target.name)
                    runs[name] = artifact, None
                advance(name)
        shares = _shares(self.timer(runs, moment))
        if near := [name for name in runs if shares[name] < SOONER]:  # a file's time differs a little from one load to the next
            beside = {name: runs[name] for name in ("default", *near)}
            looks = [shares, *(_shares(self.timer(beside, moment + look)) for look in (" again", " once more"))]
            shares |= {name: statistics.median(look[name] for look in looks) for name in near}
        return shares

    def _integers(self) -> list[Tried]:
        """Integers everywhere, and where that is not good enough, the mixes on the way to few layers in float."""
        tried = [self._mixed(())]
        if not tried[0].score >= self.least and self.target is not self.quantizer.target:  # another placement, other rounding
            self.target, self.placement = self.quantizer.target, "default"
            tried = [self._mixed(())]
        if self.quantizer.noisy:
            tried.append(self._mixed((), BOLD, self.quantizer.bold()))
        if self.asked.floats:
            tried.append(self._mixed(self.asked.floats, f"the {len(self.asked.floats)} chosen layers in float"))
        if any(t.score >= self.least for t in tried):
            return tried
        module = self.modules[tried[0].name]
        assert isinstance(module, fx.GraphModule)
        self.noise = sensitivity(module, self._few(), progress=self.progress)
        order = list(self.noise)
        low, high = 0, len(order)  # with ``low`` in float it does not hold; with ``high`` it may
        while high - low > 1:
            middle = (low + high) // 2
            tried.append(self._mixed(order[:middle]))
            low, high = (low, middle) if tried[-1].score >= self.least else (middle, high)
        return tried

    def _mixed(self, floats: Sequence[str], name: str = "", quantizer: Quantizer | None = None) -> Tried:
        name = name or (f"{len(floats)} layers back in float" if floats else INTEGERS)
        module = (quantizer or self.quantizer).module(floats, target=self.target)
        self.modules[name] = module
        artifact = export(module, self.example, self._part("mix"), target=self.target.name)
        return self._tried(name, artifact, None, floats)

    def _few(self) -> list[tuple[Tensor, ...]]:
        return few(self.quantizer.inputs(), SAMPLES)

    def _timings(self, tried: Sequence[Tried]) -> list[Tried]:
        times = self.timer({t.name: (t.artifact, t.precision) for t in tried}, " forms")
        return [replace(t, latency=times[t.name]) for t in tried]


def _shares(times: Mapping[str, Measurement]) -> dict[str, float]:
    return {name: m.value / times["default"].value for name, m in times.items()}


def _worth_their_noise(timed: Sequence[Tried]) -> list[Tried]:
    """Without integers where they are noisy, if they save no time there that is more than what may be noise of clocks."""
    quiet = min((_time(t) for t in timed if t.name == INTEGERS), default=float("inf"))
    return [t for t in timed if t.name != BOLD or _time(t) < FASTER * quiet]


def _time(tried: Tried) -> float:
    return tried.latency.value if tried.latency else float("inf")
