"""What a teacher gives a small network: python benchmarks/distillation.py   (an hour on one core)

The embedded teacher (ResNet-20 of width 32) teaches on Fashion-MNIST, each row from three seeds, which draw the training images
and the new weights, and at equal steps:

- students with less than a tenth of its multiply-accumulates, of its own family (width 8) and of another (depthwise), from
  labels alone, from each loss, and by the three steps (pre-train from the teacher without labels, fine-tune on labels);
- the teacher itself cut to a third, recovered with labels, with labels and teacher, with the teacher and no label;
- as a control the teacher itself, trained for the same further steps with labels.

That each loss is what torchdistill computes, where it has it, is in distill_losses.md. Accuracy is on the 10,000 test images.
It writes distillation.json and distillation.md; rows that are there are not run again.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quant_nets import Depthwise
from torch import nn
from torch.nn import functional as F

from penjing import distill
from penjing.data import FashionMNIST, fashion_batches, fashion_mnist
from penjing.distill import TeacherLoss
from penjing.files import read_json, whole_file, write_json
from penjing.graph import capture
from penjing.graph.taps import last_map
from penjing.measure import cores, machine, macs, top1
from penjing.prune import plan_channels, prune_channels, repair
from penjing.task import Task
from penjing.train import Training, fit
from penjing.zoo import fashion_resnet20, resnet20
from penjing.zoo.resnet import ResNet

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
BATCH, IMAGES, EPOCHS = 128, 16_000, 4
FINETUNE = 1  # of the epochs, in the three steps
STUDENT, AFTER = Training(lr=0.1), Training(lr=0.01)
EXAMPLE = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
Row = dict[str, Any]

STUDENTS: dict[str, Callable[[], nn.Module]] = {"ResNet-20, width 8": lambda: resnet20(width=8), "depthwise": Depthwise}
CE = distill.with_labels(F.cross_entropy)


def losses(student: nn.Module) -> dict[str, TeacherLoss]:
    """What is compared; those on features are added to ``kl``, as their papers do."""
    kl = distill.kl(4.0)
    found: dict[str, TeacherLoss] = {"dkd": distill.dkd(1.0, 2.0, 4.0)}
    if isinstance(student, ResNet):
        here, there = last_map(student, (EXAMPLE,)), last_map(fashion_resnet20(), (EXAMPLE,))
        found |= {
            "kl and labels": distill.weighted((0.9, kl), (0.1, CE)),
            "kl": kl,
            "standardized kl": distill.standardized_kl(2.0),
            "dist": distill.dist(),
            "kl and mimic": distill.weighted((1.0, kl), (1.0, distill.mimic(here, there))),
        }
    return found


def training_images(data: FashionMNIST, seed: int, *, augment: bool) -> Any:
    drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(100 + seed))[:IMAGES]
    return fashion_batches(data.train[drawn], BATCH, augment=augment)


def task_of(data: FashionMNIST, seed: int, *, augment: bool = True) -> Task:
    held = fashion_batches(data.test, 500)
    return Task(train=training_images(data, seed, augment=augment), search=held, confirm=held, metric=top1)


@torch.no_grad()
def accuracy(net: nn.Module, data: FashionMNIST) -> float:
    net = net.eval()
    return 100 * top1(net, fashion_batches(data.test, 500)).value


class Recalled(nn.Module):
    """The teacher, asked once of every batch, for all students: the same seed gives all the same batches."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        key = (tuple(x.shape), x.double().sum().item(), x.double().square().sum().item())
        if key not in SAID:
            SAID[key] = self.teacher(x)
        return SAID[key]


SAID: dict[tuple[Any, ...], torch.Tensor] = {}


def taught(
    make: Callable[[], nn.Module], data: FashionMNIST, loss: TeacherLoss | None, seed: int, settings: Training, epochs: int
) -> nn.Module:
    torch.manual_seed(seed)
    teacher = fashion_resnet20() if loss is not None else None
    if teacher is not None and loss is not None and not loss.taps:
        teacher = Recalled(teacher)
    return fit(make(), task_of(data, seed), epochs=epochs, teacher=teacher, loss=loss, settings=replace(settings, seed=seed))


def one(make: Callable[[], nn.Module], data: FashionMNIST, name: str, seed: int) -> Row:
    """A student by one loss, or by the three steps."""
    began = time.perf_counter()
    if name == "labels alone":
        net = taught(make, data, None, seed, STUDENT, EPOCHS)
    elif name == "three steps":
        first = taught(make, data, distill.kl(4.0), seed, STUDENT, EPOCHS - FINETUNE)
        net = taught(lambda: first, data, None, seed, AFTER, FINETUNE)
    else:
        torch.manual_seed(seed)
        net = taught(make, data, losses(make())[name], seed, STUDENT, EPOCHS)
    return {"accuracy": accuracy(net, data), "seconds": round(time.perf_counter() - began)}


