import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penjing.errors import RecipeError
from penjing.prune.patterns import highest, pattern_named

SHAPE = (4, 8, 9)


@pytest.mark.parametrize("name", ["unstructured", "kernel", "block:1x4", "block:4x1", "block:2x2"])
def test_units_and_their_spread_agree(name: str) -> None:
    pattern = pattern_named(name)
    weight = torch.arange(4 * 8 * 9).view(SHAPE)
    units = pattern.units(weight)
    assert sorted(units.flatten().tolist()) == list(range(4 * 8 * 9))
    for u in (0, 1, len(units) - 1):
        chosen = torch.zeros(len(units), dtype=torch.bool)
        chosen[u] = True
        assert sorted(weight[pattern.spread(chosen, SHAPE)].tolist()) == sorted(units[u].tolist())


def test_blocks_are_outputs_by_inputs() -> None:
    weight = torch.arange(4 * 8 * 9).view(SHAPE)
    assert pattern_named("block:1x4").units(weight)[0].tolist() == weight[0, :4, 0].tolist()
    assert pattern_named("block:4x1").units(weight)[0].tolist() == weight[:, 0, 0].tolist()
    assert pattern_named("kernel").units(weight)[0].tolist() == weight[0, 0].tolist()


def test_n_of_m_is_taken_along_the_inputs() -> None:
    pattern = pattern_named("2:4")
    chosen = pattern.best_of_each(torch.rand(SHAPE).flatten(), 0.5, SHAPE).view(SHAPE)
    assert (chosen.view(4, 2, 4, 9).sum(2) == 2).all()
    assert (pattern.best_of_each(torch.rand(SHAPE).flatten(), 0.6, SHAPE).view(4, 2, 4, 9).sum(2) == 3).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 30))
def test_exactly_so_many_are_highest_whatever_is_equal(scores: list[int], count: int) -> None:
    count = min(count, len(scores))
    chosen = highest(torch.tensor(scores, dtype=torch.float32), count).tolist()
    expected = sorted(range(len(scores)), key=lambda i: -scores[i])[:count]
    assert [i for i, c in enumerate(chosen) if c] == sorted(expected)


@pytest.mark.parametrize("name", ["", "4:2", "2:2", "0:4", "block:0x4", "block:4", "filter", "2:4 "])
def test_other_patterns_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="choose 'unstructured'"):
        pattern_named(name)
