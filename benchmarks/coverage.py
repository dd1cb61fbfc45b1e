"""Which networks can be pruned: python benchmarks/coverage.py --nets benchmarks/timm_cnns.txt   (about an hour, one core)

Every net of the list (timm names) is built with random weights, halved (``ratio=0.5``) and proved, in a process of its own, so
that a crash or a hang is one row. It writes benchmarks/coverage.csv and benchmarks/coverage.md after every net, and goes on
where it was stopped; ``--again`` starts anew. ``--peer-python`` is an interpreter with timm and torch-pruning: beside our row
stands that of ``BasePruner`` (ratio 0.5, magnitude, the classifier ignored) on the same weights.

Columns that need a word: ``total_s`` is ``plan_channels`` and ``prune_channels``, which proves itself; ``capture_s`` is part of
both. MACs are by torch's own flop counter, halved. ``rewritten`` says whether the result is of the user's own class with a
rewritten forward. ``error`` is what the proof found; for the peer it is the largest difference, relative to the
largest output, between the pruned net and the original in which what its groups name was zeroed: the parameters of the removed
output channels, or the weights that read them, whichever agrees better. It is empty where that decides nothing: in nets with a
norm over several channels, or with standardized weights, whose statistics are then taken over fewer channels.
"""

import argparse
import copy
import csv
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from penjing.files import whole_file
from penjing.graph import capture, find_channels
from penjing.prune import plan_channels, prune_channels
from penjing.prune.verify import verify_against

HERE = Path(__file__).parent
RATIO, LIMIT, LIMIT_FLOAT32 = 0.5, 1e-9, 1e-4
OURS, PEER = "penjing", "torch-pruning"
FIELDS = (
    "net", "by", "verdict", "failure", "input", "capture_s", "plan_s", "proof_s", "total_s", "error", "macs_before",
    "macs_after", "macs_share", "params_before", "params_after", "params_share", "batch_3", "trains", "result",
    "rewritten", "groups", "fixed", "reasons", "versions",
)  # fmt: skip
Row = dict[str, Any]
Cut = tuple[str, bool, Sequence[int]]  # a layer, whether its outputs go (or its inputs), and which


# One net in one process.


