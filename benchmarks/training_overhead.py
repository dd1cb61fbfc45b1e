"""What the loop costs beside one written out in torch: python benchmarks/training_overhead.py   (three minutes)

The same network, batches, optimizer, precision and memory format; an epoch of ours and one of the bare loop take turns in one
process, alone and with a teacher. The bare loop does what training needs (rate, clipping, a loss that is read, momentum) and
nothing else: no checks, no chance that can be taken up again, no masks. It writes training_overhead.json and .md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing import distill
from penjing.files import whole_file, write_json
from penjing.measure import cores, machine
from penjing.task import Score, Task
from penjing.train import Training, fit
from penjing.train.state import native_precision
from penjing.zoo import resnet20

HERE = Path(__file__).parent
BATCH, STEPS, TURNS = 64, 8, 12
Batches = list[tuple[Tensor, Tensor]]


def bare(model: nn.Module, teacher: nn.Module | None) -> Callable[[Batches], float]:
    """A training loop as one writes it; gives the seconds of an epoch."""
    model = model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    asked = teacher.eval().to(memory_format=torch.channels_last) if teacher else None  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    half = native_precision() == "bf16-mixed"

    def epoch(batches: Batches) -> float:
        began = time.perf_counter()
        for x, y in batches:
            optimizer.param_groups[0]["lr"] = 0.01
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                output = model(x)
                if asked is not None:
                    with torch.no_grad():
                        taught = asked(x)
            if asked is not None:
                ours, theirs = F.log_softmax(output.float() / 4, 1), F.log_softmax(taught.float() / 4, 1)
                loss = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * 16
            else:
                loss = F.cross_entropy(output.float(), y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
        return time.perf_counter() - began

    return epoch


def turns(width: int, *, taught: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    drawn = [(torch.randn(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))) for _ in range(STEPS)]
    teacher = resnet20(width=32) if taught else None
    theirs, pairs = bare(resnet20(width=width), teacher), list[tuple[float, float]]()
    task = Task(train=Fresh(drawn), search=[], confirm=[], metric=lambda _run, _batches: Score(0, 0, None))
    fit(
        resnet20(width=width), task, epochs=TURNS + 1, teacher=teacher, loss=distill.kl(4.0) if taught else None,
        settings=Training(lr=0.01), on_epoch=lambda e: pairs.append((e.seconds, theirs(drawn))),
    )  # fmt: skip
    pairs = pairs[1:]  # the first is warm-up
    ratios = [a / b for a, b in pairs]
    return {
        "milliseconds a step": round(1e3 * statistics.median(b for _, b in pairs) / STEPS, 1),
        "ratio of medians": round(statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs), 4),
        "ratios": [round(r, 4) for r in sorted(ratios)],
    }


class Fresh:
    """Batches that are not a list, so that the loop does not remember what the teacher said of them."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


def told(found: dict[str, Any]) -> str:
    lines = [
        "# What the loop costs",
        "",
        "Written by `python benchmarks/training_overhead.py`, whose docstring says how. ResNet-20 on 28x28, batches of "
        f"{BATCH}, {TURNS} turns of {STEPS} steps.",
        "",
        "| network | bare loop, ms a step | ours / bare | quartiles |",
        "|---|---:|---:|---|",
    ]
    for name, row in found["rows"].items():
        low, _, high = statistics.quantiles(row["ratios"], n=4)
        lines.append(f"| {name} | {row['milliseconds a step']} | {row['ratio of medians']:.3f} | {low:.3f} - {high:.3f} |")
    m = found["machine"]
    return "\n".join([*lines, "", f"On {m['cpu']}, {m['cores']} core(s); torch {m['torch']}."]) + "\n"


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=cores())
    torch.set_num_threads(parser.parse_args(words).threads)
    rows = {
        "width 32": turns(32, taught=False),
        "width 8": turns(8, taught=False),
        "width 8, taught by width 32": turns(8, taught=True),
    }
    found = {"machine": machine(), "rows": rows}
    write_json(HERE / "training_overhead.json", found)
    with whole_file(HERE / "training_overhead.md") as part:
        part.write_text(told(found), encoding="utf-8")
    print(told(found))


if __name__ == "__main__":
    main(sys.argv[1:])
