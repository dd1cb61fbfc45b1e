"""What a runtime executes, as data."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """One operation as the runtime runs it."""

    layer: str  # the runtime's name for it
    op: str  # what it computes, in the runtime's words
    precision: str  # "int8", "bf16", "f32", ...: what its arithmetic reads
    fused: tuple[str, ...]  # operations that run inside it
    weighted: bool  # a convolution or a linear layer
    reason: str = ""  # why it does not run in int8, where it is weighted and does not


def left_in_float(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Convolutions and linear layers that do not run in int8."""
    return [k for k in kernels if k.weighted and k.precision != "int8"]
