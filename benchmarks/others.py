"""``penjing compress`` on other networks, for both runtimes: python benchmarks/others.py --cases FOLDER   (an hour)

A MobileNetV2 with ImageNet's weights and a linear head, a denoiser of two inputs judged in dB, and a classifier of text lines
that is given as an ONNX file; FOLDER has ``realdata.py``, which fetches them. No labels are trained on (``--epochs 0``). What
chooses and what confirms are different samples: of Fashion-MNIST's test images the last 500 and the first 2,000, of photographs
and lines others. Rows that are there are not made again. It writes others.json and others.md.
"""

import argparse
import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from quant_cases import BATCH, PIXELS, SAMPLES, Made, cases, psnr, realdata
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj
from penjing.data import fashion_mnist
from penjing.files import read_json, whole_file, write_json
from penjing.measure import machine
from penjing.result import load_result

HERE = Path(__file__).parent
CASES, KEPT = "PENJING_CASES", "PENJING_KEPT"  # in the environment of the commands that are run
TARGETS = ("openvino", "onnxruntime")
OPTIONS = ("--epochs", "0", "--labels", "0", "--batch", "8", "--set", "settings.report_batches=[1,8]")
RUNS = {  # the options beside those of all
    "MobileNetV2": ("--model", "others:mobilenet", "--data", "others:mobilenet_task", "--max-drop", "1"),
    "FFDNet": ("--model", "others:denoiser", "--data", "others:denoiser_task", "--max-drop", "0.3dB"),
    "text lines": ("--data", "others:lines_task", "--max-drop", "1"),  # the model is the file
}


@cache
def _real() -> Any:
    return realdata(Path(os.environ[CASES]))


def _case(name: str) -> Any:
    return cases(Path(os.environ[CASES]), Path(os.environ[KEPT]))[name]


def mobilenet() -> nn.Module:
    model: nn.Module = _case("P2 MobileNetV2").build()
    return model


def mobilenet_task() -> pj.Task:
    data = fashion_mnist()

    def part(images: Tensor, labels: Tensor, i: int) -> tuple[Tensor, Tensor]:
        chosen = slice(50 * i, 50 * (i + 1))
        return _real().imagenet_prep(images[chosen], PIXELS), labels[chosen]

    def some(split: Any, first: int, count: int) -> Made:
        chosen = slice(first, first + count)
        return Made(partial(part, split.images[chosen], split.labels[chosen]), count // 50)

    return pj.Task(
        train=some(data.train, 0, 600),
        search=some(data.test, 9_500, 500),
        confirm=some(data.test, 0, 2_000),
        metric=pj.measure.top1,
    )


def denoiser() -> nn.Module:
    model: nn.Module = _case("P3 FFDNet").build()
    return model


def denoiser_task() -> pj.Task:
    """What is clean is not in the calibration samples, so there the least noisy guess stands for it: the network's own."""
    case = _case("P3 FFDNet")
    net = case.build()
    with torch.no_grad():
        pairs = [((x, s), net(x, s)) for x, s in case.calibration()]
    photos = case.test()
    return pj.Task(train=pairs, search=photos[:2], confirm=photos[2:], metric=_decibels, loss=F.mse_loss)


def _decibels(run: Any, batches: Any) -> pj.Score:
    return psnr(run, batches)


_decibels.unit = "dB"  # type: ignore[attr-defined]


def lines_task() -> pj.Task:
    images, labels = _real().textlines_cls(SAMPLES // 2, seed=1)
    train = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    images, labels = _real().textlines_cls(250, seed=2)
    search = list(zip(images.split(50), labels.split(50), strict=True))
    return pj.Task(train=train, search=search, confirm=_case("P4 text lines").test(), metric=pj.measure.top1)


def row(name: str, target: str, folder: Path, work: Path) -> dict[str, Any]:
    out = work / f"{name} {target}"
    given = RUNS[name] if name != "text lines" else ("--model", str(realdata(folder).ppocr_path("cls")), *RUNS[name])
    environment = {**os.environ, CASES: str(folder), KEPT: str(work)}
    command = [sys.executable, "-m", "penjing", "compress", *given, *OPTIONS, "--target", target, "--out", str(out)]
    subprocess.run(command, cwd=HERE, env=environment, check=True)
    d = load_result(out).data
    kernels = [k for k in d["kernels"][target] if k["weighted"]]
    found = {k: d["accuracy"][k] for k in ("before", "after", "drop", "low", "high", "unit", "percent", "samples")}
    found |= {"verdict": d["verdict"]["status"], "faster": d["speedup"]["value"], "versus": d["speedup"]["versus_default"]}
    found |= {"bytes": d["size"]["bytes"], "macs": d["size"]["macs"], "int8": sum(k["precision"] == "int8" for k in kernels)}
    found |= {"minutes": sum(s["seconds"] for s in d["stages"]) / 60, "layers": len(kernels)}
    return found | {"blocks": len(read_json(out / "plan.json")["blocks"]), "tried": len(d["candidates"]) - 2}


def told(kept: dict[str, Any]) -> str:
    heads = (
        "network",
        "target",
        "verdict",
        "before",
        "after",
        "lost",
        "faster than fp32",
        "than default",
        "MACs",
        "bytes",
    )
    lines = [
        "# Other networks",
        "",
        "Written by `python benchmarks/others.py`, whose docstring says how, from [its data](others.json). Nothing is trained; "
        "times at batch 8 in the faster runtime of each, original and compressed.",
        "",
        f"| {' | '.join(heads)} | in int8 | minutes |",
        "|---|---|---|" + "---:|" * (len(heads) - 1),
    ]
    for key, r in kept["rows"].items():
        by, unit = (100, "points") if r["percent"] else (1, r["unit"])
        lost = f"{by * r['drop']:.2f} {unit} [{by * r['low']:.2f}, {by * r['high']:.2f}]"
        (m0, m1), (b0, b1) = r["macs"], r["bytes"]
        cells = [
            *key.split(", "),
            r["verdict"],
            f"{by * r['before']:.2f}",
            f"{by * r['after']:.2f}",
            lost,
            f"{r['faster']:.2f}",
        ]
        cells += [f"{r['versus']:.2f}", f"{m0 / m1:.2f}x fewer", f"{b0 / b1:.1f}x smaller", f"{r['int8']} of {r['layers']}"]
        lines.append("| " + " | ".join([*cells, f"{r['minutes']:.1f}"]) + " |")
    m = kept["machine"]
    versions = ", ".join(f"{n} {m[n]}" for n in ("torch", "onnxruntime", "openvino"))
    return "\n".join([*lines, "", f"On {m['cpu']}, {m['cores']} core(s); {versions}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True, help="a folder with realdata.py")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "others", help="where files are kept")
    parser.add_argument("--only", choices=RUNS, action="append")
    given = parser.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = read_json(HERE / "others.json") if (HERE / "others.json").exists() else {"rows": {}}
    for name in given.only or RUNS:
        for target in TARGETS:
            if f"{name}, {target}" not in kept["rows"]:
                kept["rows"][f"{name}, {target}"] = row(name, target, given.cases.absolute(), work)
                kept["machine"] = machine()
                write_json(HERE / "others.json", kept)
    with whole_file(HERE / "others.md") as part:
        part.write_text(told(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
