"""What pruning costs in accuracy: python benchmarks/pruning.py --peer-python PYTHON --cases FOLDER   (an hour, one core)

Part one, *no training*: each network is cut to a share of its multiply-accumulates and repaired with a few hundred unlabelled
samples, several times with other samples. ``none`` is the cut alone, ``bn`` re-estimated batch norms, ``refit`` the
least-squares refit, ``refit+bn`` both. It writes benchmarks/pruning.json and benchmarks/pruning.md.

Torch-Pruning stands beside it when ``--peer-python`` names an interpreter with torch and torch-pruning: its own choice of
channels by group magnitude (its default, the same share of every layer; and ranked across layers), at the same share of
multiply-accumulates, from the same weights, judged by the same code. The two exchange safetensors.

``--cases`` names a folder with ``realdata.py``, which fetches real networks (mobilenetv2, ffdnet) and data and needs Pillow;
without it only the embedded teacher is judged. Rows that are in the JSON are not run again. The teacher needs the full
Fashion-MNIST (Debian's package, or ``--fashion FOLDER``).
"""

import argparse
import copy
import importlib.metadata
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penjing.data import fashion_batches, fashion_mnist
from penjing.files import read_json, read_tensors, whole_file, write_json, write_tensors
from penjing.graph import capture
from penjing.graph.layers import macs
from penjing.measure.machine import machine
from penjing.prune import plan_channels, prune_channels
from penjing.prune.refit import refit
from penjing.prune.renorm import reestimate, rescale
from penjing.score import Criterion, l2_norm
from penjing.score.obs import structured_obs
from penjing.zoo import resnet20
from penjing.zoo.fashion import fashion_resnet20

HERE = Path(__file__).parent
CRITERIA: dict[str, Criterion] = {"l2_norm": l2_norm, "structured_obs": structured_obs}
PART_ONE = "no training"  # its key in the JSON; other parts have their own
Batches = list[Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A network and how it is judged.

    Attributes:
        shell: The network with any weights; ``model`` has the right ones.
        fewer: By what factor its multiply-accumulates are cut.
        calibration: ``(samples, seed) -> batches`` that have no labels.
        judge: Higher is better, in ``unit``.
    """

    name: str
    shell: Callable[[], nn.Module]
    model: Callable[[], nn.Module]
    example: tuple[Tensor, ...]
    fewer: float
    samples: int
    calibration: Callable[[int, int], Batches]
    judge: Callable[[nn.Module], float]
    unit: str


# The cases.


def fashion_case(folder: Path | None) -> Case:
    data = fashion_mnist(folder)

    def calibration(samples: int, seed: int) -> Batches:
        drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:samples]
        return [x for x, _ in fashion_batches(data.train[drawn], 64)]

    def accuracy(model: nn.Module) -> float:
        batches = fashion_batches(data.test, 500)
        return 100 * sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(data.test)

    example = (torch.zeros(2, 1, 28, 28),)
    return Case("fashion_resnet20", resnet20, fashion_resnet20, example, 1.7, 512, calibration, accuracy, "%")


def mobilenet_case(real: Any) -> Case:
    """ImageNet's MobileNetV2 with a linear head for Fashion-MNIST at 96 pixels, on the first 1,000 test images."""
    x, _, _, _ = real.fashion_mnist()

    def shell() -> nn.Module:
        return nn.Sequential(real.mobilenetv2(), nn.Linear(1280, 10)).eval()

    def calibration(samples: int, seed: int) -> Batches:
        drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:samples]
        return [real.imagenet_prep(x[part]).contiguous() for part in drawn.split(32)]

    example = (torch.zeros(2, 3, 96, 96),)
    judge = lambda model: 100 * float(real.fashion_acc(model))  # noqa: E731
    return Case("mobilenetv2", shell, real.mobilenetv2_fashion, example, 1.25, 512, calibration, judge, "%")


def denoiser_case(real: Any) -> Case:
    """FFDNet on photographs of scikit-image; repaired on patches of scikit-learn's two."""

    def calibration(samples: int, seed: int) -> Batches:
        generator = torch.Generator().manual_seed(seed)
        photographs = training_photographs(real)
        patches = torch.stack([patch(photographs, generator) for _ in range(samples)])
        noisy = patches + real.SIGMA * torch.randn(patches.shape, generator=generator)
        return [(part, torch.full((len(part), 1, 1, 1), real.SIGMA)) for part in noisy.split(16)]

    example = (torch.rand(2, 3, 64, 64), torch.full((2, 1, 1, 1), real.SIGMA))
    return Case("ffdnet", real.ffdnet, real.ffdnet, example, 1.7, 128, calibration, real.denoise_psnr, "dB")


def training_photographs(real: Any) -> list[Tensor]:
    """scikit-learn's two photographs, uint8 ``(H, W, 3)``: none of those that the denoiser is judged on."""
    import numpy as np
    from PIL import Image

    folder = real.wheel("scikit-learn") / "sklearn/datasets/images"
    return [torch.from_numpy(np.array(Image.open(folder / f"{name}.jpg"))) for name in ("china", "flower")]


