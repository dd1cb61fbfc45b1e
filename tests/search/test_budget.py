import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.errors import RecipeError
from penjing.search.budget import Budget, parse_drop


@pytest.mark.parametrize(
    ("name", "given", "original", "expected"),
    [
        ("latency", 0.25, 8.0, 2.0),
        ("latency", "0.25x", 8.0, 2.0),
        ("latency", "0.25", 8.0, 2.0),
        ("latency", 1, 8.0, 8.0),
        ("latency", "3ms", 8.0, 3.0),
        ("latency", "250 us", 8.0, 0.25),
        ("bytes", "500kB", 1e6, 5e5),
        ("bytes", "1 MiB", 1e6, 2**20),
        ("bytes", 300000, 1e6, 3e5),
        ("macs", "20M", 1e8, 2e7),
        ("macs", "0.5x", 1e8, 5e7),
        ("memory", "2MB", 1e7, 2e6),
        ("memory", "1.5 GiB", 1e7, 1.5 * 2**30),
        ("memory", 0.5, 1e7, 5e6),
    ],
)
def test_limits_are_shares_or_numbers(name: str, given: float | str, original: float, expected: float) -> None:
    budget = Budget(**{name: given})
    assert budget.limits()[name].of(original) == pytest.approx(expected)
    assert budget.ceilings({name: original, "other": 3.0}) == pytest.approx({name: expected})


def test_ceilings_are_of_every_limit() -> None:
    budget = Budget(latency="3ms", bytes="0.5x", macs=0.1, memory="1kB")
    original = {"latency": 30.0, "bytes": 100.0, "macs": 1000.0, "memory": 9999.0}
    assert budget.ceilings(original) == pytest.approx({"latency": 3, "bytes": 50, "macs": 100, "memory": 1000})
    with pytest.raises(KeyError):
        budget.ceilings({"latency": 30.0})


@pytest.mark.parametrize("given", ["fast", "3 parsecs", "-1x", "0x", 0, -2.0, "3kB", 5, "5", math.nan, math.inf, "1e999ms"])
def test_what_is_not_understood_is_refused_with_an_example(given: float | str) -> None:
    with pytest.raises(RecipeError, match=r"0\.25x or 3ms"):
        Budget(latency=given)


@pytest.mark.parametrize("name", ["bytes", "macs", "memory"])
def test_a_time_is_no_limit_of_anything_else(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} limit '3ms' is not understood"):
        Budget(**{name: "3ms"})


@pytest.mark.parametrize("drop", [-0.1, math.nan, math.inf])
def test_drop_is_a_number_from_0(drop: float) -> None:
    with pytest.raises(RecipeError, match="max_drop"):
        Budget(max_drop=drop)


@pytest.mark.parametrize("drop", [0, 0.005, 1.5, 50])
def test_drop_is_in_units_of_the_metric(drop: float) -> None:
    assert Budget(max_drop=drop).max_drop == drop


def test_what_is_not_given_is_free() -> None:
    assert Budget().limits() == Budget().ceilings({"latency": 1.0}) == {}


def test_something_must_be_limited() -> None:
    assert Budget(max_drop=None, latency=0.5).max_drop is None
    with pytest.raises(RecipeError, match="latency or bytes or macs or memory"):
        Budget(max_drop=None)


@pytest.mark.parametrize(
    ("text", "drop"),
    [
        ("0.5 points", 0.005),
        ("1point", 0.01),
        ("0.7 points", 0.007),
        (" 0.5% ", 0.005),
        ("0.3dB", 0.3),
        ("1.5 units", 1.5),
        ("1e-3 units", 0.001),
        ("0", 0.0),
        ("None", None),
    ],
)
def test_drops_have_units(text: str, drop: float | None) -> None:
    assert parse_drop(text) == drop


@pytest.mark.parametrize("text", ["", "0.5", "-1 points", "1 cm", "points", "a lot", "nan units"])
def test_a_drop_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"'0\.5 points' of an accuracy"):
        parse_drop(text)


@given(st.floats(0, 1e6))
def test_drops_in_units_are_exact(drop: float) -> None:
    assert parse_drop(f"{drop!r} units") == drop


def test_a_drop_in_words_is_for_recipes() -> None:
    with pytest.raises(RecipeError, match=r"max_drop is '1 point'; give a number"):
        Budget(max_drop="1 point")  # type: ignore[arg-type]
