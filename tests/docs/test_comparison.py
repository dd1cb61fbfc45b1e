"""Every claim of the page that compares tools has its proof."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/comparison.md").read_text()
LINKS = dict(re.findall(r"^\[(\w+)\]: (\S+)$", TEXT, re.MULTILINE))
OURS = re.compile(r"\[(yes|no)\]\(([^)]+)\)")
THEIRS = re.compile(r"\[(yes|part|no|not looked at)\]\[(\w+)\]")


def test_every_cell_is_one_word_that_leads_to_its_proof() -> None:
    rows = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if OURS.search(line) and line.startswith("|")]
    assert len(rows) > 20
    for _, ours, *theirs in rows:
        mine = OURS.fullmatch(ours)
        assert mine and (ROOT / "docs" / mine[2]).is_file(), ours
        assert len(theirs) == 8
        for cell in theirs:
            found = THEIRS.fullmatch(cell)
            assert found and LINKS[found[2]].startswith("https://"), cell


def test_what_we_have_is_proved_by_a_test_or_a_measurement() -> None:
    assert all(path.startswith(("../tests/", "../benchmarks/")) for word, path in OURS.findall(TEXT) if word == "yes")


def test_no_proof_is_left_over() -> None:
    assert [key for key in LINKS if f"][{key}]" not in TEXT] == []
