"""The files that services read are what these services take."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FORMS = [p for p in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) if p.name != "config.yml"]
KINDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.name)
def test_an_issue_form_has_what_a_form_needs(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    names = [part["id"] for part in form["body"]]
    assert len(set(names)) == len(names)
    for part in form["body"]:
        assert part["type"] in KINDS
        assert part["attributes"]["label"]
        assert bool(part["attributes"].get("options")) == (part["type"] in ("dropdown", "checkboxes"))


def test_both_forms_are_there_and_a_bug_brings_the_doctor() -> None:
    assert [p.name for p in FORMS] == ["bug.yml", "feature.yml"]
    assert "penjing doctor --json" in FORMS[0].read_text()


def test_the_commit_hooks_use_the_versions_of_the_tests() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    by = {repo["repo"]: repo for repo in hooks["repos"]}
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert by["https://github.com/astral-sh/ruff-pre-commit"]["rev"] == f"v{pinned['ruff']}"
    assert {h["id"] for repo in hooks["repos"] for h in repo["hooks"]} >= {"ruff-check", "ruff-format", "mypy", "check-yaml"}
