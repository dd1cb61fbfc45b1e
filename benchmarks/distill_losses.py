"""Every loss beside torchdistill's, on the same random tensors: python benchmarks/distill_losses.py --peers FOLDER   (a minute)

FOLDER is an environment of its own, made where there is none. torchdistill is installed there without torchvision, which its
losses do not need; this file then runs itself in it. For each loss: the largest relative difference of the value and of the
gradient for the student over 20 draws, in float64 and in float32, and our time over theirs for value and gradient at the size
of a training batch, taken in turns. Written to benchmarks/distill_losses.json and benchmarks/distill_losses.md.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.distill import (
    LOSSES,
    Lesson,
    TeacherLoss,
    attention,
    dist,
    hint,
    kl,
    logit_mse,
    relations,
    similarity,
    standardized_kl,
    weighted,
    with_labels,
)
from penjing.files import whole_file, write_json

HERE = Path(__file__).parent
# By what pip takes: torchdistill itself comes without what it requires, i.e. without torchvision and transformers.
PACKAGES = (["torch", "numpy", "scipy", "safetensors", "pyyaml"], ["--no-deps", "torchdistill"])
DRAWS, TURNS, CLASSES = 20, 40, 100
MAPS = (16, 8, 8, 8), (16, 12, 8, 8)  # student's and teacher's, where differences are taken
LARGE = (64, 64, 8, 8), (64, 128, 8, 8)  # and times
AT = "module"  # the path of the only module, on both sides
IO = {"student_module_path": AT, "student_module_io": "output", "teacher_module_path": AT, "teacher_module_io": "output"}
Peer = Callable[..., Tensor]  # (student's outputs, teacher's outputs, labels), outputs by module and "output"


@dataclass(frozen=True)
class Pair:
    """One loss of ours and the peer's for it.

    Attributes:
        theirs: Made of our loss once it is prepared, so that both have the same projector.
        logits: Whether they compare logits, rather than maps.
    """

    name: str
    peer: str
    ours: Callable[[], TeacherLoss]
    theirs: Callable[[TeacherLoss], Peer]
    logits: bool = True
    note: str = ""


def pairs() -> Iterator[Pair]:
    from torchdistill.losses import mid_level as peer  # type: ignore[import-not-found, unused-ignore]

    def euclidean(_: TeacherLoss) -> Peer:
        loss = peer.SPKDLoss(AT, AT, "batchmean")
        loss.matmul_and_normalize = lambda z: F.normalize(z.flatten(1) @ z.flatten(1).T)
        return loss  # type: ignore[no-any-return, unused-ignore]

    def regressor(loss: TeacherLoss) -> Peer:
        layer = loss.get_submodule("projector")
        assert isinstance(layer, nn.Linear)
        conv = nn.Conv2d(layer.in_features, layer.out_features, 1).to(layer.weight.dtype)
        conv.load_state_dict({"weight": layer.weight[:, :, None, None], "bias": layer.bias})
        sides = [{"module_path": AT, "io": "output", "is_from_teacher": teacher} for teacher in (False, True)]
        mse = peer.SimpleLossWrapper(nn.MSELoss(), input=sides[0], target=sides[1])
        return lambda ours, *others: mse({AT: {"output": conv(ours[AT]["output"])}}, *others)

    labels = with_labels(F.cross_entropy)
    sides = [{"module_path": AT, "io": "output", "is_from_teacher": teacher} for teacher in (False, True)]
    at = {"pair": {"teacher": {"io": "output", "path": AT}, "student": {"io": "output", "path": AT}}}
    yield Pair(
        "kl", "KDLoss", lambda: weighted((0.1, labels), (0.9, kl(4.0))),
        lambda _: peer.KDLoss(**IO, temperature=4.0, alpha=0.1), note="each with a tenth of cross entropy",
    )  # fmt: skip
    yield Pair(
        "standardized_kl", "LogitStdKDLoss", lambda: weighted((0.1, labels), (9.0, standardized_kl(2.0))),
        lambda _: peer.LogitStdKDLoss(**IO, temperature=2.0, alpha=0.1, beta=9.0), note="the same",
    )  # fmt: skip
    yield Pair("dist", "DISTLoss", dist, lambda _: peer.DISTLoss(**IO))
    yield Pair(
        "dist", "DISTLoss", lambda: dist(2.0, 0.5, 4.0), lambda _: peer.DISTLoss(**IO, beta=2.0, gamma=0.5, tau=4.0),
        note="temperature 4",
    )  # fmt: skip
    yield Pair(
        "logit_mse", "MSELoss", logit_mse, lambda _: peer.SimpleLossWrapper(nn.MSELoss(), input=sides[0], target=sides[1])
    )
    yield Pair("hint", "MSELoss after a 1x1 convolution", lambda: hint(AT, AT), regressor, logits=False)
    yield Pair("attention", "ATLoss", lambda: attention(AT, AT), lambda _: peer.ATLoss(at, mode="code"), logits=False)
    yield Pair(
        "similarity", "SPKDLoss, rows of Euclidean norm 1", lambda: similarity(AT, AT), euclidean, logits=False,
        note="as in the paper",
    )  # fmt: skip
    yield Pair(
        "similarity", "SPKDLoss", lambda: similarity(AT, AT), lambda _: peer.SPKDLoss(AT, AT, "batchmean"), logits=False,
        note="divides rows by the sum of their absolute values: `normalize(x, 1)` sets the norm, not the dimension",
    )  # fmt: skip
    yield Pair(
        "relations", "RKDLoss", lambda: relations(AT, AT), lambda _: peer.RKDLoss(AT, AT, 25.0, 50.0, "mean"), logits=False
    )


def drawn(pair: Pair, seed: int, dtype: torch.dtype, *, large: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """What the student gives, what the teacher gives, labels."""
    generator = torch.Generator().manual_seed(seed)
    shapes = LARGE if large else MAPS
    if pair.logits:
        shapes = ((shapes[0][0], CLASSES),) * 2  # type: ignore[assignment]
    ours, theirs = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return 3 * ours, 3 * theirs, torch.randint(CLASSES, (len(ours),), generator=generator)


def both(pair: Pair, given: tuple[Tensor, Tensor, Tensor]) -> tuple[Callable[[], list[Tensor]], Callable[[], list[Tensor]]]:
    """Value and gradient for the student, ours and the peer's."""
    x, y, target = given
    x = x.requires_grad_()
    lesson = Lesson(x, y, target) if pair.logits else Lesson(x.detach(), x.detach(), target, {AT: x}, {AT: y})
    loss = pair.ours()
    loss.prepare(lesson)
    peer = pair.theirs(loss)

    def of(value: Tensor) -> list[Tensor]:
        return [value.detach(), *torch.autograd.grad(value, x)]

    return lambda: of(loss(lesson)), lambda: of(peer({AT: {"output": x}}, {AT: {"output": y}}, target))


