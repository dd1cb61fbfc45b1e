"""Light of 1 to 3 counts a pixel beside particles of up to 3,000 in the frames of a detector; a U-Net that finds both.

The network reads raw counts, without a logarithm before it. One int8 scale for the input, as wide as its range, makes nearly
all of the light zero; a narrower one cuts the particles. bfloat16, with a step for every size, does neither.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.errors import DataError
from penjing.task import Batches, Run, Score, Task, as_tuple

SIZE = 64  # pixels of a side of a frame
STRUCK = 8  # pixels of it that a particle strikes
CLOUDS = 6  # at most
THOUSAND = 1000.0  # counts in one unit of the second target


class UNet(nn.Module):
    """``(N, 1, H, W) -> (N, 2, H, W)``, sides divisible by 8 (Ronneberger et al. 2015, arXiv:1505.04597)."""

    def __init__(self, *, width: int = 16, levels: int = 4) -> None:
        super().__init__()
        widths = [width << i for i in range(levels)]
        self.down = nn.ModuleList(_twice(a, b) for a, b in zip([1, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.merge = nn.ModuleList(_twice(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for i, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for up, merge, skip in zip(self.up, self.merge, kept[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        out: Tensor = self.head(x)
        return out


def _twice(inputs: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, channels):
        layers += [nn.Conv2d(width, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)


def unet() -> UNet:
    """The U-Net that is trained on ``hits``, untrained."""
    return UNet()


def hits(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames of a photon-counting detector and what is in them: faint extended light, and rare particles.

    A frame counts photons, Poisson: of a background, one a pixel, and of three to six faint clouds. Eight of its 4,096 pixels
    are struck by a particle besides, which leaves 100 to 3,000 counts there, as often from 100 to 200 as from 1,000 to
    2,000. The clouds are differences of 1 to 3 counts: one scale of 255 steps for all of the input has 12 counts a step.

    Returns:
        Counts, float32 ``(n, 1, 64, 64)``; and ``(n, 2, 64, 64)``: the mean counts of the clouds, and those of the
        particles in thousands.
    """
    generator = torch.Generator().manual_seed(seed)
    faint = _clouds(n, generator)
    places = torch.rand(n, SIZE**2, generator=generator).topk(STRUCK).indices
    struck = torch.zeros(n, SIZE**2).scatter_(1, places, 1).view(n, SIZE, SIZE)
    energy = 100 * 30 ** torch.rand(n, SIZE, SIZE, generator=generator)  # log-uniform
    particles = torch.poisson(energy, generator) * struck
    counts = torch.poisson(1 + faint, generator) + particles
    return counts[:, None], torch.stack([faint, particles / THOUSAND], 1)


def _clouds(n: int, generator: torch.Generator) -> Tensor:
    """Three to six elliptical Gaussians of 1 to 3 counts at their center, ``(n, 64, 64)``."""

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, CLOUDS, 1, 1, generator=generator)

    x, y = torch.meshgrid(torch.arange(float(SIZE)), torch.arange(float(SIZE)), indexing="xy")
    dx, dy, angle = x - drawn(0, SIZE), y - drawn(0, SIZE), drawn(0, torch.pi)
    along, across = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    height = drawn(1, 3) * (torch.arange(CLOUDS).view(1, -1, 1, 1) < 3 + (drawn(0, 4)[:, :1].floor()))
    long, short = drawn(4, 12), drawn(2, 4)
    return (height * torch.exp(-0.5 * ((along / long) ** 2 + (across / short) ** 2))).sum(1)


def recovered(run: Run, batches: Batches) -> Score:
    """How much of a frame is recovered: R2 of the clouds or R2 of the particles, whichever is less, and at least 0.

    The value is the mean over frames.
    """
    worse: list[np.ndarray] = []
    with torch.no_grad():
        for inputs, target in batches:
            output = torch.as_tensor(run(*as_tuple(inputs))).double().flatten(2)
            wanted = target.double().flatten(2)
            error, spread = (wanted - output).square().sum(2), (wanted - wanted.mean(2, keepdim=True)).square().sum(2)
            worse.append((1 - error / spread.clamp_min(1e-12)).clamp_min(0).amin(1).numpy())
    if not worse:
        raise DataError("there is no batch to measure on; give at least one (inputs, target) pair")
    each = np.concatenate(worse)
    return Score(float(each.mean()), len(each), each)


def score(run: Run, batches: Batches) -> float:
    """The value of ``recovered``."""
    return recovered(run, batches).value


def both(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of the clouds, and absolute error of the particles, which are too far apart to be squared."""
    light, particles = (output - target).unbind(1)
    return light.square().mean() + 10 * particles.abs().mean()


@dataclass
class Frames:
    """Batches of ``hits`` that nobody has seen before, in every epoch others."""

    batches: int
    batch_size: int = 16
    epoch: int = 0

    def __len__(self) -> int:
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the frames of the next walk; ``fit`` calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(self.batches):
            yield hits(self.batch_size, 1000 + self.epoch * self.batches + i)


def hits_task() -> Task:
    """3,200 new frames an epoch to learn from; 200 others to choose on, 500 to confirm on."""
    return Task(
        train=Frames(200),
        search=[hits(25, seed) for seed in range(8)],
        confirm=[hits(25, seed) for seed in range(100, 120)],
        metric=recovered,
        loss=both,
    )
