"""What could be cut from a model, what could not, and why; nothing is changed."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from penjing.graph import Channels, as_inputs, capture, check_weights, find_channels
from penjing.measure.footprint import Layer, layers, parameters


@dataclass(frozen=True)
class Inspection:
    """A reading of a model.

    Attributes:
        channels: Groups of channels that live or die together, and the dimensions that must stay, with the reason.
        layers: Convolutions and linear layers, in the order they run.
        dynamic: Whether any batch size will do.
    """

    channels: Channels
    layers: tuple[Layer, ...]
    parameters: int
    macs: int
    dynamic: bool

    def __str__(self) -> str:
        lines = [f"{self.parameters:,} parameters, {self.macs:,} multiply-accumulates a sample, {len(self.layers)} layers"]
        lines += [
            f"  {g.channels:5d} channels of {g.name}, with {len(g.axes) - 1} more places{', summed' if g.summed else ''}"
            for g in self.channels.groups
        ]
        lines += [f"  fixed: {name} dim {dim}: {why}" for (name, dim), why in sorted(self.channels.fixed.items())]
        return "\n".join(lines)


def inspect(model: nn.Module, example: Tensor | Sequence[Tensor]) -> Inspection:
    """Read a model.

    Args:
        example: Inputs as the model takes them; only their shapes matter.

    Raises:
        ModelError: The model cannot be read, or its weights are not finite.
    """
    check_weights(model)
    graph = capture(model, as_inputs(example))
    found = tuple(layers(graph))
    return Inspection(find_channels(graph), found, parameters(model), sum(x.macs for x in found), graph.dynamic)
