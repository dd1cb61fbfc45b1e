"""The module that a network read from ONNX is: layers under the names of the file's weights, and a list of steps."""

import itertools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from penjing.errors import ModelError
from penjing.graph.onnx.layers import Layer
from penjing.graph.onnx.ops import Operation
from penjing.graph.onnx.values import Call, Value, as_tensor


@dataclass(frozen=True)
class Ref:
    """A value that is computed, by its name in the file."""

    name: str


@dataclass(frozen=True)
class Held:
    """A parameter, buffer or layer of the network, by its path."""

    path: str


def _found(network: nn.Module, values: Mapping[str, Value], given: Any) -> Value:
    if isinstance(given, Ref):
        return values[given.name]
    return operator.attrgetter(given.path)(network) if isinstance(given, Held) else given


class Step(Protocol):
    """Something that computes values from values."""

    def run(self, network: nn.Module, values: dict[str, Value]) -> None:
        """Put what it computes into ``values``."""

    def reads(self) -> Iterator[str]:
        """The names of the values that it needs."""


@dataclass(frozen=True)
class Operate:
    """One node: an operation on values, weights and constants."""

    call: Call
    operation: Operation
    given: tuple[Any, ...]
    outputs: tuple[str, ...]

    def run(self, network: nn.Module, values: dict[str, Value]) -> None:
        """Put the outputs of the node into ``values``."""
        try:
            result = self.operation(self.call, *(_found(network, values, g) for g in self.given))
        except Exception as e:
            e.add_note(f"in the ONNX node {self.call.name!r} ({self.call.op})")
            raise
        values.update(zip(self.outputs, self.call.results(result), strict=False))

    def reads(self) -> Iterator[str]:
        """The names of the values that the node needs."""
        return (g.name for g in self.given if isinstance(g, Ref))


@dataclass(frozen=True)
class Branch:
    """One side of an ``If``: steps, and what comes out of them."""

    steps: tuple[Step, ...]
    results: tuple[Any, ...]


@dataclass(frozen=True)
class Choose:
    """``If``: on sizes, which are known when the network is captured, never on values."""

    call: Call
    condition: Any
    branches: tuple[Branch, Branch]
    outputs: tuple[str, ...]

    def run(self, network: nn.Module, values: dict[str, Value]) -> None:
        """Put the results of one branch into ``values``."""
        condition = _found(network, values, self.condition)
        if isinstance(condition, Tensor):
            raise self.call.refuse("its condition depends on values that the network computes; export one of the branches")
        branch, inner = self.branches[0 if condition else 1], dict(values)
        for step in branch.steps:
            step.run(network, inner)
        values.update(zip(self.outputs, (_found(network, inner, r) for r in branch.results), strict=True))

    def reads(self) -> Iterator[str]:
        """The names of the values that the condition and both branches need."""
        for branch in self.branches:
            for step in branch.steps:
                yield from step.reads()
            yield from (r.name for r in branch.results if isinstance(r, Ref))
        if isinstance(self.condition, Ref):
            yield self.condition.name


