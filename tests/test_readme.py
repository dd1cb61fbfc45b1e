import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHECK = [sys.executable, "benchmarks/demo.py", "--check"]


def test_numbers_and_example_in_the_readme_are_those_that_are_committed() -> None:
    assert subprocess.run(CHECK, cwd=ROOT).returncode == 0


def test_figures_of_the_other_benchmarks_are_those_that_are_committed() -> None:
    assert subprocess.run([sys.executable, "benchmarks/figures.py", "--check"], cwd=ROOT).returncode == 0


def test_the_teachers_accuracy_is_the_one_that_its_recipe_measured() -> None:
    found = json.loads((ROOT / "recipes/fashion_teacher.json").read_text())["test_top1"]
    assert found >= 0.94
    assert f"gets {100 * found:.2f} % of all 10,000 test images" in (ROOT / "README.md").read_text()


def test_every_file_that_the_readme_names_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    named = [part.split(")")[0].split("#")[0] for part in text.split("](")[1:]]
    assert named
    assert [n for n in named if not (ROOT / n).exists()] == []
