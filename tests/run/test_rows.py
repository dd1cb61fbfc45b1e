import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import penjing as pj
from penjing.measure import Judgement
from penjing.result import ARTIFACT
from penjing.run import rows

EXAMPLE = Path(__file__).parents[1] / "report/example.json"


class Both(nn.Module):
    """Two inputs, one of them of integers, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.image = nn.Embedding(10, 4), nn.Conv2d(1, 4, 3)

    def forward(self, x: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.image(x).mean((2, 3)) + self.words(words).mean(1)
        return found, found.sum(1)


def data(**changed: Any) -> dict[str, Any]:
    held = json.loads(EXAMPLE.read_text())
    return {**held, "chosen": "cut", "unchanged": False, "untrained": False, **changed}


def slower(status: str = "holds", **changed: Any) -> dict[str, Any]:
    """The original in its default precision, of a status, is the faster of the two."""
    held = data(**changed)
    held["candidates"].append({"kind": "float", "status": status, "drop": 0.0})
    return held | {"speedup": held["speedup"] | {"versus_default": 0.9}}


def test_an_original_that_nothing_beats_says_so_and_is_not_to_be_compressed_less() -> None:
    said = rows.verdict(slower(unchanged=True), Judgement("holds", None))["sentence"]
    assert said.startswith(
        "Nothing faster was found within the budget, so this is the original, as fast and as large as before: holds, with "
    )
    assert "SLOWER" not in said
    assert "compress less" not in said
    assert "compress less" in rows.verdict(slower(), Judgement("holds", None))["sentence"]
    assert "compress less" not in rows.verdict(slower("over the limit"), Judgement("holds", None))["sentence"]
    failed = rows.verdict(slower(unchanged=True, chosen="original"), Judgement("does not hold", None))["sentence"]
    assert failed.startswith(
        "Nothing that was tried holds, so this is the original, as fast and as large as before: does not hold, "
    )
    assert "compress less" not in failed


@pytest.mark.parametrize(
    ("drop", "low", "high", "allowed", "said"),
    [
        (0.004, -0.001, 0.009, 0.01, "for 0.40 points of top1 lost on 2,000 samples (95 % sure on each side: -0.10 points to "
         "0.90 points; 1.00 points may be lost)."),
        (-0.48, -0.5, -0.46, None, "with 48.00 points of top1 gained on 2,000 samples (95 % sure on each side: 46.00 points to "
         "50.00 points; the drop was not limited)."),
        (-0.48, None, None, None, "with 48.00 points of top1 gained on 2,000 samples (the drop was not limited)."),
    ],
)  # fmt: skip
def test_a_gain_is_no_loss_and_other_limits_are_some(
    drop: float, low: float | None, high: float | None, allowed: float | None, said: str
) -> None:
    held = data()
    held["accuracy"] |= {"drop": drop, "low": low, "high": high}
    held["budget"]["max_drop"] = allowed
    assert rows.verdict(held, Judgement("holds", None))["sentence"].endswith(said)


def test_that_there_was_nothing_to_train_is_said() -> None:
    assert "Nothing was trained: no narrower" in rows.verdict(data(untrained=True), Judgement("holds", None))["sentence"]
    assert "trained" not in rows.verdict(data(), Judgement("holds", None))["sentence"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("classes", "printed"), [(True, "[0]"), (False, "[(1, 4), (1,)]")])
def test_the_lines_that_load_a_file_run_whatever_it_takes(tmp_path: Path, runtime: str, classes: bool, printed: str) -> None:
    example = torch.randn(1, 1, 8, 8), torch.zeros(1, 5).long()
    net = Both()
    net.words.weight.data[:, 0] = 9
    file = replace(pj.export(net, example, tmp_path / ARTIFACT, target="onnxruntime"), runtime=runtime)
    lines = rows.how_to_load(file, None, example, classes=classes)
    done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, printed), done.stderr
