"""The textbook chapter's three methods on its own network, put right: python examples/textbook.py   (under 10 s on one core)

Ten kinds of stripes stand for the data. docs/textbook.md says what the chapter prints, and what had to be changed.
"""

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj


def build(width: int = 64) -> nn.Sequential:
    """The chapter's network, 3 -> 64 -> 128 -> 10 on 32x32 images; its student has width 32."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * width * 8 * 8, 10),
    )  # fmt: skip


def stripes(seed: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of 32 noisy images ``(3, 32, 32)``; the angle of the stripes, in steps of 18 degrees, is the class."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    labels = torch.randint(10, (count, 32), generator=g)
    angle, phase = (labels * math.pi / 10)[..., None, None], 2 * math.pi * torch.rand(count, 32, 1, 1, generator=g)
    waves = torch.sin((x * angle.cos() + y * angle.sin()) * 2 * math.pi / 5 + phase)
    color = torch.rand(count, 32, 3, 1, 1, generator=g)
    images = waves[:, :, None] * color + 0.5 * torch.randn(count, 32, 3, 32, 32, generator=g)
    return list(zip(images, labels, strict=True))


def soft_cross_entropy(lesson: pj.distill.Lesson) -> Tensor:
    """Cross-entropy whose labels are the teacher's probabilities: the pre-training step learns from them alone."""
    return F.cross_entropy(lesson.output, lesson.taught.softmax(1))


def main() -> None:
    torch.manual_seed(0)
    train = stripes(0, 12)
    task = pj.Task(train=train, search=stripes(1, 2), confirm=stripes(2, 8), metric=pj.measure.top1)
    images = [x for x, _ in train[:4]]
    rows: list[tuple[str, nn.Module, str]] = []

    # 3.3: train the large, pre-train the small from it, fine-tune the small; cross-entropy every time.
    steps = pj.Lessons(
        teacher_epochs=3, pretrain_epochs=3, finetune_epochs=1, loss=soft_cross_entropy,
        teacher=pj.Training(lr=0.03), pretrain=pj.Training(lr=0.03), finetune=pj.Training(lr=0.005),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        taught = pj.teach(build(), build(32), task, Path(folder), lessons=steps)
    rows.append(("the network", taught.teacher, ""))
    rows.append(("3.3 its student", taught.student, "half as wide"))

    # 3.1: half of the weights stay, trained by clipped gradients.
    sparse = pj.sparsify_textbook(taught.teacher, task, 0.5, steps=12, lr=0.5, epsilon=0.1)
    rows.append(("3.1 clipped gradients", sparse, f"{pj.measure.sparsity(sparse).density:.0%} of the weights are not zero"))

    # 3.2: integers around the mean, for weights, for what layers read, and for the outputs.
    scheme = pj.Scheme(weights="mean_centered", values="mean_centered", outputs="mean_centered")
    whole = pj.quantize(taught.teacher, images[0][:1], images, scheme=scheme)
    alpha = float(whole.get_buffer("grids.of_linear.scale"))
    rows.append(("3.2 mean-centered int8", whole, f"alpha of the outputs is {alpha:.3f}"))

    for name, net, note in rows:
        accuracy = pj.measure.top1(net, task.confirm).value
        print(f"{name:24}{pj.measure.parameters(net):>10,} parameters {accuracy:7.1%}  {note}")


if __name__ == "__main__":
    main()
