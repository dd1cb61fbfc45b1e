"""The embedded sample of Fashion-MNIST, so that everything can be tried without fetching anything."""

from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch

from penjing.data.images import LabelledImages


class FashionSample(NamedTuple):
    """4,000 of the official training images; of the official test images 1,000 to search on and 2,000 others to confirm on."""

    train: LabelledImages
    search: LabelledImages
    confirm: LabelledImages


def fashion_sample() -> FashionSample:
    """The sample that ``recipes/fashion_sample.py`` drew."""
    with files("penjing.data").joinpath("fashion_sample.npz").open("rb") as f:
        held = np.load(f, allow_pickle=False)
        images, labels = torch.from_numpy(held["images"]), torch.from_numpy(held["labels"].astype(np.int64))
    whole = LabelledImages(images, labels)
    return FashionSample(whole[:4000], whole[4000:5000], whole[5000:])
