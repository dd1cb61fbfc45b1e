"""Rounding to the nearest against learned rounding: python benchmarks/quant_rounding.py   (15 minutes on one idle core)

Weights of 2 to 4 bits in all layers, the first and the last too (of at least 4), values of 8 bits; one scale in all or one for
each channel; fake-quantized modules. 256 training images without labels; judged on the 10,000 test images of Fashion-MNIST. The
embedded ResNet-20, and networks of quant_nets.py. It writes benchmarks/quant_rounding.json and .md after every row and goes on
where it was stopped.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from quant_nets import HELD_OUT, trained
from torch import nn

from penjing.data import fashion_batches, fashion_mnist
from penjing.measure import machine, top1
from penjing.quant import ROUNDINGS, Scheme, quantize
from penjing.zoo import fashion_resnet20

HERE = Path(__file__).parent
KEPT = HERE / "quant_rounding.json"
SETTINGS = {
    "4, one scale in all": Scheme(weight_bits=4, edge_bits=4, block="tensor"),
    "3, one scale in all, least squared error": Scheme(weight_bits=3, edge_bits=4, block="tensor", weight_observer="mse"),
    "2, a scale for each channel, least squared error": Scheme(weight_bits=2, edge_bits=4, weight_observer="mse"),
}
NETS = ("depthwise", "squeeze-excite", "ResNet-20")
IMAGES = 256


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {"rows": {}}
    results["machine"] = machine()
    data = fashion_mnist()
    images = [x for x, _ in fashion_batches(data.train[-HELD_OUT:][:IMAGES], 64)]
    judged = list(fashion_batches(data.test, 250))
    for name in NETS:
        model = network(name)
        for key, way in [("float", ""), *((setting, way) for setting in SETTINGS for way in ROUNDINGS)]:
            label = f"{name}: {key}" + (f": {way}" if way else "")
            if label in results["rows"]:
                continue
            began, module = time.perf_counter(), model
            if way:
                scheme = Scheme(**{**vars(SETTINGS[key]), "rounding": way})
                module = quantize(model, images[0][:1], images, scheme=scheme)
            seconds = time.perf_counter() - began
            results["rows"][label] = {"accuracy": 100 * top1(module, judged).value, "seconds": round(seconds, 1)}
            print(label, results["rows"][label], flush=True)
            KEPT.write_text(json.dumps(results, indent=1) + "\n")
            (HERE / "quant_rounding.md").write_text(table(results))


def network(name: str) -> nn.Module:
    return fashion_resnet20().eval() if name == "ResNet-20" else trained(name).model


def table(results: Mapping[str, Any]) -> str:
    rows = results["rows"]
    lines = [
        "# Rounding weights of few bits", "",
        "Written by `python benchmarks/quant_rounding.py`, whose docstring says how. Points lost against float on the 10,000 "
        "test images of Fashion-MNIST (differences of 0.3 are chance); in brackets the seconds, on a shared machine.", "",
        "| network | bits of weights | float, % | " + " | ".join(ROUNDINGS) + " |", "|---|---|---:|" + "---:|" * len(ROUNDINGS),
    ]  # fmt: skip
    for name in NETS:
        whole = rows.get(f"{name}: float", {}).get("accuracy")
        for setting in SETTINGS:
            found = [rows.get(f"{name}: {setting}: {way}") for way in ROUNDINGS]
            told = [f"{whole - r['accuracy']:.2f} ({r['seconds']:.0f} s)" if r else "" for r in found]
            if any(told):
                lines.append(f"| {name} | {setting} | {whole:.2f} | " + " | ".join(told) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
