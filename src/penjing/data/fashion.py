"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747; Expat licence): 28x28 grey images of ten kinds of clothing."""

import gzip
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from penjing.data.images import ImageBatches, LabelledImages
from penjing.errors import DataError

MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images, on a scale of 0 to 1
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist puts it


class FashionMNIST(NamedTuple):
    """60,000 images to train on and 10,000 to test on."""

    train: LabelledImages
    test: LabelledImages


def fashion_mnist(folder: str | Path | None = None) -> FashionMNIST:
    """The full data set, from the four IDX files (gzipped or not) in ``folder``, or from where Debian puts them.

    Raises:
        DataError: The files are not there or are damaged.
    """
    root = Path(folder) if folder is not None else DEBIAN
    return FashionMNIST(_split(root, "train"), _split(root, "t10k"))


def fashion_batches(data: LabelledImages, batch_size: int, *, augment: bool = False, seed: int = 0) -> ImageBatches:
    """Batches of Fashion-MNIST as the demo networks want them."""
    return ImageBatches(data, batch_size, mean=MEAN, std=STD, augment=augment, seed=seed)


def _split(root: Path, name: str) -> LabelledImages:
    images = _idx(root, f"{name}-images-idx3-ubyte", 3)
    labels = _idx(root, f"{name}-labels-idx1-ubyte", 1)
    return LabelledImages(torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)))


def _idx(root: Path, name: str, ndim: int) -> np.ndarray:
    """Read one IDX file: a magic number, the sizes of its ``ndim`` dimensions as big-endian words, then the bytes."""
    path = next((p for p in (root / f"{name}.gz", root / name) if p.is_file()), None)
    if path is None:
        raise DataError(
            f"Fashion-MNIST is not in {root} ({name}[.gz] is missing); install Debian's package dataset-fashion-mnist, "
            "or give the folder that holds the four IDX files"
        )
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = struct.unpack_from(f">{ndim + 1}I", raw)
    except (OSError, EOFError, zlib.error, struct.error) as e:
        raise DataError(f"{path} is damaged ({e}); fetch Fashion-MNIST again") from e
    body = np.frombuffer(raw, np.uint8, offset=4 * (ndim + 1))
    if magic != 0x800 + ndim or body.size != np.prod(shape):
        raise DataError(f"{path} is not an IDX file of {ndim} dimensions, or is cut short; fetch Fashion-MNIST again")
    return body.reshape(shape).copy()
