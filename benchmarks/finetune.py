"""Who recovers better: python benchmarks/finetune.py --peer-python PYTHON   (half an hour on 2 cores)

The embedded teacher is cut to 2, 3 and 5 times fewer multiply-accumulates, by us (channels by structured OBS, repaired with 512
unlabelled images) and by Torch-Pruning (its default: group magnitude, the same share of every layer), and then trained with
labels for the same 125 steps, once through 16,000 training images that the seed draws, with three seeds. The original, trained
for the same steps, stands beside them. Accuracy is on the 10,000 test images. It writes benchmarks/finetune.json and
benchmarks/finetune.md; rows that are there are not run again. It needs the full Fashion-MNIST.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pruning import Case, cut_by_peer, fashion_case, judged, share
from torch import nn

from penjing.data import fashion_batches, fashion_mnist
from penjing.files import read_json, whole_file, write_json
from penjing.measure import cores, machine, top1
from penjing.prune import plan_channels, prune_channels, repair
from penjing.task import Task
from penjing.train import Training, fit

HERE = Path(__file__).parent
FEWER, SEEDS = (2.0, 3.0, 5.0), (0, 1, 2)
IMAGES, SETTINGS = 16_000, Training(lr=0.01)
Row = dict[str, Any]


def trained(net: nn.Module, seed: int, folder: Path | None) -> nn.Module:
    data = fashion_mnist(folder)
    drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(100 + seed))[:IMAGES]
    held = fashion_batches(data.test, 500)  # fit looks at the training images alone
    task = Task(train=fashion_batches(data.train[drawn], 128, augment=True), search=held, confirm=held, metric=top1)
    return fit(net, task, epochs=1, settings=replace(SETTINGS, seed=seed))


def ours(case: Case, model: nn.Module, seed: int) -> nn.Module:
    batches = case.calibration(case.samples, seed)
    plan = plan_channels(
        model, case.example, macs=1 / case.fewer, criterion="structured_obs", data=batches, round_to=1, cut_sums=False
    )
    return repair(prune_channels(model, plan, case.example), model, plan, case.example, batches, seed=seed)


def ways(case: Case, model: nn.Module, python: Path | None, folder: Path) -> dict[str, Callable[[int], nn.Module]]:
    """How to cut: ``seed -> smaller network``."""
    found: dict[str, Callable[[int], nn.Module]] = {"penjing": lambda seed: ours(case, model, seed)}
    if python is not None:
        cut = cut_by_peer(case, model, python, [], folder, across=False)
        if isinstance(cut, str):
            sys.exit(f"Torch-Pruning: {cut}")
        small, _ = cut
        found["torch-pruning"] = lambda _: small
    return found


def measured(kept: dict[str, Any], key: str, run: Callable[[], Row]) -> None:
    if key not in kept["rows"]:
        kept["rows"][key] = run()
        write_json(HERE / "finetune.json", kept)
    print(key, kept["rows"][key], flush=True)


def row(case: Case, model: nn.Module, small: nn.Module, seed: int, folder: Path | None) -> Row:
    after = judged(case, trained(small, seed, folder))
    return {"fewer": share(case, model, small), "before": judged(case, small), "after": after}


def told(kept: dict[str, Any]) -> str:
    """The rows as Markdown: mean and half the range over the seeds."""
    lines = [
        "# After the same short training",
        "",
        "Written by `python benchmarks/finetune.py`, whose docstring says how, from [finetune.json](finetune.json). "
        f"ResNet-20 on Fashion-MNIST, {kept['baseline']:.2f} % before; once through {IMAGES:,} images, mean of "
        f"{len(SEEDS)} seeds (the original: one) ± half their range, 10,000 test images.",
        "",
        "| MACs | cut by | before training, % | after, % |",
        "|---:|---|---:|---:|",
    ]
    names = dict.fromkeys(key.rpartition(", seed ")[0] for key in kept["rows"])
    for name in names:
        rows = [kept["rows"][f"{name}, seed {s}"] for s in SEEDS if f"{name}, seed {s}" in kept["rows"]]
        fewer, _, by = name.partition(", ")
        cells = [_spread([r[k] for r in rows]) for k in ("before", "after")]
        lines.append(f"| {'all' if fewer == '1x' else f'{fewer} fewer'} | {by} | {cells[0]} | {cells[1]} |")
    m = kept["machine"]
    return "\n".join([*lines, "", f"On {m['cpu']}, {m['cores']} core(s); torch {m['torch']}."]) + "\n"


def _spread(values: list[float]) -> str:
    spread = f" ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="an interpreter with torch and torch-pruning")
    parser.add_argument("--fashion", type=Path, help="a folder with the IDX files of Fashion-MNIST")
    given = parser.parse_args(words)
    torch.set_num_threads(cores())
    base = fashion_case(given.fashion)
    model = base.model()
    path = HERE / "finetune.json"
    kept = read_json(path) if path.exists() else {"rows": {}}
    kept |= {"baseline": judged(base, model), "machine": machine(), "images": IMAGES}
    for seed in SEEDS[:1]:
        measured(kept, f"1x, the original, seed {seed}", lambda seed=seed: row(base, model, model, seed, given.fashion))
    for fewer in FEWER:
        case = replace(base, fewer=fewer)
        with tempfile.TemporaryDirectory() as folder:
            for name, cut in ways(case, model, given.peer_python, Path(folder)).items():
                for seed in SEEDS:
                    measured(
                        kept,
                        f"{fewer:g}x, {name}, seed {seed}",
                        lambda cut=cut, seed=seed, case=case: row(case, model, cut(seed), seed, given.fashion),
                    )
    with whole_file(HERE / "finetune.md") as part:
        part.write_text(told(kept), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
