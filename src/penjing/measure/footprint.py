"""What a network costs without running it: parameters, multiply-accumulates, and the sizes of its layers."""

from torch import nn

from penjing.graph.layers import Layer as Layer
from penjing.graph.layers import layers as layers
from penjing.graph.layers import macs as macs


def parameters(model: nn.Module) -> int:
    """How many numbers are trained, shared ones once."""
    return sum(p.numel() for p in model.parameters())
