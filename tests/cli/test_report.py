import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.finished import finished
from tests.test_cli import penjing


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, ["top1 0.9445 0.9410 -0.35 points", "-0.55 points", "trained on for the same 840", "memory", "4.2x smaller"]),
        (
            {"verdict": {"status": "cannot be told", "sentence": "Cannot be told.", "advice": "[More] images."}},
            ["[More] images."],
        ),
        (
            {"accuracy": {"metric": "psnr", "percent": False, "unit": "dB", "before": 31.5, "after": 31.25}, "control": None},
            ["psnr 31.5000 31.2500 -0.25 dB"],
        ),
    ],
)
def test_report(tmp_path: Path, parts: dict[str, Any], said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(tmp_path / "done", parts)
    for _ in range(2):  # again over its own page
        assert penjing("report", str(folder)) == 0
        out = capsys.readouterr().out
        told = " ".join("".join(c if c.isascii() else " " for c in out).split())
        data = json.loads((folder / "result.json").read_text())
        assert all(part in told for part in [*said, data["verdict"]["sentence"][:40]])
        assert f"the report:  {folder / 'report.html'}" in out
    assert "points" not in told or data["accuracy"]["percent"] or "points" in data["verdict"]["sentence"]
    assert "<html" in (folder / "report.html").read_text()
    assert penjing("report", str(folder), "--json") == 0
    assert json.loads(capsys.readouterr().out) == data


def test_report_refuses_another_network_than_the_one_that_was_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path / "done", {})
    (folder / "net.onnx").write_bytes(b"another")
    assert penjing("report", str(folder)) == 2
    assert "is not the file that the run wrote" in capsys.readouterr().err
    assert not (folder / "report.html").exists()
