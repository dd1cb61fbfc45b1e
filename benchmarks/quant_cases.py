"""The trained networks that benchmarks/quant_accuracy.py quantizes, with what they are calibrated on and how they are judged.

P1 to P4 are real ones (P2 to P4 by ``realdata.py``); the others are those of quant_nets.py, as far as they have been trained.
Every case is calibrated with 256 samples that it is not judged on: the first training images of Fashion-MNIST; for the denoiser
patches of other photographs than those it is judged on, with noise; for the text lines other lines; for the U-Net other frames.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import quant_nets
import torch
from quant_hits import hits, recovered
from torch import Tensor, nn

from penjing import load_onnx
from penjing.data import fashion_batches, fashion_mnist
from penjing.errors import DataError
from penjing.files import read_tensors, write_tensors
from penjing.measure import top1
from penjing.task import Batches, Metric, Run, Score, as_tuple
from penjing.zoo import fashion_resnet20

SAMPLES, BATCH = 256, 32
PATCH = 72  # pixels of a side
PIXELS = 96  # of a side, that the MobileNet sees
LINES = 1000  # each in both directions
FRAMES = 500
CALIBRATION_PHOTOS = (
    *("hubble_deep_field.jpg", "retina.jpg", "camera.png", "coins.png", "brick.png", "grass.png", "gravel.png", "moon.png"),
)
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A network and how it is judged.

    Attributes:
        build: The trained network, in eval mode.
        calibration: Samples without labels, in batches.
        test: ``(inputs, target)`` batches.
        metric: Higher is better; a value for every sample.
        unit: Of what the metric loses, and how many of it are 1.
        classes: Whether the largest output is an answer, so that answers that change can be counted.
    """

    build: Callable[[], nn.Module]
    calibration: Callable[[], list[Inputs]]
    test: Callable[[], Batches]
    metric: Metric = top1
    unit: tuple[str, float] = ("points", 100.0)
    classes: bool = True


@dataclass(frozen=True)
class Made:
    """Batches that are made anew in every walk, so that they need not fit in memory."""

    make: Callable[[int], tuple[Any, Tensor]]  # number of the batch -> (inputs, target)
    batches: int

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        return (self.make(i) for i in range(self.batches))


