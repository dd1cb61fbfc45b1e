import pytest

from penjing.errors import RecipeError
from penjing.search import Budget


@pytest.mark.parametrize(
    ("name", "given", "original", "expected"),
    [
        ("latency", 0.25, 8.0, 2.0),
        ("latency", "0.25x", 8.0, 2.0),
        ("latency", "3ms", 8.0, 3.0),
        ("latency", "250 us", 8.0, 0.25),
        ("bytes", "500kB", 1e6, 5e5),
        ("bytes", "1 MiB", 1e6, 2**20),
        ("bytes", 300000, 1e6, 3e5),
        ("macs", "20M", 1e8, 2e7),
        ("macs", "0.5x", 1e8, 5e7),
    ],
)
def test_limits_are_shares_or_numbers(name: str, given: float | str, original: float, expected: float) -> None:
    assert Budget(**{name: given}).limits()[name].of(original) == pytest.approx(expected)


@pytest.mark.parametrize("given", ["fast", "3 parsecs", "-1x", "0x", 0, -2.0, "3kB", 5])
def test_what_is_not_understood_is_refused_with_an_example(given: float | str) -> None:
    with pytest.raises(RecipeError, match=r"0\.25x or 3ms"):
        Budget(latency=given)


@pytest.mark.parametrize("drop", [-0.1, 1, 50])
def test_drop_is_a_share(drop: float) -> None:
    with pytest.raises(RecipeError, match="max_drop"):
        Budget(max_drop=drop)


def test_what_is_not_given_is_free() -> None:
    assert Budget().limits() == {}
