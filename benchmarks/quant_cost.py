"""What it takes to quantize ResNet-50 at 224 px: python benchmarks/quant_cost.py --peers FOLDER   (about five minutes)

300 random images, one at a time, in processes of their own that take turns: our ``quantize`` from the torch module to the
fake-quantized one, and ``nncf.quantize`` (performance preset) on the OpenVINO model of the same network: once converted from
the torch module in the same process, as who has a torch module must, and once read from a file, in a process that never
imports torch. Building, converting and reading the network is part of no time; imports are not either. It writes
benchmarks/quant_cost.json and .md: wall time and peak memory, the median of the turns. FOLDER is the peers' environment, see
benchmarks/quant_latency.py.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
IMAGES = 300


def ours(source: Path) -> None:
    import torch
    from quant_peers import build

    import penjing as pj

    del source
    model, example = build("resnet50", None)
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(example[0].shape, generator=generator) for _ in range(IMAGES)]
    began = time.perf_counter()
    pj.quantize(model, example, images, target="openvino")
    _say(time.perf_counter() - began)


def theirs(source: Path) -> None:
    import openvino

    _theirs(openvino.Core().read_model(source))


def theirs_from_torch(source: Path) -> None:
    import openvino
    from quant_peers import build

    del source
    model, example = build("resnet50", None)
    _theirs(openvino.convert_model(model, example_input=example, input=[(1, 3, 224, 224)]))


def _theirs(model: Any) -> None:
    import nncf  # type: ignore[import-not-found, unused-ignore]
    import numpy as np

    name = model.inputs[0].get_any_name()
    random = np.random.default_rng(1)
    images = [random.standard_normal((1, 3, 224, 224), dtype=np.float32) for _ in range(IMAGES)]
    began = time.perf_counter()
    nncf.quantize(model, nncf.Dataset(images, lambda x: {name: x}), subset_size=IMAGES)
    _say(time.perf_counter() - began)


def _say(seconds: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": round(seconds, 1), "peak_MiB": round(peak)}))


WAYS = {"penjing": ours, "nncf, from the torch module": theirs_from_torch, "nncf": theirs}


def turn(python: Path, way: str, source: Path) -> dict[str, Any]:
    """One run in a process of its own."""
    paths = os.pathsep.join([str(HERE.parent / "src"), str(HERE)])
    found = subprocess.run(
        [python, __file__, "--way", way, "--source", source],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    if found.returncode:
        raise SystemExit(f"{way} failed:\n{found.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(found.stdout.strip().splitlines()[-1])
    return told


def report(rows: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["PTQ of ResNet-50 at 224 px with 300 images; medians of turns in processes of their own.", ""]
    lines += ["| | seconds | peak memory, MiB | turns |", "|---|---:|---:|---:|"]
    middle = {way: {k: statistics.median(r[k] for r in found) for k in found[0]} for way, found in rows.items()}
    lines += [f"| {way} | {m['seconds']:.1f} | {m['peak_MiB']:.0f} | {len(rows[way])} |" for way, m in middle.items()]
    lines.append("")
    for way, peer in middle.items():
        times, memory = (middle["penjing"][k] / peer[k] for k in ("seconds", "peak_MiB"))
        if way != "penjing":
            lines.append(f"penjing / {way}: {times:.2f} of the time, {memory:.2f} of the memory.\n")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--source", type=Path)
    given = parser.parse_args()
    if given.way:
        WAYS[given.way](given.source)
        return
    if given.peers is None:
        parser.error("--peers is needed: the peers' environment")
    python = given.peers / "bin/python"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        paths = os.pathsep.join([str(HERE.parent / "src"), str(HERE)])
        subprocess.run(
            [python, HERE / "quant_peers.py", "resnet50", "float", folder], env=os.environ | {"PYTHONPATH": paths}, check=True
        )
        rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(given.turns):
            for way in WAYS:
                rows[way].append(turn(python, way, source))
                print(way, rows[way][-1], file=sys.stderr)
    (HERE / "quant_cost.json").write_text(json.dumps(rows, indent=2) + "\n")
    (HERE / "quant_cost.md").write_text(report(rows))


if __name__ == "__main__":
    main()