def measured(name: str, by: str, px: int | None) -> Row:
    """The row of one net; an exception becomes its failure."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    row: Row = {"net": name, "by": by, "versions": _versions(by)}
    try:
        model, x = _built(name, px)
        row |= {"input": "x".join(map(str, x.shape)), "macs_before": _macs(model, x), "params_before": _parameters(model)}
        small = _ours(row, model, x) if by == OURS else _peers(row, model, x)
        row |= {"macs_after": _macs(small, x), "params_after": _parameters(small), "result": type(small).__name__}
        row |= {f"{k}_share": round(row[f"{k}_after"] / row[f"{k}_before"], 4) for k in ("macs", "params")}
        row["batch_3"] = _said(lambda: _forward(small.eval(), x.repeat(3, 1, 1, 1)))
        row["trains"] = _said(lambda: _train(small, x))
        if row["trains"] != "yes" and _said(lambda: _train(model, x)) != "yes":
            row["trains"] = "nor does the original"
    except Exception as e:  # whatever a net or the peer raises is what this table is about
        row |= {"verdict": "failed", "failure": _line(e)}
    return row


def _ours(row: Row, model: nn.Module, x: Tensor) -> nn.Module:
    graph = _timed(row, "capture_s", lambda: capture(model, x))
    channels = find_channels(graph)
    row |= {"groups": len(channels.groups), "fixed": len(channels.fixed), "reasons": len(set(channels.fixed.values()))}
    plan = _timed(row, "plan_s", lambda: plan_channels(model, x, RATIO))
    small: nn.Module = _timed(row, "total_s", lambda: prune_channels(model, plan, x))
    row["total_s"] = round(row["total_s"] + row["plan_s"], 3)
    row["rewritten"] = "yes" if getattr(small, "rewritten", False) else "no"
    row["error"] = _timed(row, "proof_s", lambda: verify_against(graph, channels, small, plan))
    row["verdict"] = "proved" if row["error"] <= LIMIT else "proved in float32"
    if not plan.keep:
        row["verdict"] = "nothing cut"
    return small


def _peers(row: Row, model: nn.Module, x: Tensor) -> nn.Module:
    import torch_pruning as tp  # type: ignore[import-not-found, unused-ignore]

    small = copy.deepcopy(model)
    classes = getattr(model, "num_classes", 1000)
    heads = [m for m in small.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m.weight.shape[0] == classes]
    cuts: list[list[Cut]] = []

    def cut() -> None:
        importance = tp.importance.MagnitudeImportance(p=2)
        pruner = tp.pruner.BasePruner(small, x, importance=importance, pruning_ratio=RATIO, ignored_layers=heads)
        names = {id(m): n for n, m in small.named_modules()}
        for group in pruner.step(interactive=True):
            members = [(names.get(id(d.target.module), ""), d.handler, tuple(i)) for d, i in group]
            cuts.append([(n, pruner.DG.is_out_channel_pruning_fn(fn), i) for n, fn, i in members])
            group.prune()

    _timed(row, "total_s", cut)
    row["groups"] = len(cuts)
    _forward(small.eval(), x)
    row["verdict"] = "runs" if cuts else "nothing cut"
    if not any(map(_mixes_channels, model.modules())):
        with suppress(RuntimeError):  # a dtype is written into the net: nothing can be said in float64
            row["error"] = _from_zeroed(model, copy.deepcopy(small).double(), cuts, x.double())
    return small


def _mixes_channels(layer: nn.Module) -> bool:
    name = type(layer).__name__
    norm = "norm" in name.lower() and not isinstance(layer, nn.modules.batchnorm._BatchNorm)
    return not list(layer.children()) and (norm or "StdConv" in name)


def _from_zeroed(model: nn.Module, small: nn.Module, cuts: list[list[Cut]], x: Tensor) -> float:
    """How far the peer's net is from the original with the removed channels zeroed."""
    writers, readers = copy.deepcopy(model).double().eval(), copy.deepcopy(model).double().eval()
    alive: dict[tuple[str, bool], list[int]] = {}
    for group in cuts:
        gone: dict[tuple[str, bool], set[int]] = {}
        for name, out, index in group:
            gone.setdefault((name, out), set()).update(index)
        for (name, out), lost in gone.items():
            layer = (writers if out else readers).get_submodule(name) if name else None
            if layer is not None and isinstance(getattr(layer, "weight", None), Tensor):
                _zero(layer, out, lost, alive.setdefault((name, out), []))
    with torch.no_grad():
        found = tree_leaves(small(x))
        return min(_difference(found, tree_leaves(reference(x))) for reference in (writers, readers))


