import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from penjing.data import CLASSES, fashion_batches, fashion_mnist
from penjing.data.fashion import MEAN, STD
from penjing.errors import DataError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def written(folder: Path, *, packed: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Four small IDX files; the images and labels of the one to train on."""
    random = np.random.default_rng(0)
    for name, n in (("t10k", 2), ("train", 3)):
        images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, n, dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
            path = folder / f"{name}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return images, labels


@pytest.mark.parametrize("packed", [True, False])
def test_files_are_read_as_they_were_written(tmp_path: Path, packed: bool) -> None:
    images, labels = written(tmp_path, packed=packed)
    train, test = fashion_mnist(tmp_path)
    assert (len(train), len(test)) == (3, 2)
    assert torch.equal(train.images[:, 0], torch.from_numpy(images))
    assert train.labels.tolist() == labels.tolist()
    assert train.labels.dtype == torch.int64


def test_batches_are_normalized(tmp_path: Path) -> None:
    images, labels = written(tmp_path)
    (x, y), *rest = fashion_batches(fashion_mnist(tmp_path).train, 2)
    assert len(rest) == 1
    np.testing.assert_allclose(x[:, 0].double().numpy(), (images[:2] / 255 - MEAN) / STD, atol=1e-5)
    assert y.tolist() == labels[:2].tolist()
    assert len(CLASSES) == 10


def test_missing_files_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images.*dataset-fashion-mnist"):
        fashion_mnist(tmp_path)


def header(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


def flipped_inside(content: bytes) -> bytes:
    return content[:14] + bytes([content[14] ^ 0xFF, content[15] ^ 0xFF]) + content[16:]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (f"{IMAGES}.gz", lambda content: content[: len(content) // 2]),
        (f"{IMAGES}.gz", flipped_inside),
        (f"{IMAGES}.gz", lambda content: content[:-8] + bytes(8)),
        (f"{IMAGES}.gz", lambda _: b"not gzip"),
        (f"{IMAGES}.gz", lambda _: b""),
        (IMAGES, lambda content: content[:-1]),
        (IMAGES, lambda content: content + b"x"),
        (IMAGES, lambda content: header(0x801) + content[4:]),
        (IMAGES, lambda content: content[:16]),
        (IMAGES, lambda content: content[:9]),
        (IMAGES, lambda _: b""),
        (LABELS, lambda _: header(0x801, 2) + bytes(2)),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    written(tmp_path, packed=name.endswith(".gz"))
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"fetch Fashion-MNIST again|give one label an image"):
        fashion_mnist(tmp_path)
