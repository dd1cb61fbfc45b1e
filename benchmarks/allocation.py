"""Does choosing widths and blocks beat one share for all: python benchmarks/allocation.py [--steps N]   (25 minutes)

The demo's teacher, OpenVINO, batch 32. Every group is narrowed to the same share of its channels; then the knapsack is asked
for a network of the latency that this file has, measured. Of the ways to add up errors that one counts which ``compress`` would
take, whose whole network is nearest to the original. While its own file takes another time, it is asked for less or more, and
the slowest counts that is no slower. Both are cut by the same scores, repaired with the same 512 images, quantized and judged
on the 10,000 test images, without any training; and after ``--steps`` of distillation (0: none, 10 minutes). It writes
allocation.json and allocation.md.
"""

import argparse
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import penjing as pj
from penjing import distill
from penjing.cli.compress import demo_settings
from penjing.data import fashion_batches, fashion_mnist
from penjing.export import Artifact
from penjing.files import whole_file, write_json
from penjing.measure import compare, machine, top1
from penjing.plan import ChannelPlan
from penjing.progress import silent
from penjing.prune import prune_channels, repair
from penjing.quant.apart import divergence
from penjing.run.choose import Net, Raw
from penjing.run.contest import contest
from penjing.run.crew import Crew
from penjing.run.job import Job
from penjing.run.tables import look
from penjing.search import Allocation, Budget, Tables, allocate, nearest, rivals
from penjing.search.allocate import problem
from penjing.search.knapsack import priced
from penjing.task import Task
from penjing.train import portioned
from penjing.zoo import fashion_resnet20

HERE = Path(__file__).parent
SHARES = (0.75, 0.6, 0.5, 0.4, 0.3)
TRIES = 4  # to come to the latency of the uniform network
SAME = 1.02  # times its latency that counts as equal


@dataclass
class Bench:
    job: Job
    tables: Tables
    test: Any
    steps: int

    @cached_property
    def raw(self) -> Raw:
        return Raw(Net(self.job.model, ChannelPlan({}), {}), self.job, self.tables)

    def made(self, a: Allocation) -> nn.Module:
        """Cut and repaired."""
        job, plan = self.job, self.raw.plan(a)
        small = prune_channels(job.model, plan, job.example)
        return repair(small, job.model, plan, job.example, job.calibration).eval()

    def way(self, latency: float) -> tuple[str, dict[str, float]]:
        """As ``compress`` chooses between ways to add up errors, and how far from the original each leaves the network."""
        choices = rivals(self.tables, {"latency": latency})
        plans = {name: self.raw.plan(a) for name, a in choices.items()}
        errors = contest(self.job, divergence, self.job.model, plans)
        return nearest(errors, choices), errors

    def trained(self, net: nn.Module) -> nn.Module:
        s = self.job.settings
        loss = distill.weighted((1 - s.labels, distill.kl(s.temperature)), (s.labels, distill.with_labels(F.cross_entropy)))
        train, epochs = portioned(self.job.task.train, self.steps)
        task = replace(self.job.task, train=train)
        return pj.fit(net, task, epochs=epochs, teacher=self.job.model, loss=loss, settings=s.training).eval()

    def file(self, net: nn.Module, name: str) -> Artifact:
        module = pj.quantize(net, self.job.example, self.job.calibration, target="openvino")
        return pj.export(module, self.job.example, self.job.out / f"{name}.onnx", target="openvino")

    def times(self, files: dict[str, Artifact]) -> dict[str, float]:
        runs = {name: f.load(self.job.threads) for name, f in files.items()}
        return {name: m.value for name, m in compare(runs, *self.job.timer.inputs, seconds=1.0).items()}

    def hits(self, file: Artifact, batches: Any) -> np.ndarray[Any, Any]:
        return np.asarray(top1(file.load(self.job.threads), batches).per_sample, dtype=float)

    @cached_property
    def said(self) -> Any:
        """The test images, and what the original says of them."""
        with torch.no_grad():
            return [(x, self.job.model(x).argmax(1)) for x, _ in self.test]


def uniform(tables: Tables, share: float) -> dict[str, int]:
    """The widths nearest to the same share of every group: what an allocation is compared with."""
    return {name: min(row.errors, key=lambda w: abs(w - share * max(row.errors))) for name, row in tables.damage.items()}


