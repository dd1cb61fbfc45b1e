import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import penjing as pj
from penjing.recipe import dump_recipe, load_model, look_in, read_recipe, recipe_schema
from penjing.result import load_result
from penjing.settings import Settings
from tests.cli.finished import finished
from tests.test_cli import EXAMPLE, penjing

Asked = list[tuple[nn.Module, pj.Task, dict[str, Any]]]
RECIPE = """
model: asked_model:build
data: asked_model:task
weights: own.safetensors
out: runs/asked
budget: {max_drop: 2 points, bytes: 100kB}
settings:
  epochs: 3
  training: {ema: 0.9}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network, its weights and a recipe; another one is the working directory."""
    folder = tmp_path.resolve() / "mine"
    folder.mkdir()
    shutil.copy(EXAMPLE, folder / "asked_model.py")
    (folder / "asked.yaml").write_text(RECIPE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "asked_model", raising=False)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What ``compress`` is asked for; it is not run."""
    found: Asked = []

    def compress(model: nn.Module, task: pj.Task, **rest: Any) -> pj.Result:
        found.append((model, task, rest))
        return load_result(finished(rest["out"], {}))

    monkeypatch.setattr("penjing.cli.compress.compress", compress)
    return found


def test_a_recipe_says_what_to_do(mine: Path, asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    look_in(mine)
    own = load_model("asked_model:build").state_dict()
    save_file(own, mine / "own.safetensors")
    assert penjing("compress", str(mine / "asked.yaml")) == 0
    assert "Holds" in capsys.readouterr().out
    model, _, rest = asked.pop()
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())
    assert (rest["out"], rest["target"]) == (mine / "runs/asked", "onnxruntime")
    assert rest["budget"] == pj.Budget(max_drop=0.02, bytes="100kB")
    assert rest["settings"] == Settings(epochs=3, training=replace(Settings().training, ema=0.9))
    assert rest["recipe"] == read_recipe(mine / "asked.yaml")


WORDS = """--weights other.safetensors --target openvino --out there --max-drop none --latency 0.5x --memory 2MB --minutes 2
    --epochs 1 --labels 0 --lr 0.5 --batch 8 --keep-sums --exclude a.* --exclude b.* --threads 1 --fresh
    --set settings.attempts=2"""


def test_options_go_before_the_recipe(mine: Path, asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    look_in(mine)
    save_file(load_model("asked_model:build").state_dict(), "other.safetensors")
    assert penjing("compress", str(mine / "asked.yaml"), *WORDS.split(), "--json") == 0
    assert json.loads(capsys.readouterr().out)["verdict"]["status"] == "holds"
    rest = asked.pop()[2]
    assert (rest["out"], rest["target"]) == (Path("there"), "openvino")
    assert rest["budget"] == pj.Budget(max_drop=None, latency="0.5x", bytes="100kB", memory="2MB")
    training = replace(Settings().training, ema=0.9, lr=0.5)
    assert rest["settings"] == Settings(
        minutes=2, epochs=1, labels=0, training=training, batch=8, cut_sums=False, exclude=("a.*", "b.*"), threads=1,
        fresh=True, attempts=2,
    )  # fmt: skip
    written = rest["recipe"]
    assert (written.settings, written.budget, written.target) == (rest["settings"], rest["budget"], "openvino")
    assert (written.weights, written.modules) == (Path("other.safetensors"), mine)


def test_what_options_alone_asked_for_can_be_asked_for_again_elsewhere(
    mine: Path, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path.cwd()
    shutil.copy(mine / "asked_model.py", ".")
    assert penjing("compress", "--model", "asked_model:build", "--data", "asked_model:task", "--out", "there") == 0
    dump_recipe(asked.pop()[2]["recipe"], here / "there/recipe.yaml")
    monkeypatch.chdir(tmp_path)
    assert read_recipe(here / "there/recipe.yaml").modules == here


@pytest.mark.parametrize(("drop", "share"), [("0.5", 0.005), ("0", 0.0), ("1.5 units", 1.5), ("2%", 0.02)])
def test_a_drop_is_in_points_unless_it_has_another_unit(mine: Path, asked: Asked, drop: str, share: float) -> None:
    shutil.copy(mine / "asked_model.py", ".")
    words = ["--model", "asked_model:build", "--data", "asked_model:task", "--max-drop", drop, "--out", "there"]
    assert penjing("compress", *words) == 0
    assert asked.pop()[2]["budget"] == pj.Budget(max_drop=share)


def test_decibels_are_for_metrics_that_have_some(mine: Path, asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(mine / "asked_model.py", ".")
    look_in(Path.cwd())
    words = ["--model", "asked_model:build", "--data", "asked_model:task", "--max-drop", "0.3dB", "--out", "there"]
    assert penjing("compress", *words) == 2
    assert "the metric is a share, which has no dB; give points" in capsys.readouterr().err
    assert not asked
    Path("loud.py").write_text(
        "from dataclasses import replace\nimport asked_model, penjing as pj\n"
        "def loud(run, batches): return pj.measure.top1(run, batches)\nloud.unit = 'dB'\n"
        "def task(): return replace(asked_model.task(), metric=loud)\n"
    )
    words[3] = "loud:task"
    assert penjing("compress", *words) == 0
    assert asked.pop()[2]["budget"] == pj.Budget(max_drop=0.3)
    words[5] = "1"  # which would be 0.01 dB
    assert penjing("compress", *words) == 2
    assert "are hundredths of a share, and the metric is none" in capsys.readouterr().err


def test_recipe_prints_one_to_begin_with_and_the_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert penjing("recipe") == 0
    (tmp_path / "recipe.yaml").write_text(capsys.readouterr().out)
    assert read_recipe(tmp_path / "recipe.yaml").settings == Settings()
    assert penjing("recipe", "--schema") == 0
    assert json.loads(capsys.readouterr().out) == recipe_schema()


@pytest.mark.usefixtures("asked")
def test_the_unit_of_a_recipes_drop_is_checked_as_well(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"model": "asked_model:build", "data": "asked_model:task", "out": "there", "budget": {"max_drop": "0.3 dB"}}
    (mine / "unit.yaml").write_text(json.dumps(keys))
    assert penjing("compress", str(mine / "unit.yaml")) == 2
    assert "a drop of 0.3 dB: the metric is a share, which has no dB" in capsys.readouterr().err
    assert penjing("compress", str(mine / "unit.yaml"), "--set", "budget.max_drop=1 point") == 0
