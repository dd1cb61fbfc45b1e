import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from penjing.cli import demo_settings, demo_task, main
from penjing.task import check_task
from penjing.zoo import resnet20

EXAMPLE = Path(__file__).parent.parent / "examples/own_model.py"
FAST = ["--epochs", "1", "--ratios", "0,0.5"]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's example in a folder of its own, trained as the README says."""
    folder = tmp_path_factory.mktemp("mine")
    shutil.copy(EXAMPLE, folder)
    subprocess.run([sys.executable, EXAMPLE.name], cwd=folder, check=True)
    return folder


@pytest.fixture
def here(mine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(mine)
    monkeypatch.syspath_prepend(str(mine))
    return mine


def penjing(*words: str) -> int:
    """Run the command line in this process; give its exit code."""
    before, threads = sys.argv, torch.get_num_threads()
    sys.argv = ["penjing", *words]
    try:
        main()
    except SystemExit as e:
        return int(e.code or 0)
    finally:
        sys.argv = before
        torch.set_num_threads(threads)
    return 0


OWN = ["--model", "own_model:build", "--weights", "own.safetensors", "--data", "own_model:task"]


def test_your_own_network_as_in_the_readme(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert penjing("compress", *OWN, *FAST, "--max-drop", "2", "--out", "runs/own") == 0
    told = capsys.readouterr().out
    assert "Holds" in told
    assert "batch 32, openvino" in " ".join(told.split())
    data = json.loads((here / "runs/own/result.json").read_text())
    assert data["verdict"]["holds"]
    assert data["size"]["bytes"][1] < data["size"]["bytes"][0] / 4
    assert penjing("measure", "runs/own/net.onnx", "--data", "own_model:task", "--batch", "1", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    scores = {r["runtime"]: float(r["value"]) for r in rows if r["what"] == "score"}
    assert scores["onnxruntime"] == pytest.approx(data["accuracy"]["after"], abs=0.01)


@pytest.mark.usefixtures("here")
def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert penjing("inspect", *OWN, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(g["name"], g["channels"]) for g in found["groups"]] == [("0.weight", 48), ("3.weight", 96)]
    assert penjing("inspect", *OWN) == 0
    assert "model output" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--int8"]])
def test_export(here: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert penjing("export", *OWN, *flags, "--out", "exported.onnx") == 0
    size = (here / "exported.onnx").stat().st_size
    assert f"{size:,} bytes" in capsys.readouterr().out
    assert (size < 60_000) == bool(flags)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compress", "--model", "no_such:net", "--data", "own_model:task", "--out", "o"], "no module 'no_such'"),
        (["compress", "--model", "own_model:bild", "--data", "own_model:task", "--out", "o"], "has no 'bild'"),
        (["compress", *OWN, "--weights", "none.safetensors", "--out", "o"], "none.safetensors"),
        (["compress", *OWN, "--weights", "other.safetensors", "--out", "o"], "the file lacks 0.weight"),
        (["compress", *OWN, "--data", "own_model:build", "--out", "o"], "returns a penjing.Task"),
        (["compress", *OWN, "--ratios", "a,b", "--out", "o"], "--ratios"),
        (["compress", *OWN, "--ratios", "0.5,0.2", "--out", "o"], "rising shares"),
        (["compress", *OWN, "--latency", "soon", "--out", "o"], "0.25x or 3ms"),
        (["compress", *OWN, "--max-drop", "-1", "--out", "o"], "max_drop"),
        (["compress", *OWN, "--target", "tpu", "--out", "o"], "choose one of"),
        (["compress", *OWN, "--exclude", "nothing.*", "--out", "o"], "fits no parameter"),
        (["compress", *OWN, *FAST, "--latency", "0.0001x", "--out", "o"], "can be met"),
        (["measure", "none.onnx", "--data", "own_model:task"], "is not there"),
        (["frobnicate"], "No such command"),
    ],
)
def test_a_mistake_is_one_clear_line_exit_code_2_and_nothing_written(
    here: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"x": torch.zeros(1)}, here / "other.safetensors")
    assert penjing(*words) == 2
    out, told = capsys.readouterr()
    assert said in told
    assert "Traceback" not in told + out
    if words[0] in ("compress", "measure"):
        assert len(told.strip().splitlines()) == 1
    assert not (here / "o").exists()


@pytest.mark.parametrize("command", ["demo", "compress", "inspect", "measure", "export"])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert penjing(command, "--help") == 0
    assert f"Example: penjing {command}" in capsys.readouterr().out


def test_the_demo_fits_its_data() -> None:
    task = demo_task()
    assert [len(s.data) for s in (task.train, task.search, task.confirm)] == [4000, 1000, 2000]  # type: ignore[attr-defined]
    assert check_task(task, resnet20())[0].shape == (250, 1, 28, 28)
    assert demo_settings().batch == 32


def test_python_dash_m(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "penjing", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "compress" in done.stdout