def patch(photographs: Sequence[Tensor], generator: torch.Generator, size: int = 64) -> Tensor:
    """A square of one of them, float32 ``(3, size, size)`` from 0 to 1."""
    photo = photographs[int(torch.randint(len(photographs), (), generator=generator))]
    top, left = (int(torch.randint(n - size, (), generator=generator)) for n in photo.shape[:2])
    return photo[top : top + size, left : left + size].permute(2, 0, 1).float() / 255


def cases(folder: Path | None, fashion: Path | None) -> dict[str, Callable[[], Case]]:
    found: dict[str, Callable[[], Case]] = {"fashion_resnet20": lambda: fashion_case(fashion)}
    if folder is not None:
        spec = importlib.util.spec_from_file_location("realdata", folder / "realdata.py")
        assert spec is not None and spec.loader is not None
        real = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(real)
        found |= {"mobilenetv2": lambda: mobilenet_case(real), "ffdnet": lambda: denoiser_case(real)}
    return found


# Ours.


@torch.no_grad()
def judged(case: Case, model: nn.Module) -> float:
    return case.judge(copy.deepcopy(model).eval())


def share(case: Case, model: nn.Module, small: nn.Module) -> float:
    """By what factor the multiply-accumulates fell."""
    return macs(capture(model, case.example)) / macs(capture(small, case.example))


def ours(case: Case, model: nn.Module, draws: int, there: Sequence[Row]) -> Iterable[Row]:
    """One row for each criterion and draw of samples, but for those that are there."""
    known = {(r["choice"], r.get("draw")) for r in there}
    for seed in range(draws):
        batches = case.calibration(case.samples, seed)
        for name, criterion in CRITERIA.items():
            if (name, seed) in known:
                continue
            start = time.perf_counter()
            plan = plan_channels(
                model, case.example, macs=1 / case.fewer, criterion=criterion, data=batches, round_to=1, cut_sums=False
            )
            small = prune_channels(model, plan, case.example)
            chosen = time.perf_counter()
            fixed = refit(small, model, plan, case.example, batches, seed=seed)
            done = time.perf_counter()
            row = {"by": "penjing", "choice": name, "draw": seed, "fewer": share(case, model, small),
                   "choose_s": chosen - start, "refit_s": done - chosen}  # fmt: skip
            row |= {"none": judged(case, small), "refit": judged(case, fixed)}
            if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
                row["bn"] = judged(case, reestimate(small, case.example, batches))
                row["refit+bn"] = judged(case, reestimate(fixed, case.example, batches))
            else:
                row["refit+rescale"] = judged(case, rescale(fixed, model, plan, case.example, batches))
            yield row


# Torch-Pruning: run in its own interpreter by --be-peer, loaded back as tensors.

PEER_CHOICES = {"group magnitude, by layer": False, "group magnitude, global": True}


def be_peer(case: Case, weights: Path, out: Path, across: bool) -> None:
    """Cut the network as Torch-Pruning does, at the largest share of channels that is still too little, and one step on."""
    library = torch.library.Library("torchvision", "DEF")  # which the CPU build of torch has no match for
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torch_pruning as tp

    tensors, _ = read_tensors(weights)
    low, high, best = 0.0, 0.95, None
    for _ in range(10):
        ratio = (low + high) / 2
        model = case.shell()
        model.load_state_dict(tensors)
        before, _ = tp.utils.count_ops_and_params(model, case.example)
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        pruner = tp.pruner.BasePruner(
            model, case.example, importance, pruning_ratio=ratio, global_pruning=across, ignored_layers=layers[-1:]
        )
        pruner.step()
        after, _ = tp.utils.count_ops_and_params(model, case.example)
        if before / after >= case.fewer:
            high, best = ratio, {n: t.clone() for n, t in model.state_dict().items()}
        else:
            low = ratio
    if best is None:
        raise SystemExit(f"no ratio below 0.95 gives {case.fewer}x fewer multiply-accumulates")
    write_tensors(out, best, {"ratio": high, "version": importlib.metadata.version("torch-pruning")})