def _zero(layer: nn.Module, out: bool, index: set[int], alive: list[int]) -> None:
    """Zero what a group names, whose indices count what earlier groups have left ``alive``."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if not out and (weight.ndim < 2 or getattr(layer, "groups", 1) > 1):
        return  # a norm reads no other channels, a grouped convolution numbers its inputs anew in every group
    alive[:] = alive or range(weight.shape[0 if out else 1])
    first = [alive[i] for i in index if i < len(alive)]
    alive[:] = [i for i in alive if i not in set(first)]
    with torch.no_grad():
        for value in (weight, getattr(layer, "bias", None)) if out else (weight,):
            if isinstance(value, Tensor):
                value.index_fill_(0 if out else 1, torch.tensor(first, dtype=torch.int64), 0)


def _built(name: str, px: int | None) -> tuple[nn.Module, Tensor]:
    """The net in eval mode with an input; scales and statistics are drawn, since zeros and ones there hide mistakes."""
    for op in ("nms", "qnms"):  # timm imports torchvision, of which no build fits every build of torch
        with suppress(RuntimeError):
            torch.library.define(f"torchvision::{op}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm  # type: ignore[import-not-found, unused-ignore]

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False).eval()
    config: Any = model.default_cfg
    shape = config["input_size"]
    with torch.no_grad():
        for key, value in (*model.named_parameters(), *model.named_buffers()):
            if value.is_floating_point() and (value.ndim < 2 or bool((value == value.flatten()[0]).all())):
                value.add_(0.2 * torch.randn_like(value))
                value.copy_(value.abs() + 0.1 if key.endswith("running_var") else value)
    return model, torch.randn(1, shape[0], px or shape[1], px or shape[2])


def _train(model: nn.Module, x: Tensor) -> None:
    model = copy.deepcopy(model).train()
    before = {n: b.clone() for n, b in model.named_buffers() if n.endswith("running_mean")}
    out = tree_leaves(model(x.repeat(3, 1, 1, 1) + torch.randn(3, *x.shape[1:])))
    sum(o.square().mean() for o in out).backward()
    if not all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None):
        raise ValueError("gradients that are not finite")
    if before and all(torch.equal(b, before[n]) for n, b in model.named_buffers() if n in before):
        raise ValueError("no BatchNorm takes batch statistics in train mode")


def _forward(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        out = tree_leaves(model(x))
    if not all(o.isfinite().all() and len(o) == len(x) for o in out):
        raise ValueError("outputs that are not finite, or of another batch size")


def _timed(row: Row, key: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    try:
        return work()
    finally:
        row[key] = round(time.perf_counter() - start, 3)


def _macs(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    if [f.shape for f in found] != [e.shape for e in expected]:
        return math.inf
    return max(float((f - e).abs().max() / e.abs().max().clamp_min(1e-30)) for f, e in zip(found, expected, strict=True))


def _said(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as e:
        return _line(e)
    return "yes"


def _line(e: Exception) -> str:
    return " ".join(f"{type(e).__name__}: {e}".split())[:300]


def _versions(by: str) -> str:
    found = []
    for package in ("torch", "timm", by):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


# All nets, one after another.


def row_of(python: str, name: str, by: str, px: int | None, limit: float) -> Row:
    """Measure one net in a new process, which is killed with all its children after ``limit`` seconds."""
    command = [python, str(Path(__file__).resolve()), "--one", name, "--by", by, *(["--px", str(px)] if px else [])]
    source = os.pathsep.join(p for p in (str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")) if p)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": source},
    )  # fmt: skip
    row: Row = {"net": name, "by": by}
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return row | {"verdict": "timeout", "failure": f"not done after {limit:g} s"}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    try:
        return {**row, **json.loads(out.splitlines()[-1])}
    except (IndexError, ValueError):
        return row | {"verdict": "crashed", "failure": f"exit code {process.returncode}: {' '.join(err.split())[-200:]}"}


def read_rows(path: Path) -> dict[tuple[str, str], Row]:
    """The rows of an earlier run."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as f:
        return {(row["net"], row["by"]): row for row in csv.DictReader(f)}


def write_rows(path: Path, rows: dict[tuple[str, str], Row], nets: Sequence[str]) -> None:
    """Write the table and its summary, each whole or not at all."""
    order = sorted(rows, key=lambda k: (nets.index(k[0]) if k[0] in nets else len(nets), k[0], k[1]))
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as f:
        table = csv.DictWriter(f, FIELDS)
        table.writeheader()
        table.writerows(rows[k] for k in order)
    with whole_file(path.with_suffix(".md")) as part:
        part.write_text(summary([rows[k] for k in order]), encoding="utf-8")


def _known(row: Row, key: str) -> bool:
    return row.get(key) not in (None, "")


def _ran(row: Row) -> bool:
    return str(row["verdict"]).startswith(("proved", "runs"))


# What is counted over the rows of one side.
COUNTS: dict[str, Callable[[Row], bool]] = {
    "networks": lambda _: True,
    "prune, and the result runs": _ran,
    "fail or crash": lambda r: r["verdict"] in ("failed", "crashed"),
    "not done in time": lambda r: r["verdict"] == "timeout",
    "nothing cut": lambda r: r["verdict"] == "nothing cut",
    "MACs at most 0.35 of the original's": lambda r: _known(r, "macs_share") and float(r["macs_share"]) <= 0.35,
    "MACs at most 0.6 of the original's": lambda r: _known(r, "macs_share") and float(r["macs_share"]) <= 0.6,
    f"equal to the original without the channels, to {LIMIT:g}": lambda r: (
        _ran(r) and _known(r, "error") and float(r["error"]) <= LIMIT
    ),
    f"equal to {LIMIT_FLOAT32:g} only": lambda r: _ran(r) and _known(r, "error") and LIMIT < float(r["error"]) <= LIMIT_FLOAT32,
    "something else than the original": lambda r: _ran(r) and _known(r, "error") and float(r["error"]) > LIMIT_FLOAT32,
    "not decided": lambda r: _ran(r) and not _known(r, "error"),
    "train, with BatchNorm in train mode": lambda r: r.get("trains") == "yes",
    "with a rewritten forward": lambda r: r.get("rewritten") == "yes",
}


