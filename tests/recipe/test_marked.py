from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penjing.errors import RecipeError
from penjing.recipe.marked import parse_yaml, read_yaml, yaml_value

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())


def test_keys_and_their_lines() -> None:
    text = "# a comment\na: 1\nb:\n  c: [x, y]\n\n  d: {e: 2}\n"
    values, places = parse_yaml(text, "r")
    assert values == {"a": 1, "b": {"c": ["x", "y"], "d": {"e": 2}}}
    assert places == {("a",): 2, ("b",): 3, ("b", "c"): 4, ("b", "d"): 6, ("b", "d", "e"): 6}


def test_nothing_is_none() -> None:
    assert parse_yaml("# only a comment\n", "r") == (None, {})


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("2E4", 2e4), ("-1.5e+2", -150.0), ("1e", "1e"), ("'1e-3'", "1e-3"), ("0.25x", "0.25x")],
)
def test_numbers_are_numbers(text: str, value: float | str) -> None:
    assert parse_yaml(text, "r")[0] == value
    assert type(parse_yaml(text, "r")[0]) is type(value)


@given(st.one_of(SCALARS, st.lists(SCALARS, max_size=4)))
@example("\xa0")
@example(["\x85", "\u2028", "a\r\nb", "1e-3", "*", "#"])
def test_values_come_back_from_one_line(value: Any) -> None:
    text = yaml_value(value)
    assert len(text.splitlines()) <= 1
    assert parse_yaml(f"a:\n  b: {text}  # why\n", "r")[0] == {"a": {"b": value}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: [1, 2\n", "r, line 3, column 1: this is not YAML: .*','"),
        ("a: 1\n  b: 2\n", "r, line 2, column 4"),
        ("a:\n\t b: 1\n", "r, line 2, column 1"),
        ("exclude: *bias\n", r"r, line 1, column 10: .*begins with \* must be in quotes"),
        ("exclude: *.bias\n", "r, line 1, column 11"),
        ("a: !!python/name:os.system x\n", "r, line 1, column 4"),
        ("a: 1\n---\nb: 2\n", "r, line 2, column 1"),
        ("a: 1\nb: 2\na: 3\n", "r, line 3: a is there already, in line 1"),
        ("a:\n  b: 2\n  b: 3\n", r"r, line 3: a\.b is there already, in line 2"),
        ("a: 2026-99-99\n", "r: this is not YAML"),
        ("a: \x00\n", "r: this is not YAML"),
    ],
)
def test_what_is_not_yaml_is_told_in_one_line_with_its_place(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as e:
        parse_yaml(text, "r")
    assert "\n" not in str(e.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    for path in (tmp_path / "none.yaml", tmp_path / "latin.yaml", tmp_path):
        with pytest.raises(RecipeError, match="cannot read the recipe"):
            read_yaml(path)
