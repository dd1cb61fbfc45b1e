"""What flows through a network that was read from ONNX: tensors, and sizes as plain numbers, so that the batch stays free.

ONNX computes shapes with tensors (``Shape``, ``Slice``, ``Concat``, ``Reshape``). Here integers of rank 0 and 1 are Python
numbers and lists of them, symbolic ones included, which ``torch.export`` follows where it would lose a tensor's values.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from penjing.errors import ModelError

Value = Any  # a Tensor, a number, a list of numbers, or None for an input that is left out

DTYPES = {  # the codes of TensorProto.DataType
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One node of the file, without its inputs.

    Attributes:
        op: Its operator, as ONNX names it.
        name: Its name in the file, or that of its first output.
        opset: The version of the operators.
        outputs: How many outputs are used.
        attributes: As plain numbers, lists, strings and tensors.
        written: How many outputs the file gives it, used or not.
    """

    op: str
    name: str
    opset: int
    outputs: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)
    written: int = 1

    def results(self, result: Value) -> list[Value]:
        """What an operation gave, output by output."""
        return list(result) if self.outputs > 1 or self.op == "Split" else [result]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or ``default`` where the file does not give it."""
        return self.attributes.get(name, default)

    def refuse(self, why: str) -> ModelError:
        """The error that says what cannot be read, and where."""
        return ModelError(f"the ONNX node {self.name!r} ({self.op}) cannot be read: {why}")

    def numbers(self, value: Value, what: str) -> list[Any]:
        """A list of numbers that must be known without computing tensors.

        Raises:
            ModelError: It is a tensor.
        """
        if isinstance(value, Tensor):
            raise self.refuse(f"its {what} depend on values that the network computes; export it with constant {what}")
        return list(value) if isinstance(value, Sequence) else [value]


def is_numbers(value: Value) -> bool:
    """Whether a value is a number or a list of them."""
    return value is not None and not isinstance(value, Tensor)


def plain(value: Tensor) -> Value:
    """A constant as it flows: short lists of integers and single floats as numbers, everything else as it is."""
    whole = not value.is_floating_point()
    if value.ndim == 0 or (whole and value.ndim == 1 and value.numel() <= 1024):
        return value.tolist()
    return value


def as_tensor(value: Value) -> Tensor:
    """A value as a tensor: int64, float32 or bool where it is numbers."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list):
        if any(isinstance(v, torch.SymInt | torch.SymFloat | torch.SymBool) for v in value):
            return torch.stack([as_tensor(v) for v in value])
        return torch.tensor(value, dtype=None if value else torch.int64)
    if isinstance(value, torch.SymInt):
        return torch.scalar_tensor(value, dtype=torch.int64)  # type: ignore[arg-type]  # it takes symbolic sizes
    return torch.tensor(value)


def tensors(*values: Value) -> tuple[Tensor, ...]:
    """Values as tensors of one device, that of the first which is one already."""
    device = next((v.device for v in values if isinstance(v, Tensor)), None)
    return tuple(v if isinstance(v, Tensor) else as_tensor(v).to(device) for v in values)


def each(function: Callable[..., Any], *values: Value) -> Value:
    """A function of numbers over numbers and lists of them, single ones repeated."""
    lists = [v for v in values if isinstance(v, list)]
    if not lists:
        return function(*values)
    length = max(len(v) for v in lists)
    rows = [v * (length // len(v)) if isinstance(v, list) and v else [v] * length for v in values]
    return [function(*row) for row in zip(*rows, strict=True)]


def quotient(a: Any, b: Any) -> Any:
    """``a / b`` as ONNX divides: integers towards zero. Symbolic ones are sizes, which are not negative."""
    if isinstance(a, float | torch.SymFloat) or isinstance(b, float | torch.SymFloat):
        return a / b
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return a // b


def product(sizes: Sequence[Any]) -> Any:
    """Of sizes, symbolic ones too; 1 of none."""
    return math.prod(sizes)