def cases(folder: Path | None, kept: Path) -> dict[str, Case]:
    """All that can be had here.

    Args:
        folder: Where ``realdata.py`` is; without it P2 to P4 are left out.
        kept: A folder for what takes long to make.
    """
    found = {"P1 ResNet-20": _fashion(fashion_resnet20)}
    if folder is not None:
        real = realdata(folder)
        found |= {
            "P2 MobileNetV2": _mobilenet(real, kept),
            "P3 FFDNet": Case(real.ffdnet, partial(_patches, real), partial(_noisy, real), psnr, ("dB", 1.0), classes=False),
            "P4 text lines": Case(
                partial(load_onnx, real.ppocr_path("cls")), partial(_lines, real), partial(_judged_lines, real)
            ),
        }
    for name in ("depthwise", "norm-last", "squeeze-excite", "depthwise-relu"):
        if (quant_nets.FOLDER / f"{name}.safetensors").exists():
            found[name] = _fashion(partial(_trained, name))
            if name.startswith("depthwise"):
                found[f"{name}, uneven"] = _fashion(partial(_uneven, name))
    if (quant_nets.FOLDER / "unet.safetensors").exists():
        test = Made(lambda i: hits(25, 100 + i), FRAMES // 25)
        found["U-Net"] = Case(
            partial(_trained, "unet"), _frames, lambda: test, recovered, ("points of R2", 100.0), classes=False
        )
    return found


def realdata(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("realdata", folder / "realdata.py")
    assert spec is not None and spec.loader is not None
    real = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(real)
    return real


# Fashion-MNIST.


def _fashion(build: Callable[[], nn.Module]) -> Case:
    return Case(build, _clothes, lambda: fashion_batches(fashion_mnist().test, 250))


def _clothes() -> list[Inputs]:
    return [as_tuple(x) for x, _ in fashion_batches(fashion_mnist().train[:SAMPLES], BATCH)]


def _trained(name: str) -> nn.Module:
    return quant_nets.trained(name).model


def _uneven(name: str) -> nn.Module:
    model = _trained(name)
    assert isinstance(model, quant_nets.Depthwise)
    return quant_nets.uneven(model, 0)


def _mobilenet(real: Any, kept: Path) -> Case:
    """The network with a linear head that is fitted once and kept."""

    def build() -> nn.Module:
        path = kept / "mobilenet.safetensors"
        if not path.exists():
            write_tensors(path, real.mobilenetv2_fashion().state_dict(), {})
        model = nn.Sequential(real.mobilenetv2(), nn.Linear(1280, 10))
        model.load_state_dict(read_tensors(path)[0])
        return model.eval()

    data = fashion_mnist()

    def part(images: Tensor, labels: Tensor, i: int) -> tuple[Tensor, Tensor]:
        chosen = slice(50 * i, 50 * (i + 1))
        return real.imagenet_prep(images[chosen], PIXELS), labels[chosen]

    def calibration() -> list[Inputs]:
        return [(x,) for x in real.imagenet_prep(data.train.images[:SAMPLES], PIXELS).split(BATCH)]

    test = Made(partial(part, data.test.images, data.test.labels), len(data.test.labels) // 50)
    return Case(build, calibration, lambda: test)


# Others.


def psnr(run: Run, batches: Batches) -> Score:
    """Peak signal to noise of images from 0 to 1, dB; the value is the mean over images."""
    each: list[Tensor] = []
    with torch.no_grad():
        for inputs, clean in batches:
            output = torch.as_tensor(run(*as_tuple(inputs))).clamp(0, 1)
            each.append(-10 * (output - clean).square().flatten(1).mean(1).log10())
    if not each:
        raise DataError("there is no batch to measure on; give at least one (inputs, target) pair")
    values = torch.cat(each).double().numpy()
    return Score(float(values.mean()), len(values), values)


def _noisy(real: Any) -> list[tuple[Inputs, Tensor]]:
    """The photographs of ``realdata.denoise_psnr``, with its noise, in tiles: a file has one size."""
    generator, found = torch.Generator().manual_seed(0), list[tuple[Inputs, Tensor]]()
    for _, image in real.photos():
        clean = torch.from_numpy(image.transpose(2, 0, 1).copy())
        noisy = clean + real.SIGMA * torch.randn(clean.shape, generator=generator)
        tiles = _tiles(noisy)
        found.append(((tiles, torch.full((len(tiles), 1, 1, 1), real.SIGMA)), _tiles(clean)))
    return found


def _tiles(image: Tensor) -> Tensor:
    """``(3, H, W) -> (tiles, 3, PATCH, PATCH)``; what is left at the right and below is left out."""
    parts = image.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    return parts.permute(1, 2, 0, 3, 4).reshape(-1, 3, PATCH, PATCH).contiguous()


def _patches(real: Any) -> list[Inputs]:
    from PIL import Image  # type: ignore[import-not-found, unused-ignore]

    generator, found = torch.Generator().manual_seed(1), []
    folder = real.wheel("scikit-image") / "skimage" / "data"
    photos = [np.asarray(Image.open(folder / name).convert("RGB"), np.float32) / 255 for name in CALIBRATION_PHOTOS]
    for i in range(SAMPLES):
        photo = photos[i % len(photos)]
        top, left = (int(torch.randint(size - PATCH, (), generator=generator)) for size in photo.shape[:2])
        found.append(torch.from_numpy(photo[top : top + PATCH, left : left + PATCH].transpose(2, 0, 1).copy()))
    clean = torch.stack(found)
    noisy = clean + real.SIGMA * torch.randn(clean.shape, generator=generator)
    return [(part, torch.full((len(part), 1, 1, 1), real.SIGMA)) for part in noisy.split(BATCH)]


def _lines(real: Any) -> list[Inputs]:
    images, _ = real.textlines_cls(SAMPLES // 2, seed=1)
    return [(part,) for part in images.split(BATCH)]


def _judged_lines(real: Any) -> list[tuple[Tensor, Tensor]]:
    images, labels = real.textlines_cls(LINES)
    return list(zip(images.split(50), labels.split(50), strict=True))


def _frames() -> list[Inputs]:
    return [(hits(BATCH, 50 + i)[0],) for i in range(SAMPLES // BATCH)]
