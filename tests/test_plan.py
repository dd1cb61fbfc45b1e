import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from penjing.errors import PlanError
from penjing.plan import ChannelPlan

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def shapes() -> st.SearchStrategy[Shapes]:
    return st.dictionaries(st.text(max_size=5), st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple), max_size=4)


@st.composite
def plans(draw: st.DrawFn, of: Shapes) -> ChannelPlan:
    """A plan that cuts some dimensions of some of the tensors."""
    keep: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, shape in of.items():
        for dim in draw(st.sets(st.sampled_from(range(len(shape))))):
            index = draw(st.sets(st.integers(0, shape[dim] - 1), min_size=1))
            keep.setdefault(name, {})[dim] = tuple(sorted(index))
    return ChannelPlan(keep)


def applied(plan: ChannelPlan, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    cut = dict(tensors)
    for name, dims in plan.keep.items():
        for dim, index in dims.items():
            cut[name] = cut[name].index_select(dim, torch.tensor(index))
    return cut


@st.composite
def two_plans(draw: st.DrawFn) -> tuple[dict[str, Tensor], ChannelPlan, ChannelPlan]:
    """Tensors, a plan for them, and a plan for what it leaves of them."""
    tensors = {name: torch.rand(shape) for name, shape in draw(shapes()).items()}
    first = draw(plans({name: tuple(t.shape) for name, t in tensors.items()}))
    second = draw(plans({name: tuple(t.shape) for name, t in applied(first, tensors).items()}))
    return tensors, first, second


@given(two_plans())
def test_then_is_one_plan_after_the_other(given: tuple[dict[str, Tensor], ChannelPlan, ChannelPlan]) -> None:
    tensors, first, second = given
    before = first.to_json()
    at_once, in_turn = applied(first.then(second), tensors), applied(second, applied(first, tensors))
    assert all(torch.equal(at_once[name], in_turn[name]) for name in tensors)
    assert first.to_json() == before


@given(shapes().flatmap(plans))
def test_a_plan_survives_json(plan: ChannelPlan) -> None:
    assert ChannelPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_survives_a_file(tmp_path: Path) -> None:
    plan = ChannelPlan({"conv.weight": {0: (0, 2), 1: (1,)}, "bn.bias": {0: (0, 2)}})
    plan.save(tmp_path / "plan.json")
    assert ChannelPlan.load(str(tmp_path / "plan.json")) == plan
    assert ChannelPlan.load(tmp_path / "plan.json") != ChannelPlan(
        {"conv.weight": {0: (0, 2), 1: (2,)}, "bn.bias": {0: (0, 2)}}
    )


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        "keep",
        {"keep": None},
        {"keep": ["a"]},
        {"keep": {"a": [0]}},
        {"keep": {"a": {"x": [0]}}},
        {"keep": {"a": {"0": 3}}},
        {"keep": {"a": {"0": ["b"]}}},
        {"keep": {"a": {"0": [1.5]}}},
        {"keep": {"a": {"0": "12"}}},
    ],
    ids=json.dumps,
)
def test_something_else_is_not_a_plan(tmp_path: Path, value: Any) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(value))
    with pytest.raises(PlanError, match="plan"):
        ChannelPlan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_a_file_without_json_is_not_a_plan(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlanError, match=r"plan\.json"):
        ChannelPlan.load(path)


def test_a_plan_is_not_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ChannelPlan({}).keep = {"a": {0: (1,)}}  # type: ignore[misc]