def layer_step(call: Call, layer: Layer, path: str, x: Any, output: str) -> Operate:
    """The step that runs a layer of the network, with what comes before and after it."""
    before, after = layer.before, layer.after

    def run(call: Call, module: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = module(x if before is None else before(call, x))
        return y if after is None else after(call, y, x)

    return Operate(call, run, (Held(path), x), (output,))


class OnnxNetwork(nn.Module):
    """A network that was read from an ONNX file: its inputs in the file's order, one output or a tuple of them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self._source = source
        self._steps: tuple[tuple[Step, tuple[str, ...]], ...] = ()
        self._inputs: tuple[str, ...] = ()
        self._outputs: tuple[Any, ...] = ()

    def compute(self, steps: Sequence[Step], inputs: Sequence[str], outputs: Sequence[Any]) -> None:
        """Set what the network computes."""
        kept = {o.name for o in outputs if isinstance(o, Ref)}
        last = {name: i for i, step in enumerate(steps) for name in step.reads() if name not in kept}
        gone: dict[int, list[str]] = {}
        for name, i in last.items():
            gone.setdefault(i, []).append(name)
        self._steps = tuple((step, tuple(gone.get(i, ()))) for i, step in enumerate(steps))
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)

    def forward(self, *inputs: Tensor) -> Any:
        """Run the steps in order; a value is let go after its last use.

        Raises:
            ModelError: It is given more or fewer inputs than it takes.
        """
        if len(inputs) != len(self._inputs):
            names = ", ".join(self._inputs)
            raise ModelError(f"{self._source} takes {len(self._inputs)} inputs ({names}), and was given {len(inputs)}")
        values: dict[str, Value] = dict(zip(self._inputs, inputs, strict=True))
        for step, gone in self._steps:
            step.run(self, values)
            for name in gone:
                values.pop(name, None)
        outputs = tuple(as_tensor(_found(self, values, o)) for o in self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def extra_repr(self) -> str:
        """What is shown beside the layers."""
        return f"{self._source}: {', '.join(self._inputs)}; {len(self._steps)} steps"


class Shelf:
    """Puts layers, parameters and buffers into a network, under names near those of the file."""

    def __init__(self, network: OnnxNetwork) -> None:
        self.network = network
        self.parameters: dict[int, tuple[Tensor, nn.Parameter]] = {}  # with the tensor, so that its id stays its own
        self.held: dict[int, tuple[Tensor, Held]] = {}

    def constant(self, value: Tensor, name: str, *, learned: bool) -> Held:
        """A tensor that operations read; the same one is kept once."""
        if id(value) not in self.held:
            owner, leaf, path = self._place(name)
            if learned and value.is_floating_point() and value.numel() > 1:
                owner.register_parameter(leaf, self.parameter(value))
            else:
                owner.register_buffer(leaf, value)
            self.held[id(value)] = (value, Held(path))
        return self.held[id(value)][1]

    def layer(self, layer: Layer, name: str) -> str:
        """A layer with its weights, which stay shared where the file shares them; gives its path."""
        owner, leaf, path = self._place(name)
        for key, value in layer.weights.items():
            if key in layer.module._parameters:
                layer.module._parameters[key] = None if value is None else self.parameter(value)
            else:
                layer.module._buffers[key] = None if value is None else value.clone()
        owner.add_module(leaf, layer.module)
        return path

    def parameter(self, value: Tensor) -> nn.Parameter:
        """The parameter of a tensor, one of each."""
        if id(value) not in self.parameters:
            self.parameters[id(value)] = (value, nn.Parameter(value.contiguous()))
        return self.parameters[id(value)][1]

    def _place(self, name: str) -> tuple[nn.Module, str, str]:
        """The module that is to hold something, under which name, and the path to it."""
        wanted = clean(name)
        for path in itertools.chain([wanted], _others(wanted.replace(".", "_"))):
            owner: nn.Module | None = self.network
            *between, leaf = path.split(".")
            for part in between:
                owner = self._inner(owner, part) if owner is not None else None
            if owner is not None and not hasattr(owner, leaf):
                return owner, leaf, path
        raise AssertionError("names without end were tried")

    def _inner(self, owner: nn.Module, part: str) -> nn.Module | None:
        inner = owner._modules.get(part)
        if inner is None and not hasattr(owner, part):
            inner = nn.Module()
            owner.add_module(part, inner)
        return inner if type(inner) is nn.Module else None


def _others(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{i}" for i in itertools.count(2))


def clean(name: str) -> str:
    """A name of the file as a path of modules: dots and slashes part it, what Python names cannot hold is ``_``."""
    parts = (re.sub(r"\W+", "_", part, flags=re.ASCII).strip("_") for part in re.split(r"[./]+", name))
    return ".".join(part for part in parts if part) or "value"
