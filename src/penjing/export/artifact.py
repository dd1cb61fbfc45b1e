"""A file that one runtime loads, and what can be asked of it: run it, compare it, see what really executes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penjing.errors import ExportError, first_line
from penjing.export import onnxruntime, openvino
from penjing.export.kernels import Kernel, left_in_float
from penjing.export.profiles import Profile, Spent, named
from penjing.files import digest
from penjing.graph import as_inputs
from penjing.measure import latency
from penjing.quant import target_named
from penjing.task import in_eval, samples_of

Arrays = list[np.ndarray]
Values = TypeVar("Values", Tensor, np.ndarray)
SAFE = 64  # 2 * 255 * 64 is below 2**15


class Runtime(Protocol):
    """What a runtime's file in this folder offers."""

    def load(self, path: Path, threads: int | None, precision: str | None) -> Callable[[Arrays], Arrays]:
        """A function from input arrays to output arrays; ``precision`` is ``"f32"`` or ``None``, the runtime's default."""

    def kernels(self, path: Path, shapes: Sequence[tuple[int, ...]], precision: str | None) -> list[Kernel]:
        """What runs, in order."""

    def profile(
        self, path: Path, arrays: Arrays, threads: int | None, precision: str | None, seconds: float
    ) -> Sequence[Spent]:
        """The time of each kernel that runs, over about ``seconds`` of calls."""

    def version(self) -> str:
        """The runtime's version."""


RUNTIMES: dict[str, Runtime] = {"onnxruntime": onnxruntime, "openvino": openvino}


@dataclass(frozen=True)
class Agreement:
    """How near the file's outputs are to the torch module's on the same inputs."""

    largest: float  # absolute error
    mean: float  # absolute error
    cosine: float  # of all outputs, as one vector
    argmax: float  # share of samples, or of their positions, whose largest output along dim 1 is the same
    samples: int


class Runner:
    """A loaded file: torch or numpy in, the same out; one output comes bare, several come as a tuple.

    A file of a fixed batch is called as often as it takes.
    """

    def __init__(self, call: Callable[[Arrays], Arrays], where: str, fixed: int | None = None) -> None:
        """Hold the function.

        Args:
            fixed: The batch that the file was made for; None where it takes any.
        """
        self._call = call
        self.where = where
        self.fixed = fixed

    def __call__(self, *inputs: Tensor | np.ndarray) -> Any:
        if not inputs:
            raise ExportError("the file is called without inputs; give what the network takes, one by one")
        outputs = self._in_parts(_arrays(inputs))
        if isinstance(inputs[0], Tensor):
            tensors = [torch.from_numpy(np.array(y)) for y in outputs]
            return tensors[0] if len(tensors) == 1 else tuple(tensors)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _in_parts(self, arrays: Arrays) -> Arrays:
        count, size = samples_of(arrays), self.fixed
        if size and (count % size or not count):
            raise ExportError(f"the file takes {size} samples at a time, and {count} are no multiple of that; give as many")
        first, *others = [self._call(few) for few in _in_parts(arrays, size)]
        return [np.concatenate(outputs) for outputs in zip(first, *others, strict=True)] if others else first


@dataclass(frozen=True)
class Artifact:
    """A file that one runtime loads.

    Attributes:
        inputs: The shape of each input it was made with; the batch is free when ``dynamic``.
        digest: SHA-256 of the file.
        reasons: ``{layer: why it was left in float}``, of the convolutions and linear layers that were, when a quantized
            network was written.
    """

    path: Path
    runtime: str
    inputs: tuple[tuple[int, ...], ...]
    dynamic: bool
    digest: str
    reasons: Mapping[str, str] = field(default_factory=dict)

    def on(self, runtime: str) -> "Artifact":
        """The same file for another runtime.

        Raises:
            RecipeError: There is none of that name.
        """
        return replace(self, runtime=target_named(runtime).runtime)

    def load(self, threads: int | None = None, precision: str | None = None) -> Runner:
        """Load the file into its runtime.

        Args:
            threads: How many to use; ``None`` for the runtime's choice.
            precision: ``"f32"``, or ``None`` for the runtime's default (which may be bfloat16 for what is not int8).

        Raises:
            ExportError: The file is missing, changed since it was made, or the runtime refuses it.
        """
        self._check()
        runtime = RUNTIMES[self.runtime]
        where = f"{self.runtime} {runtime.version()}, {threads or 'all'} threads"
        return Runner(runtime.load(self.path, threads, precision), where, None if self.dynamic else self._batch)

    def kernels(self, precision: str | None = None) -> list[Kernel]:
        """What the runtime really executes: for each layer the operation, its precision and what is fused into it.

        Args:
            precision: As it is loaded with; see ``load``.
        """
        self._check()
        found = named(self.path, RUNTIMES[self.runtime].kernels(self.path, self.inputs, precision))
        integers = _in_integers(self.path) if left_in_float(found) else frozenset()
        return [replace(k, reason=self._reason(k, integers)) if k.weighted and k.precision != "int8" else k for k in found]

    def _reason(self, kernel: Kernel, integers: frozenset[str]) -> str:
        """Why a layer runs in float: it was written so, or the runtime has its own ways."""
        names = {kernel.layer, *(name.partition("/")[0] for name in (kernel.layer, *kernel.fused))}
        written = [why for layer, why in self.reasons.items() if layer in names]
        if written:
            return written[0]
        if names & integers:
            return f"{self.runtime} runs it so; the file has integers there"
        return "the file has it in float"

    def profile(
        self, *inputs: Tensor | np.ndarray, threads: int | None = None, precision: str | None = None, seconds: float = 1.0
    ) -> Profile:
        """Where the time of a call goes, as the runtime tells it: half of ``seconds`` is timed, half is profiled.

        Of a file of a fixed batch, the call is one of that many.

        Raises:
            ExportError: See ``load``.
        """
        arrays = _arrays(inputs)
        if not self.dynamic:
            arrays = [a[: shape[0]] if shape else a for a, shape in zip(arrays, self.inputs, strict=True)]
        wall = latency(self.load(threads, precision), *arrays, seconds=seconds / 2)
        kernels = RUNTIMES[self.runtime].profile(self.path, arrays, threads, precision, seconds / 2)
        return Profile(wall, named(self.path, kernels))

    def agreement(self, module: nn.Module, batch: Tensor | Sequence[Tensor], precision: str | None = None) -> Agreement:
        """Compare the file, loaded with ``precision``, with the torch module it was made from, on a batch of inputs."""
        return agreements({"it": self.load(precision=precision)}, module, [as_inputs(batch)])["it"]

    def to_json(self) -> dict[str, Any]:
        """The artifact as JSON values."""
        return asdict(self) | {"path": str(self.path)}

    @property
    def _batch(self) -> int:
        return next((shape[0] for shape in self.inputs if shape), 1)

    def _check(self) -> None:
        if not self.path.is_file():
            raise ExportError(f"{self.path} is not there; export the network again")
        if digest(self.path) != self.digest:
            raise ExportError(f"{self.path} has changed since it was exported; export the network again")