def cut(data: FashionMNIST, seed: int) -> nn.Module:
    """The teacher at a third of its multiply-accumulates, refitted with 512 images without labels."""
    teacher = fashion_resnet20()
    drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:512]
    batches = [x for x, _ in fashion_batches(data.train[drawn], 128)]
    plan = plan_channels(teacher, EXAMPLE, macs=1 / 3, criterion="structured_obs", data=batches, round_to=1, cut_sums=False)
    return repair(prune_channels(teacher, plan, EXAMPLE), teacher, plan, EXAMPLE, batches, seed=seed)


CUT_LOSSES: dict[str, TeacherLoss | None] = {
    "labels alone": None,
    "kl and labels": distill.weighted((0.9, distill.kl(4.0)), (0.1, CE)),
    "kl, no labels": distill.kl(4.0),
}


def recovered(data: FashionMNIST, name: str, seed: int) -> Row:
    small = cut(data, seed)
    before = accuracy(small, data)
    net = taught(lambda: small, data, CUT_LOSSES[name], seed, AFTER, 1)
    return {"before": before, "accuracy": accuracy(net, data)}


def control(data: FashionMNIST, epochs: int, seed: int) -> Row:
    net = taught(fashion_resnet20, data, None, seed, AFTER, epochs)
    return {"before": accuracy(fashion_resnet20(), data), "accuracy": accuracy(net, data)}


def rows(data: FashionMNIST) -> dict[str, Callable[[], Row]]:
    """What is to be measured, seed by seed, so that what is there is balanced at any time."""
    found: dict[str, Callable[[], Row]] = {}
    for seed in SEEDS:
        for name in CUT_LOSSES:
            found[f"teacher, a third: {name}, seed {seed}"] = partial(recovered, data, name, seed)
        for student, make in STUDENTS.items():
            for name in ("labels alone", *losses(make()), "three steps"):
                found[f"{student}: {name}, seed {seed}"] = partial(one, make, data, name, seed)
        found[f"teacher: labels alone, 1 epoch, seed {seed}"] = partial(control, data, 1, seed)
    found[f"teacher: labels alone, {EPOCHS} epochs, seed 0"] = partial(control, data, EPOCHS, 0)
    # Students that train fast first, so that all their seeds are there soon.
    return dict(sorted(found.items(), key=lambda row: row[0].startswith(("depthwise", "teacher:"))))


def told(kept: dict[str, Any]) -> str:
    """The rows as Markdown: mean and half the range over the seeds."""
    teacher = kept["macs"]["teacher"]
    lines = [
        "# What a teacher gives",
        "",
        "Written by `python benchmarks/distillation.py`, whose docstring says how, from [its data](distillation.json). "
        f"Fashion-MNIST, {IMAGES:,} augmented training images, batches of {BATCH}; students {EPOCHS} epochs, cut teacher 1; "
        "10,000 test images; mean over the seeds ± half their range.",
        "",
        "| network | MACs of the teacher's | learns from | seeds | before, % | accuracy, % | against labels alone |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    names = dict.fromkeys(key.rpartition(", seed ")[0] for key in kept["rows"])
    values = {n: [r for k, r in kept["rows"].items() if k.rpartition(", seed ")[0] == n] for n in names}
    for name, these in sorted(values.items(), key=lambda item: item[0].partition(":")[0]):
        network, _, way = name.partition(": ")
        mean, spread = middle([r["accuracy"] for r in these])
        base = values.get(f"{network}: labels alone")
        gain = f"{mean - middle([r['accuracy'] for r in base])[0]:+.2f}" if base and base is not these else ""
        before = f"{statistics.mean(r['before'] for r in these):.2f}" if "before" in these[0] else ""
        share = f"{kept['macs'].get(network, teacher) / teacher:.3f}"
        lines.append(f"| {network} | {share} | {way} | {len(these)} | {before} | {mean:.2f}{spread} | {gain} |")
    m = kept["machine"]
    return "\n".join([*lines, "", f"On {m['cpu']}, {m['cores']} core(s); torch {m['torch']}."]) + "\n"


def middle(values: list[float]) -> tuple[float, str]:
    spread = f" ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
    return statistics.mean(values), spread


def sizes(data: FashionMNIST) -> dict[str, int]:
    nets = {"teacher": fashion_resnet20(), **{name: make() for name, make in STUDENTS.items()}}
    nets["teacher, a third"] = cut(data, 0)
    return {name: macs(capture(net.eval(), (EXAMPLE,))) for name, net in nets.items()}


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", type=Path, help="a folder with the IDX files of Fashion-MNIST")
    given = parser.parse_args(words)
    torch.set_num_threads(cores())
    data = fashion_mnist(given.fashion)
    path = HERE / "distillation.json"
    kept = read_json(path) if path.exists() else {"rows": {}}
    kept |= {"machine": machine(), "macs": sizes(data)}
    for key, run in rows(data).items():
        if key not in kept["rows"]:
            kept["rows"][key] = run()
            write_json(path, kept)
        print(key, kept["rows"][key], flush=True)
        with whole_file(HERE / "distillation.md") as part:
            part.write_text(told(kept), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
