"""Prune real trained networks and prove it: python benchmarks/cases.py --cases FOLDER   (a few minutes)

The folder has ``realdata.py``, which fetches the networks: MobileNetV2 with a linear head, a denoiser of two inputs, and a
classifier of text lines that comes as ONNX (by onnx2torch). Beside them the embedded teacher. Half of the channels of every
group go; the result is compared in float64 with the original in which they take no part. It writes benchmarks/cases.json.
"""

import argparse
import importlib.util
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penjing.files import write_json
from penjing.graph import capture, find_channels
from penjing.graph.layers import macs
from penjing.measure import machine
from penjing.prune import RewrittenWarning, plan_channels, prune_channels, verify_pruned
from penjing.zoo import fashion_resnet20

HERE = Path(__file__).parent
Made = tuple[nn.Module, tuple[Tensor, ...]]


def networks(real: Any) -> dict[str, Callable[[], Made]]:
    """Each with an example of its inputs."""
    noise = torch.full((2, 1, 1, 1), real.SIGMA)
    return {
        "P1 ResNet-20, Fashion-MNIST": lambda: (fashion_resnet20(), (torch.randn(2, 1, 28, 28),)),
        "P2 MobileNetV2, ImageNet, and a linear head": lambda: (
            nn.Sequential(real.mobilenetv2(), nn.Linear(1280, 10)).eval(),
            (torch.randn(2, 3, 96, 96),),
        ),
        "P3 FFDNet, denoiser": lambda: (real.ffdnet(), (torch.rand(2, 3, 64, 64), noise)),
        "P4 PP-OCR text lines, ONNX": lambda: (real.ppocr("cls"), (torch.randn(2, 3, 48, 192),)),
    }


def pruned(model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, Any]:
    began = time.perf_counter()
    plan = plan_channels(model, example, 0.5)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", RewrittenWarning)
        small = prune_channels(model, plan, example)
    seconds = time.perf_counter() - began
    graph = capture(model, example)
    return {
        "error": verify_pruned(model, small, plan, example),
        "macs_share": macs(capture(small, example)) / macs(graph),
        "groups": len(find_channels(graph).groups),
        "rewritten": any(w.category is RewrittenWarning for w in told),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True, help="a folder with realdata.py")
    spec = importlib.util.spec_from_file_location("realdata", parser.parse_args().cases / "realdata.py")
    assert spec is not None and spec.loader is not None
    real = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(real)
    torch.manual_seed(0)
    rows = {}
    for name, make in networks(real).items():
        rows[name] = pruned(*make())
        print(name, rows[name], flush=True)
    write_json(HERE / "cases.json", {"machine": machine(), "networks": rows})


if __name__ == "__main__":
    main()
