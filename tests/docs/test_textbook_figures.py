"""The figures of the textbook's page, computed anew from the result files of the benchmarks: line by line what stands there."""

import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from penjing.files import read_json

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs/textbook.md", ROOT / "benchmarks"


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def sparse_values() -> dict[str, Any]:
    return {name: row["value"] for name, row in read_json(RESULTS / "sparsity.json").items() if name != "about"}


def seeds(file: str, start: str, value: str) -> float:
    """The mean over the seeds of a row."""
    rows = read_json(RESULTS / file)["rows"]
    return statistics.fmean(row[value] for name, row in rows.items() if name.startswith(f"{start}, seed "))


def structure() -> list[str]:
    found = sparse_values()
    kinds = (
        ("dense, float32", "bytes dense", "", 0),
        ("a tenth of the weights, float32", "bytes sparse", "", 1),
        ("dense, int8", "bytes dense, int8", ", int8", 0),
        ("a tenth of the weights, int8", "bytes sparse, int8", ", int8", 1),
    )
    rows = ["| file | bytes | bytes after lzma | time, OpenVINO | time, ONNX Runtime |", "|---|---:|---:|---:|---:|"]
    for label, size, suffix, place in kinds:
        raw, packed = found[size]
        times = [
            found[f"latency {runtime}, batch 32{suffix}"][place]["value"] / found[f"latency {runtime}, batch 32"][0]["value"]
            for runtime in ("openvino", "onnxruntime")
        ]
        rows.append(f"| {label} | {raw:,} | {packed:,} | {times[0]:.2f} | {times[1]:.2f} |")
    return rows


def integers() -> list[str]:
    rows = ["| runtime | geometric mean | least | most |", "|---|---:|---:|---:|"]
    for runtime, name in (("openvino", "OpenVINO"), ("onnxruntime", "ONNX Runtime")):
        nets = read_json(RESULTS / "quant_latency.json")["batches"]["1"][runtime].values()
        ratios = [net["over_float"]["median"] for net in nets]
        assert len(ratios) == 14
        rows.append(f"| {name} | {statistics.geometric_mean(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |")
    return rows


def channels() -> list[str]:
    rows = ["| multiply-accumulates | before training, % | after, % |", "|---|---:|---:|"]
    for label, row in (("all", "1x, the original"), *((f"{k}x fewer", f"{k}x, penjing") for k in (2, 3, 5))):
        before, after = (seeds("finetune.json", row, when) for when in ("before", "after"))
        rows.append(f"| {label} | {before:.2f} | {after:.2f} |")
    return rows


def bits() -> list[str]:
    int8 = read_json(RESULTS / "quant_accuracy.json")["cases"]["P1 ResNet-20"]["rows"]
    rows = [
        "| bits | trained | accuracy, % |",
        "|---|---|---:|",
        f"| 32, float | no | {100 * int8['float, openvino']['score']:.2f} |",
        f"| 8, file in OpenVINO | no | {100 * int8['ours, openvino']['score']:.2f} |",
    ]
    for label, how in (("4", "not trained"), ("4", "LSQ"), ("2", "not trained"), ("2", "LSQ+")):
        value = seeds("quant_training.json", f"{label} bits: {how}", "accuracy")
        rows.append(f"| {label} | {'no' if how == 'not trained' else f'100 steps, {how}'} | {value:.2f} |")
    return rows


def zeros() -> list[str]:
    found = {name: 100 * value for name, value in sparse_values().items() if name.startswith("trained ")}
    rows = ["| weights that stay | the chapter's method, % | the largest at once, then trained, % |", "|---|---:|---:|"]
    for label, density in (("half", "0.5"), ("a tenth", "0.1")):
        rows.append(f"| {label} | {found[f'trained {density} textbook']:.2f} | {found[f'trained {density} at once']:.2f} |")
    return [*rows, f"| all, trained as long | | {found['trained 1.0 dense']:.2f} |"]


