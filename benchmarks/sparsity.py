"""Measure what sparsity costs and brings: python benchmarks/sparsity.py [--folder runs/sparsity] [--epochs 2] [--full]

On the embedded sample, from the trained ResNet-20: criteria without training; the textbook's method beside magnitude, with
equal steps; then time and bytes of the dense and the sparse file (about a quarter of an hour on 2 cores). With ``--full``,
besides: all of Fashion-MNIST, density 10 % reached while training, beside the dense net trained for the same steps (another
25 minutes). Every number is kept in the folder as soon as it is there, and training goes on from its last epoch, so that a run
that was killed can be repeated. It writes benchmarks/sparsity.json and the tables in benchmarks/sparsity.md.
"""

import argparse
import json
import lzma
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penjing.data import fashion_batches, fashion_mnist, fashion_sample
from penjing.export import RUNTIMES, export
from penjing.files import digest, read_json, write_json
from penjing.measure import compare, cores, machine, top1
from penjing.measure.sparsity import sparsity
from penjing.prune.sparsify import sparsify
from penjing.prune.textbook import sparsify_textbook
from penjing.quant import quantize
from penjing.task import Task
from penjing.train import Training, fit
from penjing.train.sparse import GradualMagnitude
from penjing.zoo import fashion_resnet20

ROOT = Path(__file__).parent
TEACHER = ROOT.parent / "src/penjing/zoo/fashion_resnet20.safetensors"
ONE_SHOT = (0.5, 0.2, 0.1)
TRAINED = (0.5, 0.1)
LAMP = ("magnitude", "snip", "taylor", "movement", "random", "obs")
CUTS = (*((c, "lamp") for c in LAMP), ("magnitude", "layer"))
SETTINGS = Training(lr=0.02, mixup=0.3)
RATES = ((0.05, 0.1), (0.5, 0.1), (0.5, 0.01), (5.0, 0.01))  # learning rate and epsilon, chosen on the search split
FULL_EPOCHS, HELD_OUT = 3, 2000
FULL = Training(lr=0.05)


@contextmanager
def shown(label: str, total: int) -> Iterator[Callable[[str], None]]:
    """Progress as lines, one in ten seconds at most."""
    done, told = 0, time.monotonic()

    def advance(note: str) -> None:
        nonlocal done, told
        done += 1
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{time.strftime('%H:%M:%S')}   {label} {done}/{total}  {note}", file=sys.stderr, flush=True)

    yield advance


class Kept:
    """Results by name, written as soon as they are there; what is there is not measured again."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.held: dict[str, Any] = read_json(path) if path.is_file() else {"about": about}
        if self.held["about"] != about:
            sys.exit(f"{path} is of another run, {self.held['about']}, not {about}; delete it or give another --folder")

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        if name not in self.held:
            began = time.perf_counter()
            value = measure()
            self.held[name] = {"value": value, "seconds": round(time.perf_counter() - began, 1)}
            write_json(self.path, self.held)
        print(f"{time.strftime('%H:%M:%S')} {name}: {self.held[name]['value']}", flush=True)
        return self.held[name]["value"]


def sample_task(images: int, *, search: bool = False) -> Task:
    """The embedded sample, at most so many images of each part; ``confirm`` holds those to measure on."""
    data = fashion_sample()
    return Task(
        train=fashion_batches(data.train[:images], 64, augment=True),
        search=fashion_batches(data.search[:images], 250),
        confirm=fashion_batches((data.search if search else data.confirm)[:images], 250),
        metric=top1,
    )


def accuracy(net: nn.Module, task: Task) -> float:
    return top1(net, task.confirm).value


def without_training(kept: Kept, teacher: nn.Module, images: int) -> None:
    """Every criterion at several densities."""
    task = sample_task(images)
    plain = list(fashion_batches(fashion_sample().train[: min(512, images)], 64))
    for density in ONE_SHOT:
        for criterion, scope in CUTS:
            cut = partial(sparsify, teacher, density, criterion=criterion, scope=scope, data=plain)
            kept(f"one-shot {density} {criterion} {scope}", lambda cut=cut: before_and_after(cut(), plain, task))


def before_and_after(net: nn.Module, batches: list[Any], task: Task) -> list[float]:
    """Accuracy as it is, and with the statistics of the norms taken anew."""
    before = accuracy(net, task)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over the batches
            module.train()
    with torch.no_grad():
        for inputs, _ in batches:
            net(inputs)
    return [before, accuracy(net.eval(), task)]


def with_training(kept: Kept, teacher: nn.Module, epochs: int, images: int) -> None:
    """The textbook's method, magnitude at once and then training, magnitude while training: as many steps of as many images."""
    task, tuning = sample_task(images), sample_task(images, search=True)
    steps = epochs * len(task.train)  # type: ignore[arg-type]
    tuned: dict[tuple[float, float], float] = {}
    for lr, epsilon in RATES:
        cut = partial(sparsify_textbook, teacher, tuning, 0.1, steps=steps, lr=lr, epsilon=epsilon, progress=shown)
        tuned[lr, epsilon] = kept(f"textbook tuning lr {lr} epsilon {epsilon}", lambda cut=cut: accuracy(cut(), tuning))
    lr, epsilon = max(tuned, key=lambda k: tuned[k])
    train = partial(fit, task=task, epochs=epochs, settings=SETTINGS, progress=shown)
    kept("trained 1.0 dense", lambda: accuracy(train(teacher), task))
    for density in TRAINED:
        textbook = partial(sparsify_textbook, teacher, task, density, steps=steps, lr=lr, epsilon=epsilon, progress=shown)
        kept(f"trained {density} textbook", lambda cut=textbook: accuracy(cut(), task))
        kept(f"trained {density} at once", lambda d=density: accuracy(train(sparsify(teacher, d)), task))
        way = GradualMagnitude(density=density)
        kept(f"trained {density} gradual", lambda way=way: accuracy(train(teacher, sparsity=way), task))


