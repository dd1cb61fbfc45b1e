"""The figures of the pages for users, computed anew from the result files of the benchmarks, word by word."""

import csv
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penjing.files import read_json

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks"


def results(name: str) -> Any:
    return read_json(RESULTS / f"{name}.json")


def latencies(runtime: str) -> dict[str, Any]:
    found: dict[str, Any] = results("quant_latency")["batches"]["1"][runtime]
    return found


def over_float(runtime: str) -> list[float]:
    return [row["over_float"]["median"] for row in latencies(runtime).values()]


def seeds(rows: dict[str, Any], start: str, value: str = "accuracy") -> list[float]:
    return [row[value] for name, row in rows.items() if name.startswith(f"{start}, seed ")]


def sparse() -> dict[str, Any]:
    return {name: row["value"] for name, row in results("sparsity").items() if name != "about"}


def slower() -> list[str]:
    demo = results("demo")
    times = {(r["runtime"], r["batch"], r["net"]): r["median"] for r in demo["latency"]}
    full, default, small = (times["openvino", 32, net] for net in ("original fp32", "original default", "compressed"))
    one = times["openvino", 1, "original default"] / times["openvino", 1, "compressed"]
    mobile = latencies("openvino")["mobilenetv2_100"]
    kept = mobile["int8"][mobile["peer"]]
    tiny = latencies("onnxruntime")["mobilenetv3_small_100"]
    other = [times["onnxruntime", 1, net] for net in ("compressed", "original fp32")]
    left = len(demo["left_in_float"]["onnxruntime"])
    pairs = [v[1]["value"] / v[0]["value"] for k, v in sparse().items() if k.startswith("latency ")]
    dense, thin = (sparse()[f"bytes {kind}"][1] for kind in ("dense", "sparse"))
    prices = results("prices")["rows"]
    unseen = [n for row in prices.values() for n in row["unseen"]]
    off = statistics.median(abs(n["predicted"] / n["measured"] - 1) for n in unseen)
    return [
        f"| original, fp32 | {full:.2f} | | |",
        f"| original, default (bfloat16) | {default:.2f} | {full / default:.1f}x | |",
        f"| compressed | {small:.2f} | {full / small:.1f}x | {default / small:.1f}x |",
        f"take {statistics.geometric_mean(over_float('openvino')):.3f} of the default's time in the geometric mean",
        f"nothing: {latencies('openvino')['mixnet_s']['over_float']['median']:.3f}",
        f"eight pairs of files took {min(pairs):.2f} to {max(pairs):.2f} of the dense file's time",
        f"{thin:,} against {dense:,} after lzma",
        f"NNCF's file leaves {kept['of'] - kept['int8']} of MobileNetV2's {kept['of']} layers in float in OpenVINO and takes "
        f"{mobile['times'][mobile['peer']]['median']:.2f} ms; ours with all {mobile['int8']['ours-openvino']['int8']} in int8 "
        f"takes {mobile['times']['ours-openvino']['median']:.2f}, and the network in the default precision "
        f"{mobile['times']['float']['median']:.2f} (",
        f"In ONNX Runtime {left} of its layers run in float, and it takes {other[0]:.2f} ms at batch 1 where the original "
        f"takes {other[1]:.2f}",
        f"on {len(unseen)} networks of widths that they had not seen, the time they foretell is {100 * off:.1f} % off",
        f"{default / small:.1f} times faster than the default at batch 32 and {one:.1f} times at batch 1",
        f"takes {tiny['times'][tiny['peer']]['median']:.2f} ms in ONNX Runtime; in float "
        f"{tiny['times']['float']['median']:.2f}",
    ]


def pruning() -> list[str]:
    with (RESULTS / "coverage.csv").open(newline="") as f:
        ours = [r for r in csv.DictReader(f) if r["by"] == "penjing"]
    proved = [float(r["total_s"]) for r in ours if r["verdict"] == "proved"]
    cases = results("pruning")["no training"]

    def lost(case: str, choice: str, stage: str) -> float:
        rows = [r[stage] for r in cases[case]["rows"] if (r["by"], r["choice"]) == ("penjing", choice)]
        return float(cases[case]["baseline"]) - statistics.mean(rows)

    tuned = results("finetune")["rows"]
    two, three, five, whole = (
        statistics.mean(seeds(tuned, row, "after")) for row in (*(f"{k}x, penjing" for k in (2, 3, 5)), "1x, the original")
    )
    return [
        f"| {len(ours)} networks of timm, half of all channels dropped | {len(proved)} proved to $10^{{-9}}$; median "
        f"{statistics.median(proved):.1f} s, at most {max(proved):.1f} s |",
        f"loses {lost('fashion_resnet20', 'structured_obs', 'none'):.2f} points when cut, "
        f"{lost('fashion_resnet20', 'structured_obs', 'refit'):.2f} after the refit",
        f"{lost('fashion_resnet20', 'l2_norm', 'none'):.2f} when cut, {lost('fashion_resnet20', 'l2_norm', 'refit'):.2f} after",
        f"{lost('ffdnet', 'structured_obs', 'refit'):.2f} dB with `structured_obs`, "
        f"{lost('ffdnet', 'l2_norm', 'refit'):.2f} dB",
        f"{two:.2f} % at 2x, {three:.2f} % at 3x, {five:.2f} % at 5x fewer; the original, trained as long, {whole:.2f} %",
        f"{100 * sparse()['full sparse']['test']:.2f} % against {100 * sparse()['full dense']['test']:.2f} % dense",
    ]


