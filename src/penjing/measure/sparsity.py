"""How sparse a network is, and what that is worth: a smaller file once compressed, and no time."""

import lzma
from dataclasses import dataclass

import numpy as np
from torch import nn

from penjing.score.layer_weights import layer_weights

NO_FASTER = (
    "Neither ONNX Runtime nor OpenVINO computes sparse convolutions faster than dense ones: "
    "what is gained is bytes, and no latency."
)


@dataclass(frozen=True)
class SparsityReport:
    """The zeros of a network.

    Attributes:
        layers: By the name of its weight, the share of each layer's weights that is not zero.
        density: Of all these layers together.
        dense_bytes: All parameters as float32.
        compressed_bytes: The same bytes after real compression: see ``sparsity``.
    """

    layers: dict[str, float]
    density: float
    dense_bytes: int
    compressed_bytes: int

    def __str__(self) -> str:
        lines = [
            f"{self.density:.2%} of the weights of {len(self.layers)} layers are not zero",
            f"{self.dense_bytes:,} bytes as float32, {self.compressed_bytes:,} after lzma "
            f"({self.dense_bytes / self.compressed_bytes:.1f}x smaller)",
            NO_FASTER,
        ]
        return "\n".join([*lines, *(f"  {density:8.2%} of {name}" for name, density in self.layers.items())])


def sparsity(model: nn.Module) -> SparsityReport:
    """Count the exact zeros of a model's convolutions and linear layers, and compress its parameters.

    The parameters are compressed with lzma from the standard library at its highest setting: first the bits that say which
    are not zero, then those numbers as float32, their bytes sorted by place so that exponents stand together.

    Raises:
        ModelError: The model has no such layers.
    """
    held = dict(model.named_parameters())
    weights = {w.name: held[w.name].detach().cpu() for w in layer_weights(model)}
    counts = {name: int(w.count_nonzero()) for name, w in weights.items()}
    packed = b"".join(_packed(p.detach().cpu().float().numpy()) for p in held.values())
    return SparsityReport(
        layers={name: count / weights[name].numel() for name, count in counts.items()},
        density=sum(counts.values()) / sum(w.numel() for w in weights.values()),
        dense_bytes=4 * sum(p.numel() for p in held.values()),
        compressed_bytes=len(lzma.compress(packed, preset=9 | lzma.PRESET_EXTREME)),
    )


def _packed(values: np.ndarray) -> bytes:
    """Where numbers are not zero, as bits; then those numbers, first bytes first."""
    there = values.ravel() != 0
    kept = values.ravel()[there].astype("<f4")
    sorted_bytes: bytes = kept.view(np.uint8).reshape(-1, 4).T.tobytes()
    return np.packbits(there).tobytes() + sorted_bytes
