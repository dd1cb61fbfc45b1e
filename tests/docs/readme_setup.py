"""What the README's blocks take for granted: a network and data of the reader's own, here as small as can be."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import penjing as pj

SOON = pj.Settings(epochs=0, probes=0, seconds=0.02, samples=4, calibration=32, generalization=0, threads=1)


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Large(nn.Module):
    """With the names that the README uses of a teacher: ``features.12``, ``head``; wide enough to get 4 times faster."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        blocks = [Block(width) for _ in range(3)]
        self.features = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *blocks, *[nn.Identity() for _ in range(9)])
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Small(nn.Module):
    """With that of a student: ``layer3``."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.layer3 = nn.Conv2d(3, width, 3, padding=1), Block(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer3(self.stem(x)).mean((2, 3)))


def readme_names(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that stand for the reader's; the folder gets ``model.onnx``, and ``pj.compress`` finishes soon."""
    patch.setattr(pj, "compress", functools.partial(pj.compress, settings=SOON))
    patch.setattr(pj, "fastest_mix", functools.partial(pj.fastest_mix, settings=pj.MixSettings(seconds=0.02, placements=False)))
    torch.manual_seed(0)
    model, x = Large().eval(), torch.randn(32, 3, 16, 16)
    batches, example = [(x, model(x).argmax(1))], x[:1]  # it is right everywhere
    task = pj.Task(train=batches, search=batches, confirm=batches, metric=pj.measure.top1)
    pj.export(model, example, "model.onnx", target="onnxruntime")
    given: dict[str, Any] = {
        "pj": pj,
        "Path": Path,
        "model": model,
        "small": Small(),
        "task": task,
        "my_task": task,
        "example": example,
        "cross_entropy": cross_entropy,
    }
    return given | {"calibration": [x], "images": [x]}