def quantization() -> list[str]:
    cases = results("quant_accuracy")["cases"]

    def lost(case: str, row: str) -> tuple[float, float]:
        found = cases[case]["rows"][row]["float"]
        return -100 * found["difference"] + 0.0, 100 * found["interval"]

    own = [lost("P1 ResNet-20", f"ours, {r}") for r in ("onnxruntime", "openvino")]
    real = [lost("P2 MobileNetV2", f"ours, {r}") for r in ("onnxruntime", "openvino")]
    peer = min(lost("P2 MobileNetV2", k)[0] for k in cases["P2 MobileNetV2"]["rows"] if k.startswith(("nncf", "ort")))
    trained = {k: v["accuracy"] for k, v in results("quant_training")["rows"].items()}
    rounded = {k: v["accuracy"] for k, v in results("quant_rounding")["rows"].items()}
    whole, nearest, gptq = (
        rounded[f"depthwise: {k}"] for k in ("float", *(f"4, one scale in all: {r}" for r in ("nearest", "gptq")))
    )
    cost = {
        way: [statistics.median(r[k] for r in rows) for k in ("seconds", "peak_MiB")]
        for way, rows in results("quant_cost").items()
    }
    return [
        f"{own[0][0]:.2f} ± {own[0][1]:.2f} points in ONNX Runtime, {own[1][0]:.2f} ± {own[1][1]:.2f} in OpenVINO",
        f"{real[0][0]:.2f} ± {real[0][1]:.2f} and {real[1][0]:.2f} ± {real[1][1]:.2f} points; the peers' best {peer:.2f}",
        *(
            f"{statistics.geometric_mean(over_float(runtime)):.3f} of {what}, at most {max(over_float(runtime)):.3f}"
            for runtime, what in (("openvino", "the runtime's own default (bf16)"), ("onnxruntime", "its float"))
        ),
        f"{trained['4 bits: not trained, seed 0']:.2f} % without training, {trained['4 bits: LSQ, seed 0']:.2f} % after "
        f"100 steps with LSQ, {trained['32 bits: not trained, seed 0']:.2f} % in float",
        f"{whole - nearest:.2f} points rounded to the nearest, {whole - gptq:.2f} by `gptq`",
        f"{trained['2 bits: not trained, seed 0']:.2f} % without training, {trained['2 bits: LSQ, seed 0']:.2f} % with LSQ",
        "{:.1f} s, {:.0f} MiB; NNCF from the torch module {:.1f} s, {:.0f} MiB, from a file {:.1f} s, {:.0f} MiB".format(
            *cost["penjing"], *cost["nncf, from the torch module"], *cost["nncf"]
        ),
    ]


def distillation() -> list[str]:
    found = results("distillation")
    rows, macs = found["rows"], found["macs"]

    def told(name: str) -> str:
        values = seeds(rows, name)
        return f"{statistics.mean(values):.2f} ± {(max(values) - min(values)) / 2:.2f} %"

    small, third = "ResNet-20, width 8", "teacher, a third"
    most = max(row["ratio of medians"] for row in results("training_overhead")["rows"].values())
    return [
        f"| {small}, 4 epochs | {macs[small] / macs['teacher']:.3f} | {told(f'{small}: labels alone')} | `dkd` "
        f"{told(f'{small}: dkd')}, `kl` and labels {told(f'{small}: kl and labels')}, `kl` {told(f'{small}: kl')} |",
        f"| depthwise, 4 epochs | {macs['depthwise'] / macs['teacher']:.3f} | {told('depthwise: labels alone')} | `dkd` "
        f"{told('depthwise: dkd')}; in three steps ",
        f"| {macs[third] / macs['teacher']:.3f} | {told(f'{third}: labels alone')} | `kl` and labels "
        f"{told(f'{third}: kl and labels')}; `kl` without labels {told(f'{third}: kl, no labels')} |",
        f"the loop costs at most {100 * (most - 1):.1f} %",
    ]


PAGES: tuple[Callable[[], list[str]], ...] = (slower, pruning, quantization, distillation)


@pytest.mark.parametrize("page", PAGES, ids=lambda f: f.__name__)
def test_figures_are_those_of_the_result_files(page: Callable[[], list[str]]) -> None:
    text = re.sub(r"\s+", " ", (ROOT / f"docs/{page.__name__}.md").read_text(encoding="utf-8"))
    assert [line for line in page() if line not in text] == []
