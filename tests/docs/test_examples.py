"""What lies in examples and recipes works: recipes are valid and short, notebooks run and their stored outputs are small."""

import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penjing.cli import demo_budget, demo_settings
from penjing.data import fashion_sample
from penjing.recipe import load_model, load_task, look_in, read_recipe
from penjing.search import Budget
from penjing.task import check_task

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
NOISE = re.compile(r"/tmp|/home|/root|u001b|\\\\r|it/s|Traceback|Warning")  # of one machine, or of bars


def test_there_are_enough_of_them() -> None:
    assert len(RECIPES) >= 5
    assert [p.name for p in NOTEBOOKS] == ["by_hand.ipynb", "compress.ipynb"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_a_recipe_is_short_and_says_how_it_is_run(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < 25
    assert max(map(len, lines)) <= 128
    assert lines[0] == "# yaml-language-server: $schema=recipe.schema.json"
    assert f"penjing compress recipes/{path.name}" in lines[2]


def test_the_networks_of_the_recipes_take_their_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))  # look_in changes the path; this puts it back
    pairs = {(recipe.model, recipe.data): recipe for recipe in map(read_recipe, RECIPES)}
    assert len(pairs) >= 2
    for recipe in pairs.values():
        assert recipe.modules is not None
        look_in(recipe.modules)
        assert check_task(load_task(recipe.data), load_model(recipe.model))


def test_no_two_recipes_ask_for_the_same() -> None:
    asked = [(recipe.model, recipe.target, recipe.budget, recipe.settings) for recipe in map(read_recipe, RECIPES)]
    assert len({repr(a) for a in asked}) == len(RECIPES)
    assert {a[1] for a in asked} == {"onnxruntime", "openvino"}
    limits = {name for _, _, budget, _ in asked for name in budget.limits()}
    assert limits >= {"latency", "bytes", "memory"}
    assert any(budget.goal == "accuracy" and budget != Budget() for _, _, budget, _ in asked)


def test_the_recipe_of_the_demo_is_the_demo() -> None:
    recipe, asked = read_recipe(ROOT / "recipes/demo.yaml"), demo_budget()
    assert recipe.settings == demo_settings()
    assert replace(recipe.budget, latency=asked.latency).limits() == asked.limits()  # which follows the processor
    assert (recipe.budget.max_drop, recipe.budget.goal) == (asked.max_drop, asked.goal)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_is_stored_as_it_ran_once_from_above_to_below(path: Path) -> None:
    held: dict[str, Any] = json.loads(path.read_text())
    cells = [c for c in held["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    outputs = json.dumps([c["outputs"] for c in cells])
    assert not NOISE.search(outputs.replace("\\n", "\n"))
    assert path.stat().st_size < 30_000
    assert any("%" in json.dumps(c["outputs"]) for c in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cell by cell, as Jupyter would, on fewer images."""
    monkeypatch.chdir(path.parent)
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what it writes goes with the test
    sample = fashion_sample()
    monkeypatch.setattr(
        "penjing.data.fashion_sample", lambda: sample._replace(train=sample.train[:64], confirm=sample.confirm[:125])
    )
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), f"{path.name}[{number}]", "exec"), names)
    assert "layers run in int8" in capsys.readouterr().out