def demo() -> list[str]:
    found = read_json(RESULTS / "demo.json")
    accuracy, size, speed = found["accuracy"], found["size"], found["speedup"]
    assert speed["batch"] == 32
    labels = {"macs": "multiply-accumulates", "bytes": "bytes of the file", "memory": "bytes of memory"}
    rows = [f"| {labels.get(key, key)} | {a:,} | {b:,} | {a / b:.1f}x |" for key, (a, b) in size.items()]
    times = {r["net"]: r["median"] for r in found["latency"] if (r["runtime"], r["batch"]) == ("openvino", 32)}
    return [
        "| | original | compressed | |",
        "|---|---:|---:|---:|",
        f"| accuracy, % | {100 * accuracy['before']:.2f} | {100 * accuracy['after']:.2f} | "
        f"{-100 * accuracy['drop']:.2f} points |",
        *rows,
        *(
            f"| ms, the {net} | {ms:.2f} | {times['compressed']:.2f} | {ms / times['compressed']:.1f}x |"
            for net, ms in times.items()
            if net != "compressed"
        ),
    ]


def generalization() -> list[str]:
    found = read_json(RESULTS / "demo.json")
    accuracy, stages = found["accuracy"], {s["name"]: s["gave"] for s in found["stages"]}
    return [
        f"- {accuracy['worse']} of {accuracy['samples']:,} images are newly wrong, {accuracy['better']} newly right; "
        f"{accuracy['test']}: p = {accuracy['p']:.2f}",
        f"- the drop is {100 * accuracy['drop']:.2f} points; 95 % sure on each side: {100 * accuracy['low']:.2f} to "
        f"{100 * accuracy['high']:.2f}",
        f"- classes, flips, calibration and corruptions: {stages['see whether it generalizes']}",
        f"- the original, trained on the demo's few images for as long, loses more: "
        f"{100 * found['control']['drop']:.2f} points",
    ]


def training() -> list[str]:
    cut = read_json(RESULTS / "pruning.json")["no training"]["fashion_resnet20"]
    chosen = next(r for r in cut["rows"] if r["choice"] == "structured_obs")
    student, third = "ResNet-20, width 8", "teacher, a third"
    taught = {
        f"{net}: {how}": seeds("distillation.json", f"{net}: {how}", "accuracy")
        for net, hows in ((student, ("labels alone", "dkd")), (third, ("labels alone", "kl and labels")))
        for how in hows
    }
    two = [seeds("quant_training.json", f"2 bits: {how}", "accuracy") for how in ("not trained", "LSQ+")]
    return [
        "| network | without, % | with, % | what helps |",
        "|---|---:|---:|---|",
        f"| channels cut to {chosen['fewer']:.1f}x fewer multiply-accumulates, not trained | {chosen['none']:.2f} | "
        f"{chosen['refit']:.2f} | least squares |",
        f"| a quarter as wide, from new weights | {taught[f'{student}: labels alone']:.2f} | {taught[f'{student}: dkd']:.2f} | "
        "teacher (DKD) and labels, not labels alone |",
        f"| cut to a third of the multiply-accumulates | {taught[f'{third}: labels alone']:.2f} | "
        f"{taught[f'{third}: kl and labels']:.2f} | teacher (KL) and labels, not labels alone |",
        f"| two bits | {two[0]:.2f} | {two[1]:.2f} | 100 steps with learned steps (LSQ+) |",
    ]


def cost() -> list[str]:
    rows = ["| network | a loop of one's own, ms a step | `pj.fit` / that |", "|---|---:|---:|"]
    for name, row in read_json(RESULTS / "training_overhead.json")["rows"].items():
        rows.append(f"| {name} | {row['milliseconds a step']:.1f} | {row['ratio of medians']:.3f} |")
    return rows


MEASURED = (structure, integers, channels, bits, zeros, demo, generalization, training, cost)


@pytest.mark.parametrize("lines", MEASURED, ids=lambda f: f.__name__)
def test_figures_are_those_of_the_result_files(text: str, lines: Any) -> None:
    found = re.search(rf"^<!-- measured: {lines.__name__} -->\n(.*?)^<!-- end -->$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    assert found[1].splitlines() == lines()


def test_there_are_no_figures_elsewhere_on_the_page(text: str) -> None:
    assert re.findall(r"<!-- measured: (\w+) -->", text) == [f.__name__ for f in MEASURED]
    other = r"<!-- measured.*?<!-- end -->|^```.*?^```$|^\$\$.*?^\$\$$|`[^`\n]*`|\[\d+\.\d+\]\(https?:[^)]*\)"
    prose = re.sub(other, "", text, flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"\d+\.\d\d|\d %", prose) == []
