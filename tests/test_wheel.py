"""The wheel holds all that the library needs, and works where there is no repository."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("hatchling")  # builds the wheel, without a network

ROOT = Path(__file__).parent.parent
NOT_CODE = {
    p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src/penjing").rglob("*") if p.is_file() and p.suffix != ".py"
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    words = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "-w",
        str(folder),
    ]
    done = subprocess.run([sys.executable, *words, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("penjing-*.whl")
    return made


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as held:
        held.extractall(folder)
    return folder


def alone(unpacked: Path, *words: str) -> str:
    """What Python says in a folder of its own, with the unpacked wheel before everything that is installed."""
    there = {**os.environ, "PYTHONPATH": os.pathsep.join([str(unpacked), os.environ.get("PYTHONPATH", "")])}
    there |= {"PENJING_CACHE": str(unpacked / "cache"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, *words], cwd=unpacked.parent, env=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_holds_what_is_not_code_and_nothing_of_the_repository(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
    carried = {name for name in NOT_CODE if "__pycache__" not in name}
    assert carried <= names
    for least in ("penjing/py.typed", "penjing/data/fashion_sample.npz", "penjing/data/FASHION_MNIST_LICENSE"):
        assert least in names
    assert {Path(name).suffix for name in carried} >= {".safetensors", ".npz", ".jinja", ".css", ".js"}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"penjing"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any("__pycache__" in name or name.endswith(".part") for name in names)


def test_its_metadata_names_version_extras_and_command(unpacked: Path) -> None:
    (about,) = unpacked.glob("penjing-*.dist-info")
    text = (about / "METADATA").read_text()
    assert "Provides-Extra: augment" in text and "Provides-Extra: tensorboard" in text
    assert "Requires-Python: >=3.11" in text
    assert "penjing = penjing.cli:main" in (about / "entry_points.txt").read_text()


def test_it_imports_and_the_doctor_finds_all_that_a_run_needs(unpacked: Path) -> None:
    code = (
        "import penjing, importlib.metadata as m; print(penjing.__file__); assert penjing.__version__ == m.version('penjing')"
    )
    assert alone(unpacked, "-c", code).strip() == str(unpacked / "penjing/__init__.py")
    said = json.loads(alone(unpacked, "-m", "penjing", "doctor", "--json"))
    assert said["works"] is True
    assert next(c for c in said["checks"] if c["name"].startswith("embedded"))["ok"]
