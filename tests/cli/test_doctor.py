import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
import torch

from penjing.cli import doctor
from penjing.cli.doctor import Check, examine
from penjing.errors import RuntimeMissing
from penjing.export import RUNTIMES
from penjing.measure import cores
from penjing.quant import target_named
from tests.test_cli import penjing

Patch = pytest.MonkeyPatch


def refuse(error: Exception) -> Callable[..., Any]:
    def raises(*_: object, **__: object) -> Any:
        raise error

    return raises


@pytest.fixture
def quick(monkeypatch: Patch) -> None:
    """Without the runtimes, which take seconds."""
    monkeypatch.setattr(doctor, "_runtimes", lambda: iter(()))


def told(capsys: pytest.CaptureFixture[str], code: int) -> dict[str, dict[str, Any]]:
    """What ``doctor --json`` says, by the names of its checks."""
    assert penjing("doctor", "--json") == code
    said = json.loads(capsys.readouterr().out)
    assert said["works"] is (code == 0)
    return {c["name"]: c for c in said["checks"]}


def test_here_a_run_can_work_and_both_runtimes_run(capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, 0)
    assert all(c["ok"] for c in said.values() if c["required"])
    for name in RUNTIMES:
        assert "of 3 layers in int8; outputs as torch's" in said[f"{name} runs"]["found"]
    assert said["torch"]["found"] == torch.__version__
    named = {text.split(">=")[0].strip().lower() for text in requires("penjing") or () if "extra" not in text}
    assert len(said.keys() & named) + int(said["other packages"]["found"].split()[0]) == len(named)


@pytest.mark.slow
def test_torch_takes_as_many_threads_as_the_environment_says() -> None:
    used = 1  # of more than it has cores, torch takes fewer
    script = [sys.executable, "-m", "penjing", "doctor", "--json"]
    done = subprocess.run(script, env=os.environ | {"OMP_NUM_THREADS": str(used)}, capture_output=True, text=True, check=False)
    said = {c["name"]: c["found"] for c in json.loads(done.stdout)["checks"]}
    assert f"threads of torch: {used}, of runtimes: {cores()}" in said["cores"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("older", [False, True])
def test_bits_of_weights_are_those_that_quantize_gives(
    older: bool, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("cli.doctor", "quant.targets"):
        monkeypatch.setattr(f"penjing.{module}.overflows", lambda: older)
    bits = target_named("openvino").weight_bits
    (said,) = (c["advice"] for name, c in told(capsys, 0).items() if "VNNI" in name)
    assert (f"weights get {bits} bits" in said) == older


@pytest.mark.usefixtures("quick")
def test_a_table_says_what_to_do(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor.console, "_width", 200)
    monkeypatch.setattr(doctor, "_gpus", refuse(RuntimeError("none")))
    assert penjing("doctor") == 0
    said = capsys.readouterr().out
    assert "A run can work here." in said
    assert "training runs on the processor" in said


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("gone", "line", "advice", "code"),
    [
        ("openvino", "openvino", "pip install 'openvino>=", 1),
        ("safetensors", "safetensors", "pip install 'safetensors>=", 1),  # one of those that have no line when they are there
        ("kornia", "extra augment: kornia", "pip install 'penjing[augment]'", 0),
        ("tensorboardX", "extra tensorboard: tensorboardX", "pip install 'penjing[tensorboard]'", 0),
    ],
)
def test_a_package_that_is_missing(
    gone: str, line: str, advice: str, code: int, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = doctor.version

    def version(package: str) -> str:
        if package.lower() == gone.lower():
            raise PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(doctor, "version", version)
    found = {name.lower(): c for name, c in told(capsys, code).items()}[line.lower()]
    assert (found["ok"], found["required"], found["found"]) == (False, code == 1, "not installed")
    assert found["advice"].startswith(advice)
    monkeypatch.setattr(doctor.console, "_width", 200)
    assert penjing("doctor") == code
    out = capsys.readouterr().out
    assert advice in out  # with its brackets
    assert ("Something required is missing" in out) == (code == 1)


@pytest.mark.usefixtures("quick")
def test_a_package_that_is_too_old(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda package: "1.9.1+cpu" if package == "torch" else real(package))
    assert "1.9.1+cpu, older than 2.9" in told(capsys, 1)["torch"]["found"]


@pytest.mark.usefixtures("quick")
def test_sources_that_are_not_installed(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "requires", refuse(PackageNotFoundError("penjing")))
    assert "pip install -e ." in told(capsys, 1)["penjing"]["advice"]


def test_a_runtime_that_does_not_load_and_one_that_computes_something_else(monkeypatch: Patch) -> None:
    monkeypatch.setattr(RUNTIMES["openvino"], "load", refuse(RuntimeMissing("OpenVINO is not installed; pip install openvino")))
    real = RUNTIMES["onnxruntime"].load
    monkeypatch.setattr(RUNTIMES["onnxruntime"], "load", lambda *a: lambda arrays: [2 * y for y in real(*a)(arrays)])
    checks = {c.name: c for c in doctor._runtimes()}
    assert checks["quantize and export"].ok
    assert not checks["openvino runs"].ok and "not installed" in checks["openvino runs"].found
    assert not checks["onnxruntime runs"].ok and "off by" in checks["onnxruntime runs"].found


def test_without_a_file_no_runtime_is_tried(monkeypatch: Patch) -> None:
    monkeypatch.setattr(doctor, "export", refuse(RuntimeMissing("onnx is not installed\nmore")))
    first, *others = doctor._runtimes()
    assert first == Check("quantize and export", False, "onnx is not installed", first.advice)
    assert [c.found for c in others] == ["not tried: there is no file to run"] * len(RUNTIMES)


@pytest.mark.usefixtures("quick")
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("PENJING_CACHE", str(tmp_path / "file"))
    said = told(capsys, 1)["cache"]
    assert str(tmp_path / "file") in said["found"]
    assert "PENJING_CACHE" in said["advice"]


@pytest.mark.usefixtures("quick")
def test_a_processor_without_integers_still_works(monkeypatch: Patch) -> None:
    here = {"cpu": "an old one", "features": ["avx2"], "system": "Linux"}
    monkeypatch.setattr(doctor, "machine", lambda: here)
    vnni = next(c for c in examine() if "VNNI" in c.name)
    assert (vnni.ok, vnni.required, vnni.found) == (False, False, "no")
    monkeypatch.setattr(doctor, "machine", lambda: here | {"system": "Darwin", "features": []})
    assert next(c for c in examine() if "VNNI" in c.name).found == "not known on Darwin"


@pytest.mark.usefixtures("quick")
def test_an_old_python(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor.platform, "python_version_tuple", lambda: ("3", "10", "4"))
    assert "3.11" in told(capsys, 1)["python"]["advice"]
