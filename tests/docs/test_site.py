"""What the pages say runs: Python as printed, commands as far as their names go; what is generated is up to date."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

import penjing as pj
from penjing.cli import app
from penjing.recipe import Recipe
from penjing.recipe.schema import keys
from tests.docs.readme_setup import readme_names

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = ("extending", "textbook")  # these run, and are looked into, in tests of their own
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


class Block(NamedTuple):
    """A fenced block, or a comment whose code runs first and is not shown."""

    kind: str
    line: int
    text: str


def blocks(page: str, kind: str) -> Iterator[Block]:
    """The blocks of a kind in the order of the page; of Python also what is hidden."""
    hidden = "|^<!-- setup" if kind == "python" else ""
    for found in re.finditer(rf"(?:^```{kind}{hidden})\n(.*?)^(?:```|-->)$", page, re.DOTALL | re.MULTILINE):
        yield Block(kind, page[: found.start(1)].count("\n"), found[1])


def run(page: Path, names: Callable[[], dict[str, Any]]) -> None:
    """Every block of Python of a page, among the names that are given for each; errors name the page and its line."""
    for block in blocks(page.read_text(encoding="utf-8"), "python"):
        exec(compile("\n" * block.line + block.text, str(page), "exec"), names())


def with_python(page: Path) -> bool:
    return page.stem not in ELSEWHERE and any(blocks(page.read_text(encoding="utf-8"), "python"))


LONG = ("distillation.md", "pruning.md", "quantization.md", "runtimes.md", "slower.md")
RUN = [pytest.param(p, marks=[pytest.mark.slow] if p.name in LONG else [], id=p.name) for p in PAGES if with_python(p)]


@pytest.mark.parametrize("page", RUN)
def test_python_runs_as_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    tables = (pj.score.CRITERIA, pj.quant.OBSERVERS, pj.distill.LOSSES, pj.quant.TARGETS)
    before = [dict(t) for t in tables]
    if page.name == "README.md":  # its blocks stand alone, among names of the reader's
        held = readme_names(monkeypatch)
        run(page, lambda: dict(held))
    else:
        names: dict[str, Any] = {"__name__": page.stem}
        run(page, lambda: names)
    assert [dict(t) for t in tables] == before, "a page takes back what it adds to a table"


def test_a_block_that_fails_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    names: dict[str, Any] = {}
    page.write_text("<!-- setup\nx = 1\n-->\n\n```python\nassert x == 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as told:
        run(page, lambda: names)
    assert told.traceback[-1].lineno == 9  # counted from 0: line 10 of the page


# Commands.


def commands(page: str) -> Iterator[list[str]]:
    """The calls of ``penjing`` in the console blocks of a page, as words; settings of variables before them are left out."""
    for block in blocks(page, "console"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if line.startswith("$ ") else []
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words and (words[0] == "penjing" or words[1:3] == ["-m", "penjing"]):
                yield words[words.index("penjing") + 1 :]


def mistake(words: list[str]) -> str | None:
    """What is wrong with a call, or None: the command is there, takes these options with values they understand, lacks none."""
    name, *rest = words
    if name not in COMMANDS:
        return f"there is no command {name}"
    rest = rest[: rest.index(">")] if ">" in rest else rest
    if "..." in rest:  # as before: only the options that are said
        known = {o for p in COMMANDS[name].params for o in (*p.opts, *p.secondary_opts)}
        return next((f"{name} has no option {w}" for w in rest if w.startswith("--") and w not in known), None)
    try:
        said = COMMANDS[name].make_context(name, list(rest)).params
    except Exception as e:  # click's and typer's share no public base class
        return f"penjing {' '.join(words)}: {getattr(e, 'message', e)}"
    unknown = [
        k for k in (t.partition("=")[0] for t in said.get("further") or ()) if tuple(k.split(".")) not in set(keys(Recipe))
    ]
    return f"no key {unknown[0]} in a recipe" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_are_there_and_take_these_options(page: Path) -> None:
    assert [m for words in commands(page.read_text(encoding="utf-8")) if (m := mistake(words))] == []


def test_commands_are_found() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {words[0] for words in commands(text)} >= {"compress", "measure", "quantize", "distill"}


@pytest.mark.parametrize(
    "line",
    [
        "compres x.yaml",
        "compress --modle a:b",
        "quantize --data a:b",
        "compress r.yaml --set settings.atempts=2",
        "distill ... --devces 2",
    ],
)
def test_a_wrong_command_is_seen(line: str) -> None:
    assert mistake(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_recipes_on_pages_have_known_keys(page: Path) -> None:
    known = set(keys(Recipe))
    for block in blocks(page.read_text(encoding="utf-8"), "yaml"):
        held = yaml.safe_load(block.text)
        assert [k for k in _keys(held) if k not in known] == []


def _keys(held: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in held.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from _keys(value, (*above, name))


# What is generated, and what is linked.


def test_generated_pages_are_up_to_date() -> None:
    assert subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT).returncode == 0


def test_every_public_name_is_in_the_reference() -> None:
    text = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "api").glob("*.md"))
    assert [n for n in pj.__all__ if not re.search(rf"\b{n}\b", text)] == []


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").splitlines()
    assert [p.stem for p in PAGES[1:] if p.stem != "index" and p.stem not in index] == []


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda p: p.name)
def test_what_pages_link_to_is_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    linked = [t.partition("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]
    assert [t for t in linked if t and not (page.parent / t).exists()] == []