def files(kept: Kept, teacher: nn.Module, folder: Path) -> None:
    """Time and bytes of dense and sparse, in float and in int8."""
    data = fashion_sample()
    batch = next(iter(fashion_batches(data.confirm, 32)))[0]
    x, calibration = batch[:1], [inputs for inputs, _ in fashion_batches(data.train[:256], 64)]
    sparse = sparsify(teacher, 0.1)
    nets = {
        "dense": teacher,
        "sparse": sparse,
        "dense, int8": quantize(teacher, x, calibration),
        "sparse, int8": quantize(sparse, x, calibration),
    }
    made = {name: export(net, x, folder / f"{name.replace(', ', '-')}.onnx") for name, net in nets.items()}
    for name, artifact in made.items():
        raw = artifact.path.read_bytes()
        kept(f"bytes {name}", lambda raw=raw: [len(raw), len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))])
    kept("report", lambda: {k: v for k, v in asdict(sparsity(sparse)).items() if k != "layers"})
    for runtime in RUNTIMES:
        for inputs in (x, batch):
            for kind, precision in ((("dense", "sparse"), "f32"), (("dense, int8", "sparse, int8"), None)):
                runs = {n: made[n].on(runtime).load(cores(), precision) for n in kind}
                kept(
                    f"latency {runtime}, batch {len(inputs)}{', int8' if precision is None else ''}",
                    lambda runs=runs, inputs=inputs: [
                        m.to_json() for m in compare(runs, inputs, seconds=2, progress=shown).values()
                    ],
                )


