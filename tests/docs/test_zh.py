"""The Chinese README says what the English one does."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))


def code(page: str) -> set[str]:
    """The lines of code of a page, without comments."""
    found = re.findall(r"^```(?:python|console)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return {line.partition("  #")[0].rstrip() for block in found for line in block.splitlines() if line.strip()}


def test_its_code_is_that_of_the_english_one() -> None:
    assert len(code(CHINESE)) > 15
    assert sorted(code(CHINESE) - code(ENGLISH)) == []


def test_its_figures_are_those_of_the_english_one() -> None:
    prose = re.sub(r"^```.*?^```", "", CHINESE, flags=re.DOTALL | re.MULTILINE)
    figures = re.findall(r"\d[\d,.]*\d ?%|\d{1,3}(?:,\d{3})+", prose)
    assert figures
    assert [f for f in figures if f not in ENGLISH] == []


def test_what_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", CHINESE)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    anchors = [
        f"#{re.sub(r'[^a-z0-9 -]', '', h.lower()).strip().replace(' ', '-')}" for h in re.findall(r"^#+ (.+)$", ENGLISH, re.M)
    ]
    assert [a for a in re.findall(r"README\.md(#[\w-]+)", CHINESE) if a not in anchors] == []
