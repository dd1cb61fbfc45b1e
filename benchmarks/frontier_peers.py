"""What a user would build today, step by step; benchmarks/frontier.py calls it, and it calls itself under a peer's interpreter.

    PYTHONPATH=src PEER/bin/python benchmarks/frontier_peers.py WEIGHTS OUT FEWER

cuts the demo's teacher as Torch-Pruning's README does (group magnitude, the classifier whole, rounded widths) to FEWER times
fewer multiply-accumulates: the first of CHOICES that comes near enough, else the nearest. The integer files are made by
quant_calibrated.py. The two sides exchange safetensors and ONNX.
"""

import importlib.metadata
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pruning import with_tensors
from quant_calibrated import NNCF, ORT
from torch import Tensor, nn

from penjing.export import export
from penjing.files import read_tensors, write_tensors
from penjing.train import Epoch
from penjing.zoo import fashion_resnet20, resnet20

HERE = Path(__file__).parent
EXAMPLE = (1, 1, 28, 28)
CHOICES = (  # the same share of every layer, or ranked across layers (isomorphic); channels in multiples of 16, or of 8,
    ("by layer", 16), ("isomorphic", 16), ("by layer", 8), ("isomorphic", 8),  # which the README recommends and is slower here
)  # fmt: skip
SHARES = tuple(i / 40 for i in range(4, 37))  # of the channels; those that would round a layer to nothing leave it whole
NEAR = 0.15  # of the wanted multiply-accumulates
WAYS = {"openvino": NNCF, "onnxruntime": tuple(ORT)}  # of these the more accurate one on the search split stands for a runtime


@dataclass(frozen=True)
class Built:
    """A net as it was cut and how, the same after training, its float file, and the CPU-minutes that training took."""

    cut: nn.Module
    choice: str
    net: nn.Module
    file: Path
    minutes: float


def build(python: Path, learn: Callable[..., nn.Module], fewer: float, folder: Path) -> Built:
    """Cut and train, with ``learn``, a ``fit`` that wants a net; kept in ``folder``, where what is there is taken up."""
    teacher = fashion_resnet20()
    small, choice = cut(python, teacher, fewer, folder / "cut.safetensors")
    kept = folder / "trained.safetensors"
    if not kept.exists():
        seconds: list[float] = []

        def on_epoch(epoch: Epoch) -> None:
            seconds.append(epoch.seconds)
            print(f"{folder.name}: epoch {epoch.epoch}, loss {epoch.loss:.4f}, {epoch.seconds:.0f} s", flush=True)

        net = learn(small, checkpoint=folder / "training.safetensors", on_epoch=on_epoch)
        write_tensors(kept, net.state_dict(), {"minutes": sum(seconds) * torch.get_num_threads() / 60})
    tensors, about = read_tensors(kept)
    net = with_tensors(resnet20(), tensors)
    return Built(small, choice, net, exported(net, folder / "float.onnx"), about["minutes"])


def exported(net: nn.Module, path: Path) -> Path:
    """The float file of a net; made where it is not there."""
    if not path.exists():
        export(net, torch.zeros(EXAMPLE), path)
    return path


def cut(python: Path, model: nn.Module, fewer: float, out: Path) -> tuple[nn.Module, str]:
    """The teacher as Torch-Pruning cuts it, not trained since, and in what way; kept in ``out``."""
    if not out.exists():
        weights = out.with_suffix(".whole")
        write_tensors(weights, model.state_dict())
        _ran([str(python), str(HERE / "frontier_peers.py"), str(weights), str(out), str(fewer)], OMP_NUM_THREADS="1")
    tensors, about = read_tensors(out)
    return with_tensors(resnet20(), tensors), about["choice"]


def quantized(python: Path, way: str, source: Path, calibration: Path) -> Path:
    """The integer file that a peer makes of a float one; made where it is not there."""
    out = source.with_name(way + (".xml" if way in NNCF else ".onnx"))
    if not out.exists():
        _ran([str(python), str(HERE / "quant_calibrated.py"), way, str(source), str(calibration), str(out)])
    return out


def better(rows: Mapping[str, dict[str, Any]], point: str, runtime: str) -> dict[str, Any]:
    """The peer's file that the search split prefers."""
    there = [(k, r) for k, r in rows.items() if (r["who"], r["point"], r["runtime"]) == ("peer", point, runtime)]
    key, row = max(there, key=lambda item: item[1]["search"])
    return row | {"key": key}


def versions(*pythons: Path) -> dict[str, str]:
    """Of what the peers' interpreters hold."""
    code = (
        "import json; from importlib.metadata import distributions; "
        "print(json.dumps({d.name: d.version for d in distributions()}))"
    )
    found: dict[str, str] = {}
    for python in pythons:
        found |= json.loads(subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout)
    names = {name.lower().replace("_", "-"): v for name, v in found.items()}
    return {n: names[n] for n in ("torch-pruning", "nncf", "openvino", "onnxruntime") if n in names}


def _ran(command: list[str], **more: str) -> None:
    settings = {**os.environ, "PYTHONPATH": str(HERE.parent / "src"), **more}
    ran = subprocess.run(command, capture_output=True, text=True, env=settings)
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {(ran.stderr.strip() or 'no message').splitlines()[-1]}")


# Under Torch-Pruning's interpreter.


def be_peer(weights: Path, out: Path, fewer: float) -> None:
    """Try all shares of channels for one choice after another, and keep what comes near first, or nearest."""
    tensors, _ = read_tensors(weights)
    nearest = math.inf
    best: tuple[nn.Module, dict[str, Any]] | None = None
    for how, step in CHOICES:
        for share in SHARES if nearest > NEAR else ():
            model, reached = _cut(tensors, share, how, step)
            if abs(reached / fewer - 1) < nearest:
                nearest = abs(reached / fewer - 1)
                best = model, {"share": share, "fewer": reached, "choice": f"{how}, multiples of {step}"}
    assert best is not None
    write_tensors(out, best[0].state_dict(), best[1] | {"torch-pruning": importlib.metadata.version("torch-pruning")})


def _cut(tensors: dict[str, Tensor], share: float, how: str, step: int) -> tuple[nn.Module, float]:
    """The net with that share of its channels gone, and how many times fewer multiply-accumulates it has."""
    import torch_pruning as tp  # type: ignore[import-not-found, unused-ignore]

    model, example = resnet20(), torch.zeros(EXAMPLE)
    model.load_state_dict(tensors)
    model.eval()
    before, _ = tp.utils.count_ops_and_params(model, example)
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=share,
        global_pruning=how == "isomorphic",
        isomorphic=how == "isomorphic",
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear)],
        round_to=step,
    )
    pruner.step()
    after, _ = tp.utils.count_ops_and_params(model, example)
    return model, before / after


if __name__ == "__main__":
    library = torch.library.Library("torchvision", "DEF")  # whose build may not fit that of torch
    for op in ("nms", "qnms"):
        library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.set_num_threads(1)
    be_peer(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
