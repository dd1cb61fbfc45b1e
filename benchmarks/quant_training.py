"""What training with the grids wins back at few bits: python benchmarks/quant_training.py   (25 minutes on 2 idle cores)

The embedded teacher is quantized to 4 and to 2 bits in weights and values (8 in the first and the last layer), calibrated with
512 unlabeled images, and then trained for the same few steps by each way: grids fixed and weights straight through, steps
learned (LSQ), steps and offsets (LSQ+), clipping bounds (PACT), and LSQ with freezing. All learn from the float network's
outputs alone, on the same training images, which the seed draws. The float network, trained for the same steps with labels,
stands beside them. Accuracy is on the 10,000 test images, of the torch module and of the file made of it, in ONNX Runtime;
``same answer`` is the share of images that both give the same class. It writes benchmarks/quant_training.json and
benchmarks/quant_training.md; rows that are there are not run again. It needs the full Fashion-MNIST.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, fx, nn

from penjing.data import fashion_batches, fashion_mnist
from penjing.data.fashion import FashionMNIST
from penjing.distill import kl
from penjing.export import export
from penjing.files import read_json, whole_file, write_json
from penjing.measure import cores, machine, top1
from penjing.quant import Scheme, quantize
from penjing.quant.learned import learn_steps
from penjing.task import Task
from penjing.train import Training, fit
from penjing.train.freeze import Freezing
from penjing.zoo.fashion import fashion_resnet20

HERE = Path(__file__).parent
STEPS, BATCH, CALIBRATION = 100, 128, 512
SETTINGS = Training(lr=0.01, weight_decay=1e-4)
FREEZING = Freezing(start=0.1, end=0.02, momentum=0.1)  # averages over 10 steps, since there are few in all
Row = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """How a network is trained.

    Attributes:
        how: For ``learn_steps``; None: grids stay fixed.
    """

    how: str | None
    settings: Training = SETTINGS


WAYS = {
    "LSQ": Way("lsq"),
    "straight through": Way(None),
    "LSQ+": Way("lsq+"),
    "PACT": Way("pact"),
    "LSQ, freezing": Way("lsq", replace(SETTINGS, freezing=FREEZING)),
}
# Bits, way, seed; the first rows tell most.
RUNS = [(4, "LSQ", 0), *((2, name, 0) for name in WAYS), (4, "straight through", 0), (4, "LSQ", 1), (4, "LSQ", 2)]


@torch.no_grad()
def accuracy(net: nn.Module, data: FashionMNIST) -> Row:
    """Per cent of the test images; grids are made learned ones, which give the same bits in a third of the time."""
    run = learn_steps(net) if isinstance(net, fx.GraphModule) else net
    batches = list(fashion_batches(data.test, 500))
    truth = torch.cat([y for _, y in batches])
    said = torch.cat([run(x).argmax(1) for x, _ in batches])
    row = {"accuracy": _percent(said == truth)}
    if isinstance(net, fx.GraphModule):
        with TemporaryDirectory() as folder:
            file = export(net, batches[0][0][:2], Path(folder) / "net.onnx").load()
            written = torch.cat([torch.as_tensor(file(x)).argmax(1) for x, _ in batches])
        row |= {"file": _percent(written == truth), "same": _percent(written == said)}
    return row


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())


def trained(net: nn.Module, data: FashionMNIST, seed: int, settings: Training, teacher: nn.Module | None) -> Row:
    drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(100 + seed))[: STEPS * BATCH]
    held = fashion_batches(data.test, 500)  # fit looks at the training images alone
    task = Task(train=fashion_batches(data.train[drawn], BATCH, augment=True), search=held, confirm=held, metric=top1)
    loss = None if teacher is None else kl(4.0)
    began = time.perf_counter()
    after = fit(net, task, epochs=1, teacher=teacher, loss=loss, settings=replace(settings, seed=seed))
    return {"seconds": round(time.perf_counter() - began), **accuracy(after, data)}


def quantized(model: nn.Module, data: FashionMNIST, bits: int, seed: int) -> fx.GraphModule:
    drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
    batches = [x for x, _ in fashion_batches(data.train[drawn], 64)]
    scheme = Scheme(weight_bits=bits, value_bits=bits, weight_observer="mse", observer="mse")
    return quantize(model, batches[0][:2], batches, scheme=scheme)


def rows(data: FashionMNIST) -> dict[str, Callable[[], Row]]:
    """What is to be measured."""
    model = fashion_resnet20()

    def before(bits: int) -> Row:
        return accuracy(quantized(model, data, bits, 0), data)

    def after(bits: int, way: Way, seed: int) -> Row:
        start = quantized(model, data, bits, seed)
        return trained(start if way.how is None else learn_steps(start, way.how), data, seed, way.settings, model)

    found: dict[str, Callable[[], Row]] = {"32 bits: not trained, seed 0": lambda: accuracy(model, data)}
    found |= {f"{bits} bits: not trained, seed 0": partial(before, bits) for bits in (4, 2)}
    found |= {f"{bits} bits: {name}, seed {seed}": partial(after, bits, WAYS[name], seed) for bits, name, seed in RUNS}
    return found | {"32 bits: with labels, seed 0": partial(trained, model, data, 0, SETTINGS, None)}


def told(kept: dict[str, Any]) -> str:
    """The rows as Markdown: mean and half the range over the seeds."""
    lines = [
        "# Trained at few bits",
        "",
        "Written by `python benchmarks/quant_training.py`, whose docstring says how, from "
        f"[quant_training.json](quant_training.json). ResNet-20 on Fashion-MNIST, {STEPS} steps of {BATCH} images, "
        f"{CALIBRATION} to calibrate, 10,000 test images; mean over the seeds ± half their range.",
        "",
        "| bits | trained | seeds | accuracy, % | below float | its file, % | same answer, % | seconds |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    base = kept["rows"]["32 bits: not trained, seed 0"]["accuracy"]
    names = dict.fromkeys(key.rpartition(", seed ")[0] for key in kept["rows"])
    for name in sorted(names, key=lambda name: -int(name.split()[0])):
        these = [row for key, row in kept["rows"].items() if key.rpartition(", seed ")[0] == name]
        values = [row["accuracy"] for row in these]
        spread = f" ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
        mean = statistics.mean(values)
        spent = these[0].get("seconds", "")
        file, same = (f"{statistics.mean(r[k] for r in these):.2f}" if k in these[0] else "" for k in ("file", "same"))
        bits, _, way = name.partition(" bits: ")
        cells = (
            bits,
            way.replace("not trained", "no"),
            len(values),
            f"{mean:.2f}{spread}",
            f"{base - mean:.2f}",
            file,
            same,
            spent,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    m = kept["machine"]
    return "\n".join([*lines, "", f"On {m['cpu']}, {m['cores']} core(s); torch {m['torch']}."]) + "\n"


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", type=Path, help="a folder with the IDX files of Fashion-MNIST")
    given = parser.parse_args(words)
    torch.set_num_threads(cores())
    path = HERE / "quant_training.json"
    kept = read_json(path) if path.exists() else {"rows": {}}
    kept["machine"] = machine()
    for key, run in rows(fashion_mnist(given.fashion)).items():
        if key not in kept["rows"]:
            kept["rows"][key] = run()
            write_json(path, kept)
        print(key, kept["rows"][key], flush=True)
        with whole_file(HERE / "quant_training.md") as part:
            part.write_text(told(kept), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
