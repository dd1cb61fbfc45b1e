"""Put the figures of the other benchmarks into README: python benchmarks/figures.py [--check]

They are read from the result files beside this one; with ``--check`` README is compared with them and left alone.
"""

import csv
import statistics
import sys
from pathlib import Path
from typing import Any

from penjing.files import read_json, whole_file

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- figures: benchmarks/figures.py -->\n", "<!-- end of figures -->\n"


def coverage() -> str:
    with (HERE / "coverage.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    ours, peers = ([r for r in rows if r["by"] == by] for by in ("penjing", "torch-pruning"))
    proved = [r for r in ours if r["verdict"] == "proved"]
    seconds = [float(r["total_s"]) for r in proved]
    shares = [float(r["macs_share"]) for r in proved]
    return (
        f"- **{len(proved)} of {len(ours)} networks of timm**, half of their channels "
        f"dropped, equal the original in which these "
        f"take no part to 1e-9 in float64; {sum(s <= 0.35 for s in shares)} keep at most "
        f"0.35 of their multiply-accumulates, all at "
        f"most {max(shares):.2f}; {statistics.median(seconds):.1f} s in the median and "
        f"{max(seconds):.1f} s at most on one core "
        f"that was not ours alone. Of Torch-Pruning's results "
        f"{sum(r['verdict'] == 'runs' for r in peers)} of {len(peers)} run, within 120 s each "
        "([table](benchmarks/coverage.md))."
    )


def without_training() -> str:
    cases = read_json(HERE / "pruning.json")["no training"]
    return (
        "- **Without training, with 512 images and no labels**: the demo's network cut to 1.7x fewer "
        "multiply-accumulates loses "
        f"{_lost(cases, 'fashion_resnet20', 'refit'):.2f} points on 10,000 test images, "
        f"{_lost(cases, 'fashion_resnet20', 'none'):.1f} before the refit; Torch-Pruning's cut loses "
        f"{_peer(cases, 'fashion_resnet20'):.1f} at best, once we have re-estimated its batch norms. "
        "A MobileNetV2 cut to 1.25x fewer loses "
        f"{_lost(cases, 'mobilenetv2', 'refit'):.1f} points (Torch-Pruning's cut: "
        f"{_peer(cases, 'mobilenetv2'):.1f}), a denoiser cut to 1.7x fewer, with 128 patches, "
        f"{_lost(cases, 'ffdnet', 'refit'):.1f} dB (Torch-Pruning's: {_peer(cases, 'ffdnet'):.1f}) "
        "([table](benchmarks/pruning.md))."
    )


def _lost(cases: dict[str, Any], name: str, stage: str) -> float:
    """Of structured OBS, the mean over the draws."""
    values = [r[stage] for r in cases[name]["rows"] if r["choice"] == "structured_obs"]
    return float(cases[name]["baseline"]) - statistics.mean(values)


def _peer(cases: dict[str, Any], name: str) -> float:
    """The best of Torch-Pruning's choices, as it hands them back or with batch norms re-estimated."""
    rows = [r for r in cases[name]["rows"] if r["by"] == "torch-pruning"]
    return float(cases[name]["baseline"]) - max(r[stage] for r in rows for stage in ("none", "bn") if stage in r)


def after_training() -> str:
    rows = read_json(HERE / "finetune.json")["rows"]
    told = []
    for fewer in ("2x", "3x", "5x"):
        ours, peer = (
            statistics.mean(r["after"] for key, r in rows.items() if key.startswith(f"{fewer}, {by}"))
            for by in ("penjing", "torch-pruning")
        )
        told.append(f"{fewer} fewer: {ours:.2f} % against {peer:.2f} %")
    return (
        "- **After the same 125 steps of training**, mean of three seeds, against "
        "Torch-Pruning at equal multiply-accumulates: "
        f"{'; '.join(told)} ([table](benchmarks/finetune.md))."
    )


def sparse() -> str:
    value = {k: v["value"] for k, v in read_json(HERE / "sparsity.json").items() if k != "about"}
    dense, left = value["full dense"]["test"], value["full sparse"]["test"]
    raw, packed = value["bytes dense"][1], value["bytes sparse"][1]
    ratios = [v[1]["value"] / v[0]["value"] for k, v in value.items() if k.startswith("latency ")]
    return (
        f"- **A tenth of the weights**, reached while training on all of Fashion-MNIST: "
        f"{100 * left:.2f} % against {100 * dense:.2f} % "
        f"of the dense network after the same steps. The file is {packed / raw:.2f} of "
        f"the dense one's bytes once both are compressed, "
        f"and takes {min(ratios):.2f} to {max(ratios):.2f} of its time: sparsity buys bytes, hardly any time "
        "([table](benchmarks/sparsity.md))."
    )


def latency() -> str:
    found = read_json(HERE / "quant_latency.json")["batches"]["1"]
    told = []
    for runtime, name, peer in (("openvino", "OpenVINO", "NNCF's"), ("onnxruntime", "ONNX Runtime", "`quantize_static`'s")):
        rows = [r for r in found[runtime].values() if "over_peer" in r and "over_float" in r]
        peers, floats = ([r[key]["median"] for r in rows] for key in ("over_peer", "over_float"))
        told.append(
            f"in {name} {statistics.geometric_mean(peers):.2f} of the time of {peer} file in the geometric mean over "
            f"{len(rows)} networks, at most {max(peers):.2f}, and {statistics.geometric_mean(floats):.2f} (at most "
            f"{max(floats):.2f}) of that of the network in the runtime's own float"
        )
    return f"- **Latency**, batch 1, {'; '.join(told)} ([table](benchmarks/quant_latency.md))."


def accuracy() -> str:
    cases = read_json(HERE / "quant_accuracy.json")["cases"]
    told = []
    for name in ("P1 ResNet-20", "P3 FFDNet", "P4 text lines", "depthwise", "norm-last", "U-Net"):
        (unit, times), rows = cases[name]["unit"], cases[name]["rows"]
        lost = {k: -times * r["float"]["difference"] for k, r in rows.items()}
        ours = min(lost["ours, openvino"], lost["ours, onnxruntime"])
        peer = min(v for k, v in lost.items() if k.startswith(("nncf", "ort")))
        told.append(f"{name.partition(' ')[2] or name} {ours:.2f} against {peer:.2f} {unit}".replace("-0.00", "0.00"))
    return (
        "- **What int8 loses**, with 256 images to calibrate, in the better runtime, against the best of NNCF's and "
        f"`quantize_static`'s settings: {'; '.join(told)} ([table, with intervals](benchmarks/quant_accuracy.md))."
    )


def few_bits() -> str:
    rows = read_json(HERE / "quant_training.json")["rows"]
    by = {key.split(", seed")[0]: row["accuracy"] for key, row in rows.items() if key.endswith("seed 0")}
    return (
        f"- **Four bits** for weights and values, the demo's network: {by['4 bits: not trained']:.2f} % without training, "
        f"{by['4 bits: LSQ']:.2f} % after 100 steps with learned steps, {by['32 bits: not trained']:.2f} % in float "
        "([table](benchmarks/quant_training.md))."
    )


def taught() -> str:
    found = read_json(HERE / "distillation.json")
    rows, macs = found["rows"], found["macs"]

    def mean(name: str) -> float:
        return statistics.mean(r["accuracy"] for key, r in rows.items() if key.startswith(f"{name}, seed"))

    names = {"ResNet-20, width 8": "a ResNet-20 of width 8", "depthwise": "a depthwise network"}
    told = [
        f"{words} with {macs[name] / macs['teacher']:.3f} of its teacher's multiply-accumulates gets "
        f"{mean(f'{name}: dkd'):.1f} % from teacher and labels (DKD), {mean(f'{name}: labels alone'):.1f} % from labels alone"
        for name, words in names.items()
    ]
    cut = [mean(f"teacher, a third: {way}") for way in ("kl and labels", "kl, no labels", "labels alone")]
    return (
        f"- **What a teacher gives**, after the same steps on 16,000 images: {'; '.join(told)}. The demo's network cut to a "
        f"third of its multiply-accumulates gets {cut[0]:.2f} % after an epoch with teacher and labels, "
        f"{cut[1]:.2f} % with the teacher and no label, {cut[2]:.2f} % with labels alone "
        "([table](benchmarks/distillation.md))."
    )


NAMES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


def frontier() -> str:
    found = read_json(HERE / "frontier.json")
    peers = {"openvino": "NNCF", "onnxruntime": "`quantize_static`"}
    told = []
    for runtime, name in NAMES.items():
        rows = [r for r in found["against"] if r["runtime"] == runtime]
        points = ", ".join(f"{r['points'][0]:+.2f} points in {r['time']:.2f} of the time" for r in rows)
        fastest = rows[-1]["faster"]
        equal = f"; as accurate as the peer's smallest it is {fastest:.1f} times faster" if fastest else ""
        told.append(f"in {name}, against {peers[runtime]}, {points}{equal}")
    fewer = ", ".join(dict.fromkeys(r["point"] for r in found["against"]))
    return (
        f"- **Against Torch-Pruning, the same {found['about']['steps']:,} steps of training, then each runtime's own "
        f"quantization**, where that has {fewer} fewer multiply-accumulates: {'; '.join(told)} "
        "([table](benchmarks/frontier.md))."
    )


def headline() -> str:
    told = []
    for where, rows in read_json(HERE / "headline.json").items():
        parts = []
        for name, r in rows.items():
            both = ", the control's included" if r.get("control_counted") else ""
            trained = f", {r['cpu_minutes']:.0f} CPU-minutes of training{both}" if r["cpu_minutes"] else ""
            parts.append(
                f"{name}{trained}: {r['faster']:.1f} times faster than fp32 ({r['faster_than_default']:.1f} than the default "
                f"precision) for {r['drop']:.2f} points"
            )
        told.append(f"on {where}: {'; '.join(parts)}")
    return (
        "- **The demo's network on all of Fashion-MNIST**, batch 32, points lost of 10,000 images: "
        f"{'. And '.join(told)} ([table](benchmarks/headline.md))."
    )


def block() -> str:
    pruning = [headline(), frontier(), coverage(), without_training(), after_training(), sparse()]
    return "\n".join([*pruning, latency(), accuracy(), few_bits(), taught()]) + "\n"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    held, tail = rest.split(END)
    if "--check" in sys.argv:
        sys.exit(0 if held == block() else "README's figures are not those of the result files; run benchmarks/figures.py")
    with whole_file(README) as part:
        part.write_text(head + BEGIN + block() + END + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