def with_tensors(shell: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network with tensors of other sizes; depthwise layers get as many groups as channels."""
    for name, module in shell.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.groups = len(tensors[f"{name}.weight"])
        for held in (module._parameters, module._buffers):
            for leaf, old in held.items():
                if old is not None:
                    new = tensors[f"{name}.{leaf}" if name else leaf]
                    held[leaf] = nn.Parameter(new) if isinstance(old, nn.Parameter) else new
    return shell.eval()


def cut_by_peer(
    case: Case, model: nn.Module, python: Path, words: Sequence[str], folder: Path, across: bool
) -> tuple[nn.Module, dict[str, Any]] | str:
    """What Torch-Pruning makes of the model, with its ratio and version; or the last line of its complaint."""
    weights, out = folder / "weights.safetensors", folder / f"{across}.safetensors"
    write_tensors(weights, model.state_dict())
    asked = [case.name, str(weights), str(out), str(int(across)), str(case.fewer)]
    command = [str(python), str(HERE / "pruning.py"), *words, "--be-peer", *asked]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": _sources()})
    if ran.returncode:
        return (ran.stderr.strip() or "no message").splitlines()[-1]
    tensors, about = read_tensors(out)
    return with_tensors(case.shell(), tensors), about


def peers(case: Case, model: nn.Module, python: Path, words: Sequence[str], draws: int) -> Iterable[Row]:
    """Rows of Torch-Pruning's choices: as they are, and with batch norms re-estimated as ours are."""
    with tempfile.TemporaryDirectory() as folder:
        for choice, across in PEER_CHOICES.items():
            row: Row = {"by": "torch-pruning", "choice": choice}
            cut = cut_by_peer(case, model, python, words, Path(folder), across)
            if isinstance(cut, str):
                yield row | {"failed": cut}
                continue
            small, about = cut
            row |= {"version": about["version"], "fewer": share(case, model, small), "none": judged(case, small)}
            if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in small.modules()):
                yield row
                continue
            for seed in range(draws):
                fresh = reestimate(small, case.example, case.calibration(case.samples, seed))
                yield row | {"draw": seed, "bn": judged(case, fresh)}


def _sources() -> str:
    return str(HERE.parent / "src")


# The table.

STAGES = ("none", "bn", "refit", "refit+bn", "refit+rescale")


def table(results: Mapping[str, Any]) -> str:
    """Part one as Markdown: what is lost, the mean over the draws and how far they lie apart."""
    lines = []
    for name, case in results[PART_ONE].items():
        unit = "points" if case["unit"] == "%" else case["unit"]
        lines += [
            f"**{name}**, {case['baseline']:.2f} {case['unit']} before; {case['samples']} samples without labels, "
            f"draws: {1 + max(r.get('draw', 0) for r in case['rows'])}; loss in {unit} (± half the range over the draws)",
            "",
            "| channels chosen by | MACs | " + " | ".join(STAGES) + " |",
            "|---|---:|" + "---:|" * len(STAGES),
        ]
        for key in dict.fromkeys((r["by"], r["choice"]) for r in case["rows"]):
            rows = [r for r in case["rows"] if (r["by"], r["choice"]) == key]
            if "failed" in rows[0]:
                lines.append(f"| {key[0]}, {key[1]} | | {rows[0]['failed']} |" + " |" * (len(STAGES) - 1))
                continue
            cells = [_loss(case["baseline"], [r[s] for r in rows if s in r]) for s in STAGES]
            fewer = statistics.mean(r["fewer"] for r in rows)
            lines.append(f"| {key[0]}, {key[1]} | {fewer:.2f}x fewer | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _loss(baseline: float, values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = (max(values) - min(values)) / 2
    return f"{baseline - statistics.mean(values):.2f}" + (f" ± {spread:.2f}" if len(values) > 1 and spread else "")


# The command.


def part_one(known: Mapping[str, Callable[[], Case]], given: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    kept = HERE / "pruning.json"
    results = read_json(kept) if kept.exists() else {}
    results.update(machine=machine(), command="python benchmarks/pruning.py --peer-python PYTHON --cases FOLDER")
    results.setdefault(PART_ONE, {})
    for name in given.only or known:
        case = known[name]()
        model = case.model()
        about = {"baseline": judged(case, model), "unit": case.unit, "samples": case.samples}
        rows: list[Row] = results[PART_ONE].get(name, {}).get("rows", [])
        results[PART_ONE][name] = about = {**about, "rows": rows}
        judged_already = any(r["by"] == "torch-pruning" for r in rows) or not given.peer_python
        others = () if judged_already else peers(case, model, given.peer_python, words, given.draws)
        for row in chain(ours(case, model, given.draws, rows), others):
            rows.append(row)
            print(name, {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
            write_json(kept, results)
    return results


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="an interpreter with torch and torch-pruning")
    parser.add_argument("--cases", type=Path, help="a folder with realdata.py")
    parser.add_argument("--fashion", type=Path, help="a folder with the IDX files of Fashion-MNIST")
    parser.add_argument("--draws", type=int, default=3, help="how many times the samples are drawn")
    parser.add_argument("--only", action="append", help="a case; all by default")
    parser.add_argument("--be-peer", nargs=5, metavar=("CASE", "WEIGHTS", "OUT", "ACROSS", "FEWER"), help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    known = cases(given.cases, given.fashion)
    if given.be_peer:
        name, weights, out, across, fewer = given.be_peer
        be_peer(replace(known[name](), fewer=float(fewer)), Path(weights), Path(out), across == "1")
        return
    folders = [w for k in ("cases", "fashion") if (v := getattr(given, k)) for w in (f"--{k}", str(v.resolve()))]
    results = part_one(known, given, folders)
    with whole_file(HERE / "pruning.md") as part:
        part.write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
