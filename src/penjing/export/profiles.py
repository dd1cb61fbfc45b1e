"""Where the time of a call goes: kernel by kernel, as the runtime itself tells it."""

import statistics
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from penjing.export.names import LAYERS
from penjing.measure import Measurement

FUSED = "fused "  # what ONNX Runtime puts before the name of a layer that an activation runs in
MEMORY = 16  # values back from a kernel's output that its layer is looked for among
FEWEST, MOST = 10, 2000  # calls that are profiled


@dataclass(frozen=True)
class Spent:
    """The time of one kernel."""

    layer: str  # the network's name for it where it is one of its layers, else the runtime's
    op: str  # what it computes, in the runtime's words
    weighted: bool  # a convolution or a linear layer
    ms: float  # in one call


@dataclass(frozen=True)
class Profile:
    """The time of a call and what it was spent on.

    Attributes:
        wall: A whole call, without profiling.
        kernels: In the order they run. Profiling itself takes time, most of it where kernels are short.
    """

    wall: Measurement
    kernels: tuple[Spent, ...]

    @property
    def layers(self) -> dict[str, float]:
        """``{layer: ms}`` of the convolutions and linear layers."""
        found: dict[str, float] = {}
        for k in self.kernels:
            if k.weighted:
                found[k.layer] = found.get(k.layer, 0.0) + k.ms
        return found

    @property
    def rest(self) -> dict[str, float]:
        """``{operation: ms}`` of everything else, slowest first."""
        found: dict[str, float] = {}
        for k in self.kernels:
            if not k.weighted:
                found[k.op] = found.get(k.op, 0.0) + k.ms
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def call_for(call: Callable[[], object], seconds: float) -> list[float]:
    """Call for about so many seconds, ten times at least; how long each call took, in seconds."""
    walls: list[float] = []
    began = time.perf_counter()
    while len(walls) < FEWEST or (time.perf_counter() - began < seconds and len(walls) < MOST):
        start = time.perf_counter()
        call()
        walls.append(time.perf_counter() - start)
    return walls


def calm(walls: list[float]) -> float:
    """What a mean over these calls is to be multiplied by, so that calls that something else disturbed do not count."""
    return statistics.median(walls) / statistics.fmean(walls)


class _Runs(Protocol):
    """What a runtime runs: a ``Spent`` or a ``Kernel``."""

    @property
    def layer(self) -> str: ...
    @property
    def weighted(self) -> bool: ...


Running = TypeVar("Running", bound=_Runs)


def named(path: Path, kernels: Sequence[Running]) -> tuple[Running, ...]:
    """Give weighted kernels the names that their layers have in the file.

    A runtime calls a kernel like the layer, with something before or behind its name, or like an operation or a value that
    lies a few operations further on.
    """
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    made = {n.name: n for n in nodes} | {o: n for n in nodes for o in n.output}
    layers = {n.name for n in nodes if n.op_type in LAYERS}
    own = [_layer(k.layer, layers) or _layer(k.layer.removeprefix(FUSED), layers) for k in kernels]
    free = layers - set(own)
    found = []
    for k, layer in zip(kernels, own, strict=True):
        if not k.weighted:
            layer = None
        elif layer is None:
            layer = _source(k.layer.removeprefix(FUSED).partition("/")[0], made, free)
        free.discard(layer or "")
        found.append(replace(k, layer=layer or k.layer))  # type: ignore[type-var]
    return tuple(found)


def _layer(name: str, layers: Set[str]) -> str | None:
    """The layer that a name is that of, with something of the runtime's behind a slash."""
    return max((layer for layer in layers if name == layer or name.startswith(f"{layer}/")), key=len, default=None)


def _source(value: str, made: dict[str, Any], free: set[str]) -> str | None:
    """The nearest layer before a value that no kernel has been found for."""
    seen = [value]
    for at in seen:
        node = made.get(at)
        if node is None or len(seen) > MEMORY:
            continue
        if node.name in free:
            return str(node.name)
        if node.op_type not in LAYERS:
            seen += [i for i in node.input if i in made and i not in seen]
    return None