def full(kept: Kept, teacher: nn.Module, folder: Path) -> None:
    """All of Fashion-MNIST: dense and at 10 %, the same steps, the same teacher."""
    data = fashion_mnist()
    task = Task(
        train=fashion_batches(data.train[:-HELD_OUT], 128, augment=True),
        search=fashion_batches(data.train[-HELD_OUT:], 250),
        confirm=fashion_batches(data.test, 250),
        metric=top1,
    )
    kept("full teacher", lambda: accuracy(teacher, task))
    for name, way in (("sparse", GradualMagnitude(density=0.1, scope="lamp", end=0.6)), ("dense", None)):

        def trained(name: str = name, way: GradualMagnitude | None = way) -> dict[str, Any]:
            net = fit(
                teacher, task, epochs=FULL_EPOCHS, settings=FULL, sparsity=way,
                checkpoint=folder / f"full-{name}.safetensors", progress=shown,
                on_epoch=lambda e: print(f"{time.strftime('%H:%M:%S')} {name}: {e}", flush=True),
            )  # fmt: skip
            return {"test": accuracy(net, task), "held_out": top1(net, task.search).value, "density": sparsity(net).density}

        kept(f"full {name}", trained)


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def told(held: dict[str, Any]) -> str:
    """The results as Markdown."""
    value = {name: entry["value"] for name, entry in held.items() if name != "about"}
    parts = [
        "# Sparsity, measured",
        "Written by `python benchmarks/sparsity.py`; the raw numbers are in `sparsity.json`. "
        f"ResNet-20 on Fashion-MNIST, {percent(value['original'])} % on the images of the sample that choose nothing; "
        "accuracy there, in %, unless said otherwise.",
        "## Zeroed at once, not trained",
        "Criteria that need data see at most 512 images; `obs` adjusts the weights that stay. After the arrow: "
        "with the statistics of the norms taken anew on those images.",
        table(
            ["criterion, scope", *(f"density {d:g}" for d in ONE_SHOT)],
            [[f"{c}, {s}", *(" → ".join(map(percent, value[f"one-shot {d} {c} {s}"])) for d in ONE_SHOT)] for c, s in CUTS],
        ),
        f"## Trained for {held['about']['epochs']} epochs of {held['about']['images']:,} images",
        f"The dense network, trained as long: {percent(value['trained 1.0 dense'])}. Learning rate and epsilon of the "
        "textbook's method were chosen on other images, at density 0.1.",
        table(
            ["magnitude", *(f"density {d:g}" for d in TRAINED)],
            [
                [name, *(percent(value[f"trained {d} {key}"]) for d in TRAINED)]
                for name, key in (("textbook", "textbook"), ("at once, then trained", "at once"), ("while training", "gradual"))
            ],
        ).replace("| magnitude |", "| method |"),
        "## Bytes",
        "The original's weights were stored in 16 bits, so that half of each float32's mantissa is zero, which lzma finds.",
        table(
            ["ONNX file", "raw", "after lzma"],
            [[n.removeprefix("bytes "), *(f"{b:,}" for b in v)] for n, v in value.items() if n.startswith("bytes ")],
        ),
        "## Latency at density 0.1, median",
        table(
            ["", "dense", "sparse", "sparse / dense"],
            [
                [n.removeprefix("latency "), *(f"{m['value']:.3f} ms" for m in v), f"{v[1]['value'] / v[0]['value']:.2f}"]
                for n, v in value.items()
                if n.startswith("latency ")
            ],
        ),
    ]
    if "full dense" in value:
        dense, sparse = value["full dense"], value["full sparse"]
        parts += [
            "## All of Fashion-MNIST, 10,000 test images",
            f"Trained for {FULL_EPOCHS} epochs from the original ({percent(value['full teacher'])}): dense "
            f"{percent(dense['test'])}, at density {sparse['density']:.2g} {percent(sparse['test'])}: "
            f"{100 * (sparse['test'] - dense['test']):+.2f} points.",
        ]
    m = held["about"]["machine"]
    return "\n\n".join([*parts, f"On {m['cpu']}, {m['cores']} cores; torch {m['torch']}, onnxruntime {m['onnxruntime']}, "
                        f"openvino {m['openvino']}."]) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/sparsity"), help="where results and checkpoints are kept")
    parser.add_argument("--epochs", type=int, default=2, help="of training on the sample")
    parser.add_argument("--images", type=int, default=4000, help="the most to train and to measure on; few for a trial")
    parser.add_argument("--full", action="store_true", help="also train on all of Fashion-MNIST")
    parser.add_argument("--out", type=Path, default=ROOT / "sparsity.json", help="the result; its tables are put beside it")
    words = parser.parse_args()
    words.folder.mkdir(parents=True, exist_ok=True)
    teacher = fashion_resnet20()
    kept = Kept(words.folder / "results.json", {"epochs": words.epochs, "images": words.images, "teacher": digest(TEACHER)})
    kept("original", lambda: accuracy(teacher, sample_task(words.images)))
    without_training(kept, teacher, words.images)
    with_training(kept, teacher, words.epochs, words.images)
    if words.full:
        full(kept, teacher, words.folder)
    files(kept, teacher, words.folder)
    held = {**kept.held, "about": kept.held["about"] | {"machine": machine()}}
    write_json(words.out, held)
    words.out.with_suffix(".md").write_text(told(json.loads(words.out.read_text())))


if __name__ == "__main__":
    main()