def summary(rows: list[Row]) -> str:
    """The rows as Markdown: counts first, then a line for every net, then what failed of ours."""
    sides = [[r for r in rows if r["by"] == by] for by in (OURS, PEER)]
    lines = [
        "# Which networks can be pruned\n",
        "Written by `python benchmarks/coverage.py`, whose docstring says what every number means, from "
        "[coverage.csv](coverage.csv): timm's networks with random weights, half of the channels of every group dropped. "
        "Torch-Pruning proves nothing, so its seconds hold no proof.\n",
        f"| | {OURS} | {PEER} |\n|---|---:|---:|",
        *(f"| {told} | {' | '.join(str(sum(map(holds, side))) for side in sides)} |" for told, holds in COUNTS.items()),
        f"| seconds, median | {' | '.join(_seconds(side, statistics.median) for side in sides)} |",
        f"| seconds, most | {' | '.join(_seconds(side, max) for side in sides)} |",
        *("", *(f"{by}: {v}." for by, v in sorted({(r["by"], r["versions"]) for r in rows if r.get("versions")})), ""),
        f"| net | {OURS} | its error | MACs | parameters | s | {PEER} | its error | MACs | s |",
        "|---|---|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    mine, theirs = ({r["net"]: r for r in side} for side in sides)
    lines += [_told(net, mine.get(net, {}), theirs.get(net, {})) for net in dict.fromkeys(r["net"] for r in rows)]
    return "\n".join([*lines, "", *_failures(sides[0]), ""])


def _told(net: str, ours: Row, peer: Row) -> str:
    def number(row: Row, key: str, form: str) -> str:
        return format(float(row[key]), form) if _known(row, key) else ""

    cells = [ours.get("verdict", ""), number(ours, "error", ".0e"), number(ours, "macs_share", ".2f")]
    cells += [number(ours, "params_share", ".2f"), number(ours, "total_s", ".1f"), peer.get("verdict", "")]
    cells += [number(peer, "error", ".0e"), number(peer, "macs_share", ".2f"), number(peer, "total_s", ".1f")]
    return f"| {net} | {' | '.join(cells)} |"


def _failures(rows: list[Row]) -> list[str]:
    failed = [r for r in rows if r.get("failure")]
    return ["What failed:\n", *(f"- {r['net']}: {r['failure']}" for r in failed)] if failed else []


def _seconds(rows: list[Row], of: Callable[[Iterable[float]], float]) -> str:
    found = [float(r["total_s"]) for r in rows if _ran(r) and _known(r, "total_s")]
    return f"{of(found):.1f}" if found else ""


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, default=HERE / "timm_cnns.txt", help="a file of timm names")
    parser.add_argument("--only", nargs="*", help="of these, the names to measure now")
    parser.add_argument("--by", choices=(OURS, PEER), help="whose rows; both where --peer-python is given")
    parser.add_argument("--peer-python", help="an interpreter with timm and torch-pruning")
    parser.add_argument("--px", type=int, help="the input's side, instead of the net's own")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one net")
    parser.add_argument("--out", type=Path, default=HERE / "coverage.csv")
    parser.add_argument("--again", action="store_true", help="measure also what has a row")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.one:
        print(json.dumps(measured(asked.one, asked.by, asked.px)))
        return
    from rich.progress import track

    nets = asked.nets.read_text(encoding="utf-8").split()
    pythons = {OURS: sys.executable} | ({PEER: asked.peer_python} if asked.peer_python else {})
    kept = {} if asked.again else read_rows(asked.out)
    todo = [(n, by) for n in asked.only or nets for by in pythons if asked.by in (None, by) and (n, by) not in kept]
    for name, by in track(todo, "coverage"):
        row = row_of(pythons[by], name, by, asked.px, asked.limit)
        write_rows(asked.out, read_rows(asked.out) | {(name, by): row}, nets)


if __name__ == "__main__":
    main()