def _in_integers(path: Path) -> frozenset[str]:
    """The nodes of a file that read integers alone, perhaps through what moves them."""
    import onnx

    graph, decoded = onnx.load(path, load_external_data=False).graph, set[str]()
    for n in graph.node:
        if n.op_type == "DequantizeLinear" or (n.op_type in ("Transpose", "Reshape") and n.input[0] in decoded):
            decoded.update(n.output)
    return frozenset(n.name for n in graph.node if len(n.input) > 1 and decoded.issuperset(n.input[:2]))


def may_overflow(path: Path) -> bool:
    """Whether a file has weights of 8 bits, pairs of whose products do not fit the 16 bits of processors without VNNI."""
    import onnx
    from onnx import numpy_helper

    weights = (t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1)
    return any(np.abs(numpy_helper.to_array(t).astype(np.int16)).max(initial=0) > SAFE for t in weights)


def fixed_batch(path: Path) -> int | None:
    """The batch that an ONNX file was made for; None where it takes any.

    Raises:
        ExportError: It is no ONNX file.
    """
    import onnx

    try:
        inputs = onnx.load(path, load_external_data=False).graph.input
    except Exception as e:  # of protobuf, which has none of its own for this
        raise ExportError(f"{path} cannot be read as ONNX: {first_line(e)}") from e
    dims = next((dims for i in inputs if (dims := i.type.tensor_type.shape.dim)), ())
    return int(dims[0].dim_value) or None if dims else None


def agreements(runs: Mapping[str, Runner], module: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Agreement]:
    """Compare what loaded files give for batches of inputs with what the torch module gives, which is left in its modes.

    Raises:
        ExportError: A file's outputs have other shapes than the module's.
    """
    sums = {name: _Sums() for name in runs}
    fixed = next(iter(runs.values())).fixed
    with in_eval(module):
        for inputs in batches:
            for few in _in_parts(inputs, fixed):
                with torch.no_grad():
                    expected = [y for y in tree_leaves(module(*few)) if isinstance(y, Tensor)]
                for name, run in runs.items():
                    sums[name].add(tree_leaves(run(*few)), expected, samples_of(few))
    return {name: s.agreement() for name, s in sums.items()}


def _arrays(inputs: Sequence[Tensor | np.ndarray]) -> Arrays:
    return [x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in inputs]


def _in_parts(inputs: Sequence[Values], size: int | None) -> Iterator[list[Values]]:
    """The samples, as many at a time as a network takes that was made for a fixed batch, with whatever else it reads."""
    count = samples_of(inputs)
    if size is None or size == count:
        yield list(inputs)
        return
    for i in range(0, count, size):
        yield [x[i : i + size] if x.ndim and len(x) == count else x for x in inputs]


@dataclass
class _Sums:
    """What an agreement is made of."""

    largest: float = 0.0
    error: float = 0.0
    values: int = 0
    products: tuple[float, float, float] = (0.0, 0.0, 0.0)
    same: float = 0.0
    samples: int = 0

    def add(self, found: Sequence[Tensor], expected: Sequence[Tensor], samples: int) -> None:
        if [y.shape for y in found] != [y.shape for y in expected]:
            given, wanted = ([tuple(y.shape) for y in ys] for ys in (found, expected))
            raise ExportError(f"the file gives outputs of shape {given} and the module {wanted}; it was made from another one")
        for a, b in zip(found, expected, strict=True):
            a, b = a.double(), b.detach().double()
            apart = (a - b).abs()
            self.largest = float(np.maximum(self.largest, float(apart.max())))  # not a number where one of them is not
            self.error, self.values = self.error + float(apart.sum()), self.values + apart.numel()
            dot, ours, theirs = self.products
            self.products = dot + float((a * b).sum()), ours + float(a.square().sum()), theirs + float(b.square().sum())
        a, b = (y.detach().reshape(samples, -1) if y.ndim < 2 else y.detach() for y in (found[0], expected[0]))
        self.same += samples * float((a.argmax(1) == b.argmax(1)).double().mean())
        self.samples += samples

    def agreement(self) -> Agreement:
        dot, ours, theirs = self.products
        cosine = dot / max((ours * theirs) ** 0.5, 1e-30)
        return Agreement(self.largest, self.error / max(self.values, 1), cosine, self.same / self.samples, self.samples)
