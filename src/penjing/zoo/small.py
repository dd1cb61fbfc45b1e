"""Small networks, one for each way in which channels are tied together."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def two_convolutions(*, width: int = 64, channels: int = 3, classes: int = 10) -> nn.Sequential:
    """The textbook's example: two convolutions and a linear head, ``(N, channels, 32, 32) -> (N, classes)``.

    A flattened 8x8 map goes into the head, so that a channel takes 64 columns of the head's weight with it.
    """
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Flatten(),
        nn.Linear(2 * width * 64, classes),
    )


class SqueezeExcite(nn.Module):
    """Channels weighed by a gate that sees them all (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, gate, narrow, add (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.widen = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6())
        self.filter = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()
        )
        self.gate = SqueezeExcite(hidden, hidden // 4)
        self.narrow = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.narrow(self.gate(self.filter(self.widen(x))))
        return out


class MobileNet(nn.Module):
    """Depthwise convolutions, squeeze-excite and residuals: ``(N, channels, H, W) -> (N, classes)``."""

    def __init__(self, *, width: int = 16, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.Hardswish())
        self.blocks = nn.Sequential(InvertedResidual(width, 4 * width), InvertedResidual(width, 4 * width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return out


class DenseNet(nn.Module):
    """Every layer reads all that came before it (arXiv:1608.06993): ``(N, channels, H, W) -> (N, classes)``."""

    def __init__(self, *, growth: int = 16, layers: int = 3, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, growth, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(growth * (i + 1)) for i in range(layers))
        self.convs = nn.ModuleList(nn.Conv2d(growth * (i + 1), growth, 3, padding=1) for i in range(layers))
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(growth * (layers + 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.pool(self.stem(x))
        for norm, conv in zip(self.norms, self.convs, strict=True):
            seen = torch.cat([seen, conv(F.relu(norm(seen)))], dim=1)
        out: Tensor = self.head(F.adaptive_avg_pool2d(F.relu(seen), 1).flatten(1))
        return out