def differences(pair: Pair, dtype: torch.dtype) -> list[float]:
    """Of the value and of the gradient, relative to the peer's, by norm; the largest over the draws."""
    worst = [0.0, 0.0]
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        ours, theirs = both(pair, drawn(pair, seed, dtype))
        found = [float((a - b).norm() / b.norm()) for a, b in zip(ours(), theirs(), strict=True)]
        worst = [max(one, other) for one, other in zip(worst, found, strict=True)]
    return worst


def time_ratio(pair: Pair) -> float:
    """Ours over theirs, the median of turns; each is first in every other, since a call finds its own memory warm."""
    calls = both(pair, drawn(pair, 0, torch.float32, large=True))
    ratios = []
    for turn in range(TURNS + 3):
        took = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            began = time.perf_counter()
            calls[which]()
            took[which] = time.perf_counter() - began
        if turn >= 3:
            ratios.append(took[0] / took[1])
    return statistics.median(ratios)


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    rows = []
    for pair in pairs():
        row: dict[str, Any] = {"loss": pair.name, "peer": pair.peer, "note": pair.note}
        for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
            row[name] = dict(zip(("value", "gradient"), differences(pair, dtype), strict=True))
        row["time"] = time_ratio(pair)
        print(row, flush=True)
        rows.append(row)
    met = {row["loss"] for row in rows}
    versions = {name: version(name) for name in ("torch", "torchdistill")}
    return {"versions": versions, "rows": rows, "alone": [name for name in LOSSES if name not in met]}


def page(found: dict[str, Any]) -> str:
    lines = [
        "# Losses that know a teacher, beside torchdistill's",
        "",
        "Written by `python benchmarks/distill_losses.py`, whose docstring says how, from",
        "[distill_losses.json](distill_losses.json). Largest relative differences over "
        f"{DRAWS} draws; time: ours over theirs, one thread, batch {LARGE[0][0]}.",
        "",
        "| loss | torchdistill's | value, float64 | gradient, float64 | value, float32 | gradient, float32 | time | |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in found["rows"]:
        numbers = [f"{row[kind][part]:.0e}" for kind in ("float64", "float32") for part in ("value", "gradient")]
        cells = [f"`{row['loss']}`", row["peer"], *numbers, f"{row['time']:.2f}", row["note"]]
        lines.append(f"| {' | '.join(cells)} |")
    named = ", ".join(f"`{name}`" for name in found["alone"])
    lines += [
        "",
        f"It has no counterpart of {named}: its CRDLoss draws from a memory of the whole training set.",
        "Their formulas are tested in tests/distill.",
        "",
        ", ".join(f"{name} {number}" for name, number in found["versions"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def environment(folder: Path) -> Path:
    """The interpreter of the peers' environment, made where there is none."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for packages in PACKAGES:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="the environment with torchdistill; without it, this one has it")
    given = parser.parse_args()
    if given.peers is not None:
        paths = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
        subprocess.run([str(environment(given.peers)), __file__], check=True, env=paths)
        return
    found = measure()
    write_json(HERE / "distill_losses.json", found)
    with whole_file(HERE / "distill_losses.md") as part:
        part.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
