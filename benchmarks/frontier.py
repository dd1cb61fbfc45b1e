"""Ours against what a user would build today: python benchmarks/frontier.py --pruner PYTHON --peers FOLDER   (two hours)

The demo's teacher (ResNet-20 of width 32, Fashion-MNIST) is made small and fast at four operating points. The peer's way:
Torch-Pruning, training, then NNCF in OpenVINO and ``quantize_static`` in ONNX Runtime (frontier_peers.py); of a runtime's
presets and calibrators the more accurate on the search split. Ours: ``compress``, allowed the latency that the peer's file has
in the same runtime, and at the last point also less, to see how much faster it is where both are as accurate. Both train with
the same loop, images, loss, schedule and steps; 55,000 of the 60,000 training images are trained on, 5,000 choose, and the
10,000 test images are looked at once for each row. In the end all files of a runtime are timed in one process, in turns, at
batch 32. It writes frontier.json, frontier.md and, with Chromium, frontier.png.

Rows that are there are not made again, and what was trained is kept in ``--work``: a killed run goes on. ``--quick`` tries
the same on 2,000 images, one pass, 1,000 test images, and writes into ``--work`` alone.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frontier_peers import WAYS, better, build, exported, quantized, versions
from torch import nn
from torch.nn import functional as F

import penjing as pj
from penjing import distill
from penjing.data import FashionMNIST, fashion_batches, fashion_mnist
from penjing.data.images import LabelledImages
from penjing.export import RUNTIMES, Runner
from penjing.files import read_json, whole_file, write_json
from penjing.graph import capture
from penjing.measure import compare, cores, machine, macs, top1
from penjing.settings import Settings
from penjing.task import Run, Task
from penjing.train import fit
from penjing.zoo import fashion_resnet20

HERE = Path(__file__).parent
QUICKER = 1.5  # times faster than the peer's, that ours is also tried at
FEWER = (2.0, 3.0, 5.0, 8.0)  # times fewer multiply-accumulates at the peer's operating points
BATCH, TRAIN_BATCH = 32, 128  # at which latency is taken; and of the training
HELD, CALIBRATION = 5_000, 512  # training images that choose; images that integer ranges are taken from
THREADS = min(2, cores())  # of the runtimes
LOADS, SECONDS = 3, 1.0  # how often each file is loaded and timed, and how long
EXAMPLE = torch.zeros(1, 1, 28, 28)
FLOAT32, DEFAULT = "original, f32", "original, default precision"
BUILT, OURS = "Torch-Pruning + ", ("ours", "#2563eb", "penjing")  # in the picture
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What all rows need."""

    work: Path
    pruner: Path
    peers: Path
    fashion: Path | None
    epochs: int
    quick: bool

    @cached_property
    def data(self) -> FashionMNIST:
        whole = fashion_mnist(self.fashion)
        return FashionMNIST(whole.train[: 2 * HELD], whole.test[:1_000]) if self.quick else whole

    @property
    def images(self) -> int:  # that are trained on
        return 2_000 if self.quick else len(self.data.train) - HELD

    @cached_property
    def task(self) -> Task:
        """The last images of the training set choose."""
        train = self.data.train[: self.images]
        search, confirm = (fashion_batches(d, 500) for d in (self.data.train[-HELD:], self.data.test))
        return Task(train=fashion_batches(train, TRAIN_BATCH, augment=True), search=search, confirm=confirm, metric=top1)

    @cached_property
    def settings(self) -> Settings:
        """Of ours, without training in integers, which the peer has not; the peer's training is read from here."""
        return Settings(
            epochs=self.epochs, attempts=1, calibration=CALIBRATION, batch=BATCH, threads=THREADS, control=False,
            report_batches=(BATCH,), generalization=0, qat=0.0,
        )  # fmt: skip

    @property
    def learn(self) -> Callable[..., nn.Module]:
        """The training that the peer's nets have: from labels and teacher, as ours."""
        s = self.settings
        loss = distill.weighted((1 - s.labels, distill.kl(s.temperature)), (s.labels, distill.with_labels(F.cross_entropy)))
        return partial(fit, task=self.task, epochs=self.epochs, teacher=fashion_resnet20(), loss=loss, settings=s.training)

    @property
    def steps(self) -> int:
        return self.epochs * -(-self.images // TRAIN_BATCH)

    def unlabelled(self) -> LabelledImages:
        """A few training images, drawn once; their labels are for nobody."""
        drawn = torch.randperm(len(self.data.train) - HELD, generator=torch.Generator().manual_seed(0))[:CALIBRATION]
        return self.data.train[drawn]


def runner(runtime: str, path: Path, precision: str | None) -> Runner:
    return Runner(RUNTIMES[runtime].load(path, THREADS, precision), runtime)


# Rows: a file, and how well it does.


def judged(bench: Bench, key: str, runtime: str, path: Path, precision: str | None) -> Row:
    """The file's accuracy on the split that chooses and on the test images; the hits are kept for paired differences."""
    run: Run = runner(runtime, path, precision)
    test = top1(run, bench.task.confirm)
    np.save(bench.work / f"{key}.npy", test.per_sample)
    parts = (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)
    row: Row = {"runtime": runtime, "file": str(path.relative_to(bench.work)), "precision": precision}
    row |= {"search": 100 * top1(run, bench.task.search).value, "int8": 100 * test.value}
    return row | {"bytes": sum(p.stat().st_size for p in parts)}


@torch.no_grad()
def in_torch(net: nn.Module, bench: Bench) -> float:
    return 100 * top1(net.eval(), bench.task.confirm).value


def fewer_macs(net: nn.Module) -> float:
    return macs(capture(fashion_resnet20(), (EXAMPLE,))) / macs(capture(net, (EXAMPLE,)))


def original(bench: Bench) -> Path:
    return exported(fashion_resnet20(), bench.work / "original.onnx")


def peer_rows(bench: Bench, fewer: float) -> dict[str, Row]:
    """All presets and calibrators of both runtimes, of one net that is cut and trained once."""
    folder = bench.work / f"{fewer:g}x"
    folder.mkdir(parents=True, exist_ok=True)
    built = build(bench.pruner, bench.learn, fewer, folder)
    images = folder / "calibration.npz"
    np.savez(images, torch.cat([x for x, _ in fashion_batches(bench.unlabelled(), CALIBRATION)]).numpy())
    shared = {"who": "peer", "point": f"{fewer:g}x", "fewer": fewer_macs(built.net), "cut": in_torch(built.cut, bench)}
    shared |= {"float": in_torch(built.net, bench), "steps": bench.steps, "cpu_minutes": built.minutes}
    shared["choice"] = built.choice
    rows = {}
    for runtime, ways in WAYS.items():
        key = f"{fewer:g}x, Torch-Pruning, {runtime}'s default"  # which may beat integers: it is bfloat16 on some processors
        rows[key] = shared | {"who": "float", "way": "default precision"} | judged(bench, key, runtime, built.file, None)
        for way in ways:
            key = f"{fewer:g}x, Torch-Pruning + {way}"
            path = quantized(bench.peers, way, built.file, images)
            rows[key] = shared | {"way": way} | judged(bench, key, runtime, path, None)
    return rows


def ours(bench: Bench, runtime: str, share: float, folder: Path) -> tuple[Row, Path, str | None]:
    """Our file at a share of the original's fp32 latency in a runtime: what is known of it, where it is, how to load it."""
    budget = pj.Budget(max_drop=None, latency=share)
    found = pj.compress(fashion_resnet20(), bench.task, budget=budget, target=runtime, out=folder, settings=bench.settings)
    (was, now), seconds = found.data["size"]["macs"], sum(e["seconds"] for e in found.data["training"])
    row = {"fewer": was / now, "steps": bench.steps, "cpu_minutes": seconds * torch.get_num_threads() / 60}
    row["chosen"] = found.data["chosen"]
    return row, found.artifact.path, found.data["files"].get("precision")


def our_row(bench: Bench, kept: Row, point: str, runtime: str, quicker: float = 1.0) -> Row:
    """At the latency that the peer's better file has here, measured beside the original just before, or a part of it."""
    peer = better(kept["rows"], point, runtime)
    timed = turns(runtime, {FLOAT32: (original(bench), "f32"), "peer": (bench.work / peer["file"], None)}, bench)
    share = timed["peer"]["ms"] / timed[FLOAT32]["ms"] / quicker
    name = our_key(point, runtime, quicker)
    row, path, precision = ours(bench, runtime, share, bench.work / name.replace(",", ""))
    way = "penjing" if quicker == 1 else f"penjing, {quicker:g} times faster"
    shared = {"who": "ours", "point": point, "way": way, "share": share, "quicker": quicker}
    return shared | row | judged(bench, name, runtime, path, precision)


def our_key(point: str, runtime: str, quicker: float) -> str:
    return f"{point}, ours, {runtime}" + (f", {quicker:g} times faster" if quicker != 1 else "")


# Timing.


def turns(runtime: str, files: Mapping[str, tuple[Path, str | None]], bench: Bench) -> dict[str, Row]:
    """Milliseconds of one call: all files take turns, each loaded anew several times; the median over the loads."""
    images = np.random.default_rng(0).standard_normal((BATCH, *EXAMPLE.shape[1:]), dtype=np.float32)
    found: dict[str, list[float]] = {}
    for _ in range(1 if bench.quick else LOADS):
        runs = {name: runner(runtime, path, precision) for name, (path, precision) in files.items()}
        for name, m in compare(runs, images, seconds=SECONDS / (10 if bench.quick else 1)).items():
            found.setdefault(name, []).append(m.value)
    return {n: {"ms": statistics.median(v), "low": min(v), "high": max(v), "loads": len(v)} for n, v in found.items()}


def timed(bench: Bench, kept: Row) -> None:
    """Put the times of all files into the rows, one runtime after the other."""
    kept["original"]["times"] = {}
    for runtime in RUNTIMES:
        files: dict[str, tuple[Path, str | None]] = {FLOAT32: (original(bench), "f32"), DEFAULT: (original(bench), None)}
        files |= {k: (bench.work / r["file"], r["precision"]) for k, r in kept["rows"].items() if r["runtime"] == runtime}
        found = turns(runtime, files, bench)
        kept["original"]["times"][runtime] = {name: found.pop(name) for name in (FLOAT32, DEFAULT)}
        before = [kept["original"]["times"][runtime][n]["ms"] for n in (FLOAT32, DEFAULT)]
        for key, times in found.items():
            kept["rows"][key] |= {"time": times, "faster": [b / times["ms"] for b in before]}


# What is told.


def against(bench: Bench, kept: Row) -> list[Row]:
    """Ours against the better peer file of each point and runtime: points of accuracy, paired, and time."""
    found = []
    for key, our in [(k, r) for k, r in kept["rows"].items() if r["who"] == "ours" and r.get("quicker", 1) == 1]:
        peer = better(kept["rows"], our["point"], our["runtime"])
        more = 100 * np.subtract(*(np.load(bench.work / f"{k}.npy") for k in (key, peer["key"])))
        half = 1.96 * float(more.std(ddof=1)) / len(more) ** 0.5
        row = {"point": our["point"], "runtime": our["runtime"], "points": [float(more.mean()) + d for d in (0, -half, half)]}
        row |= {"time": our["time"]["ms"] / peer["time"]["ms"], "faster": at_equal_accuracy(kept, peer)}
        found.append(row)
    return found


def at_equal_accuracy(kept: Row, peer: Row) -> float | None:
    """How many times faster ours is where it is as accurate as a peer's file: between our points, along the logarithm.

    None where ours is nowhere so accurate; where all of ours are more accurate, our fastest counts.
    """
    rows = [r for r in kept["rows"].values() if (r["who"], r["runtime"]) == ("ours", peer["runtime"])]
    points = [(r["time"]["ms"], r["int8"]) for r in rows]
    points.append((kept["original"]["times"][peer["runtime"]][FLOAT32]["ms"], kept["original"]["float"]))
    points.sort()
    fastest: float | None = points[0][0] if points[0][1] >= peer["int8"] else None
    for (quick, low), (slow, high) in pairwise(points):
        if fastest is None and low < peer["int8"] <= high:
            fastest = float(quick * (slow / quick) ** ((peer["int8"] - low) / (high - low)))
    return peer["time"]["ms"] / fastest if fastest else None


def told(kept: Row) -> str:
    about, base = kept["about"], kept["original"]
    lines = [
        "# The frontier",
        "",
        "Written by `python benchmarks/frontier.py`, whose docstring says how, from [its data](frontier.json). "
        f"{about['train']:,} training images, {about['epochs']} epochs ({about['steps']:,} steps of {TRAIN_BATCH}) for each "
        f"network; {about['test']:,} test images, {base['float']:.2f} % before; batch {BATCH}, {about['threads']} threads. The "
        "peer's integer files that the search split prefers are marked *; the others are what was tried.",
    ]
    heads: tuple[str, ...]
    for runtime, times in base["times"].items():
        heads = ("point", "by", "MACs", "cut, %", "float, %", "int8, %", "ms", "x f32", "x default", "kB", "steps", "CPU min")
        lines += ["", f"**{runtime}**: " + ", ".join(f"{n} {t['ms']:.2f} ms" for n, t in times.items()), ""]
        lines += [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (len(heads) - 2)]
        rows = sorted(kept["rows"].items(), key=lambda item: (float(item[1]["point"][:-1]), item[1]["who"]))
        lines += [_line(kept["rows"], k, r) for k, r in rows if r["runtime"] == runtime]
    cuts = {r["point"]: r["choice"] for r in kept["rows"].values() if "choice" in r}
    lines += ["", "The peer's cuts: " + "; ".join(f"{point} {choice}" for point, choice in cuts.items()) + ".", ""]
    heads = ("point", "runtime", "ours - peer, points", "time, ours / peer", "at equal accuracy, times faster")
    lines += [f"| {' | '.join(heads)} |", "|---|---|---:|---:|---:|"] if kept["against"] else []
    for r in kept["against"]:
        gain, low, high = r["points"]
        faster = "never as accurate" if r["faster"] is None else f"{r['faster']:.2f}"
        gained = f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(f"| {r['point']} | {r['runtime']} | {gained} | {r['time']:.2f} | {faster} |")
    lines.append("")
    m = kept["machine"]
    peers = ", ".join(f"{n} {v}" for n, v in kept["peers"].items())
    return "\n".join([*lines, f"On {m['cpu']}, {m['cores']} core(s); torch {m['torch']}; peers: {peers}."]) + "\n"


def _line(rows: Mapping[str, Row], key: str, r: Row) -> str:
    mark = "*" if r["who"] == "peer" and better(rows, r["point"], r["runtime"])["key"] == key else ""
    cells = [r["point"], r["way"] + mark, f"{r['fewer']:.2f}x fewer"]
    cells += [f"{r[k]:.2f}" if k in r else "" for k in ("cut", "float", "int8")]
    cells += [f"{r['time']['ms']:.3f}", *(f"{f:.2f}" for f in r["faster"]), f"{r['bytes'] / 1e3:.0f}"]
    return "| " + " | ".join([*cells, str(r["steps"]), f"{r['cpu_minutes']:.1f}"]) + " |"


def drawn(kept: Row, work: Path, out: Path) -> None:
    """Accuracy against latency, as a page in ``work`` and, where there is Chromium, as a picture."""
    import plotly.graph_objects as go  # type: ignore[import-not-found, unused-ignore]

    figure = go.Figure()
    for runtime, dash in (("openvino", "solid"), ("onnxruntime", "dot")):
        for who, color, name in (("peer", "#b45309", BUILT + "int8"), ("float", "#9ca3af", BUILT + "float"), OURS):
            rows = [r for r in kept["rows"].values() if (r["who"], r["runtime"]) == (who, runtime)]
            if who == "peer":
                rows = [better(kept["rows"], point, runtime) for point in dict.fromkeys(r["point"] for r in rows)]
            rows.sort(key=lambda r: float(r["time"]["ms"]))
            x, y = [r["time"]["ms"] for r in rows], [r["int8"] for r in rows]
            figure.add_scatter(x=x, y=y, name=f"{name}, {runtime}", mode="lines+markers", line={"color": color, "dash": dash})
    figure.add_hline(y=kept["original"]["float"], line={"color": "#6b7280", "dash": "dash"}, annotation_text="original")
    axis = {"type": "log", "title": f"ms, batch {BATCH} (log scale)", "tickvals": [1, 2, 3, 5, 8, 12, 20, 30, 50, 100]}
    figure.update_layout(template="plotly_white", width=900, height=560, xaxis=axis, yaxis={"title": "accuracy in %"})
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    page, picture, chromium = work / "frontier.html", work / "picture.png", shutil.which("chromium")
    figure.write_html(page, config={"displayModeBar": False})
    if chromium is None:
        return
    more = [f"--user-data-dir={work}/profile", "--window-size=920,580", "--virtual-time-budget=5000"]
    subprocess.run([chromium, *flags, *more, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)
    with whole_file(out) as part:
        shutil.copyfile(picture, part)


# The command.


def make(bench: Bench, kept: Row, given: argparse.Namespace, save: Callable[[], None]) -> None:
    for fewer in FEWER:
        if "peer" in given.part and not any((r["who"], r["point"]) == ("peer", f"{fewer:g}x") for r in kept["rows"].values()):
            kept["rows"] |= peer_rows(bench, fewer)
            save()
    points = list(dict.fromkeys(r["point"] for r in kept["rows"].values()))
    for point in points if "ours" in given.part else ():
        for runtime in RUNTIMES:
            for quicker in (1.0, QUICKER) if point == points[-1] else (1.0,):
                key = our_key(point, runtime, quicker)
                if key not in kept["rows"]:
                    kept["rows"][key] = our_row(bench, kept, point, runtime, quicker)
                    save()


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pruner", type=Path, required=True, help="an interpreter with torch and torch-pruning")
    parser.add_argument("--peers", type=Path, required=True, help="a virtual environment with nncf and onnxruntime")
    parser.add_argument("--fashion", type=Path, help="a folder with the IDX files of Fashion-MNIST")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "frontier", help="where files are kept")
    parser.add_argument("--epochs", type=int, default=2, help="of training for each network")
    parser.add_argument("--part", action="append", choices=("peer", "ours"), help="both by default")
    parser.add_argument("--quick", action="store_true", help="try the way on few images; results go into --work")
    given = parser.parse_args(words)
    given.part = given.part or ["peer", "ours"]
    torch.set_num_threads(cores())
    work = (given.work / ("quick" if given.quick else "full")).absolute()
    epochs = 1 if given.quick else given.epochs
    bench = Bench(work, given.pruner.absolute(), given.peers.absolute() / "bin" / "python", given.fashion, epochs, given.quick)
    out = work if given.quick else HERE
    kept: Row = read_json(out / "frontier.json") if (out / "frontier.json").exists() else {"rows": {}}
    about = {"epochs": epochs, "steps": bench.steps, "train": bench.images, "test": len(bench.data.test), "threads": THREADS}
    if kept.setdefault("about", about) != about:
        sys.exit(f"{out / 'frontier.json'} was made with {kept['about']}, not {about}; move it and {work} away")
    kept["rows"] = {k: r for k, r in kept["rows"].items() if (work / r["file"]).exists()}
    kept |= {"machine": machine(), "peers": versions(bench.pruner, bench.peers)}
    kept["original"] = {"float": in_torch(fashion_resnet20(), bench), "bytes": original(bench).stat().st_size}
    make(bench, kept, given, lambda: write_json(out / "frontier.json", kept))
    timed(bench, kept)
    kept["against"] = against(bench, kept)
    write_json(out / "frontier.json", kept)
    with whole_file(out / "frontier.md") as part:
        part.write_text(told(kept), encoding="utf-8")
    drawn(kept, work, out / "frontier.png")


if __name__ == "__main__":
    main(sys.argv[1:])
