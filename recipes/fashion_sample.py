"""Draw the sample of Fashion-MNIST that the package embeds: python recipes/fashion_sample.py [FOLDER OF IDX FILES]

Fashion-MNIST is Copyright 2017 Zalando SE, under the Expat (MIT) licence, which is written beside the sample.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from penjing.data import fashion_mnist
from penjing.files import whole_file

SHIPPED = Path(__file__).parent.parent / "src/penjing/data/fashion_sample.npz"


def main(folder: str | None) -> None:
    data = fashion_mnist(folder)
    generator = torch.Generator().manual_seed(0)
    train = data.train[torch.randperm(len(data.train), generator=generator)[:4000]]
    test = data.test[torch.randperm(len(data.test), generator=generator)[:3000]]
    images = torch.cat([train.images, test.images]).numpy()
    labels = torch.cat([train.labels, test.labels]).numpy().astype(np.uint8)
    with whole_file(SHIPPED) as part, part.open("wb") as f:
        np.savez_compressed(f, images=images, labels=labels)
    print(f"{SHIPPED}: {len(labels)} images, {SHIPPED.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