def pair(bench: Bench, share: float) -> dict[str, Any]:
    whole = problem(bench.tables, {}, most={})
    alike = priced(whole, uniform(bench.tables, share), {s.name: "int8" for s in whole.sites})
    nets = {"uniform": bench.made(alike)}
    files = {"uniform": bench.file(nets["uniform"], f"{share} uniform")}
    aim = alike.costs["latency"]
    way, errors = bench.way(aim)
    held: dict[float, tuple[Allocation, nn.Module, Artifact]] = {}
    for _ in range(TRIES):
        chosen = allocate(bench.tables, {"latency": aim}, way=way)
        net = bench.made(chosen)
        file = bench.file(net, f"{share} chosen {len(held)}")
        times = bench.times(files | {"chosen": file})
        ratio = times["chosen"] / times["uniform"]
        held[ratio] = chosen, net, file
        if 1 / SAME <= ratio <= SAME:
            break
        aim /= ratio
    least = min(held)  # where all are slower, the nearest counts against us
    chosen, nets["chosen"], files["chosen"] = held[max((r for r in held if r <= SAME), default=least)]
    times = bench.times(files)
    row = {
        "share": share,
        "ms": times,
        "way": way,
        "errors": errors,
        "blocks": chosen.blocks,
        "widths": [alike.widths, chosen.widths],
    }
    row |= _compared(bench, files, "untrained")
    if bench.steps:
        trained = {name: bench.file(bench.trained(net), f"{share} {name} trained") for name, net in nets.items()}
        row |= _compared(bench, trained, "trained")
    return row


def _compared(bench: Bench, files: dict[str, Artifact], when: str) -> dict[str, Any]:
    row = {}
    for name, batches in ((when, bench.test), (f"{when}, as the original", bench.said)):
        hits = {n: bench.hits(f, batches) for n, f in files.items()}
        more = 100 * (hits["chosen"] - hits["uniform"])
        half = 1.96 * float(more.std(ddof=1)) / len(more) ** 0.5
        row[name] = {n: 100 * float(h.mean()) for n, h in hits.items()} | {"more": [float(more.mean()), half]}
    return row


def told(kept: dict[str, Any]) -> str:
    lines = [
        "# One share for all against choosing together",
        "",
        f"Written by `python benchmarks/allocation.py --steps {kept['steps']}`, whose docstring says how, from "
        f"[its data](allocation.json). The file in int8 on 10,000 images, {kept['original']:.2f} % before; gains with a 95 % "
        f"interval, paired. Trained: {kept['steps']} steps.",
        "",
        "| share of all widths | ms, uniform | ms, chosen | way | blocks left out | uniform, % | chosen, % | gain, points | "
        "says what the original says: gain, points | trained: uniform, % | chosen, % | gain, points |",
        "|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in kept["rows"]:
        cells = [f"{r['share']:g}", *(f"{r['ms'][n]:.3f}" for n in ("uniform", "chosen")), r["way"], str(len(r["blocks"]))]
        for when in ("untrained", "trained"):
            d = r.get(when)
            cells += [f"{d['uniform']:.2f}", f"{d['chosen']:.2f}", _gain(d)] if d else ["", "", ""]
            if when == "untrained":
                cells.append(_gain(r["untrained, as the original"]))
        lines.append(f"| {' | '.join(cells)} |")
    m = kept["machine"]
    lines += ["", f"On {m['cpu']}, {m['cores']} core(s); torch {m['torch']}, openvino {m['openvino']}."]
    return "\n".join(lines) + "\n"


def _gain(d: dict[str, Any]) -> str:
    return f"{d['more'][0]:+.2f} ± {d['more'][1]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=430, help="of distillation, 128 images each")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "allocation", help="where files are kept")
    given = parser.parse_args()
    data = fashion_mnist()
    train, test = fashion_batches(data.train, 128, augment=True), list(fashion_batches(data.test, 500))
    task = Task(train=train, search=test[:2], confirm=test, metric=top1)
    settings = replace(demo_settings(), samples=8, drop_blocks=True)
    job = Job(fashion_resnet20(), task, Budget(max_drop=None, latency=0.1), "openvino", given.work, settings, silent)
    bench = Bench(job, look(Crew(job)), test, given.steps)
    with torch.no_grad():
        kept: dict[str, Any] = {
            "original": 100 * top1(job.model, test).value,
            "steps": given.steps,
            "machine": machine(),
            "rows": [],
        }
    for share in SHARES:
        kept["rows"].append(pair(bench, share))
        write_json(HERE / "allocation.json", kept)
        print(told(kept).splitlines()[-3], flush=True)
    with whole_file(HERE / "allocation.md") as part:
        part.write_text(told(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
