"""Rounding to the nearest against learned rounding: python benchmarks/quant_rounding.py   (about ten minutes on one core)

The embedded ResNet-20, weights of 2 to 4 bits (all layers; values of 8), one scale for each channel or one in all; 256 training
images without labels; judged on the 3,000 embedded test images, as fake-quantized modules. It writes
benchmarks/quant_rounding.json and .md after every row and goes on where it was stopped.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch

from penjing.data import fashion_batches, fashion_sample
from penjing.measure import cores, machine, top1
from penjing.quant import Scheme, quantize
from penjing.zoo import fashion_resnet20

HERE = Path(__file__).parent
KEPT = HERE / "quant_rounding.json"
CASES = [(4, "channel"), (4, "tensor"), (3, "channel"), (2, "channel")]
WAYS = ("nearest", "gptq", "adaround")


def main() -> None:
    torch.set_num_threads(cores())
    sample, model = fashion_sample(), fashion_resnet20()
    images = [x for x, _ in fashion_batches(sample.train, 64)][:4]
    judged = [*fashion_batches(sample.search, 250), *fashion_batches(sample.confirm, 250)]
    results: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {"rows": {}}
    results["machine"] = machine()
    results["rows"].setdefault("float", {"accuracy": 100 * top1(model, judged).value})
    for bits, block in CASES:
        for way in WAYS:
            key = f"{bits} bits, a scale for each {block}, {way}"
            if key in results["rows"]:
                continue
            began = time.perf_counter()
            scheme = Scheme(weight_bits=bits, edge_bits=bits, block=block, rounding=way)
            module = quantize(model, images[0][:1], images, scheme=scheme)
            seconds = time.perf_counter() - began
            results["rows"][key] = {"accuracy": 100 * top1(module, judged).value, "seconds": round(seconds, 1)}
            print(key, results["rows"][key], flush=True)
            KEPT.write_text(json.dumps(results, indent=1) + "\n")
            (HERE / "quant_rounding.md").write_text(table(results["rows"]))


def table(rows: dict[str, Any]) -> str:
    whole = rows["float"]["accuracy"]
    lines = [
        "# Rounding weights of few bits", "",
        "Written by `python benchmarks/quant_rounding.py`, whose docstring says how. Points lost against float "
        f"({whole:.2f} %), on 3,000 test images; in brackets the seconds it took, on a shared machine.", "",
        "| weights | " + " | ".join(WAYS) + " |", "|---|" + "---:|" * len(WAYS),
    ]  # fmt: skip
    for bits, block in CASES:
        found = [rows.get(f"{bits} bits, a scale for each {block}, {way}") for way in WAYS]
        told = [f"{whole - r['accuracy']:.2f} ({r['seconds']:.0f} s)" if r else "" for r in found]
        lines.append(f"| {bits} bits, a scale for each {block} | " + " | ".join(told) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
