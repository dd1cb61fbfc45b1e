"""Train the demo's teacher, ResNet-20 of width 32, on all of Fashion-MNIST and ship it in 16-bit safetensors.

    python recipes/fashion_teacher.py runs/teacher      # about 40 minutes on 2 cores; killed, it goes on where it was

It writes src/penjing/zoo/fashion_resnet20.safetensors and, beside this file, fashion_teacher.json with the accuracy
on the 10,000 test images, of the 16-bit weights that are shipped.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from penjing.data import fashion_batches, fashion_mnist
from penjing.files import write_json, write_tensors
from penjing.task import Task
from penjing.train import Epoch, Training, fit
from penjing.zoo import resnet20

EPOCHS, HELD_OUT = 20, 2000
HERE = Path(__file__).parent
SHIPPED = HERE.parent / "src/penjing/zoo/fashion_resnet20.safetensors"


def top1(model: torch.nn.Module, batches: object) -> float:
    right = total = 0
    with torch.no_grad():
        for x, y in batches:
            right += int((model(x).argmax(1) == y).sum())
            total += len(y)
    return right / total


def main(folder: Path) -> None:
    torch.manual_seed(0)
    data = fashion_mnist()
    train, held = data.train[:-HELD_OUT], data.train[-HELD_OUT:]  # the test images choose nothing
    task = Task(
        train=fashion_batches(train, 128, augment=True),
        search=fashion_batches(held, 250),
        confirm=fashion_batches(data.test, 250),
        metric=top1,
        loss=partial(F.cross_entropy, label_smoothing=0.05),
    )
    settings = Training(lr=0.1, warmup=0.2, weight_decay=5e-4, precision="bf16-mixed")
    curve: list[Epoch] = []

    def tell(e: Epoch) -> None:
        curve.append(e)
        print(
            f"{time.strftime('%H:%M:%S')} epoch {e.epoch}/{EPOCHS} loss {e.loss:.4f} lr {e.lr:.4f} {e.seconds:.0f} s",
            flush=True,
        )

    model = fit(resnet20(), task, epochs=EPOCHS, settings=settings, checkpoint=folder / "last.safetensors", on_epoch=tell)
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in half.items()})
    result = {
        "test_top1": top1(model, task.confirm),
        "held_out_top1": top1(model, task.search),
        "epochs": EPOCHS,
        "train_images": len(train),
        "loss": [round(e.loss, 4) for e in curve],
    }
    print(json.dumps(result))
    write_tensors(SHIPPED, half)
    write_json(HERE / "fashion_teacher.json", result)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
