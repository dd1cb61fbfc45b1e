from typing import Any

import pytest
import torch

from penjing.errors import DataError, RecipeError
from penjing.graph import capture, repeated
from penjing.score import CRITERIA, Evidence, activation_energy, criterion_named
from penjing.task import inputs_and_target
from tests.nets import CUTTABLE, IMAGE, conv, pair
from tests.oracle import inputs

X, Y = torch.zeros(4, 3), torch.zeros(4)


@pytest.mark.parametrize(
    ("batch", "count", "inputs", "target"),
    [
        (X, 1, (X,), None),
        ((X,), 1, (X,), None),
        ((X, Y), 1, (X,), Y),
        ([X, Y], 1, (X,), Y),
        (((X,), None), 1, (X,), None),
        ((X, Y), 2, (X, Y), None),
        (((X, X), Y), 2, (X, X), Y),
        ([[X, X], "label"], 2, (X, X), "label"),
        ((X, X, Y), 3, (X, X, Y), None),
    ],
)
def test_batches_with_and_without_target_are_told_apart(batch: Any, count: int, inputs: Any, target: Any) -> None:
    found, kept = inputs_and_target(batch, count)
    assert isinstance(found, tuple)
    assert len(found) == len(inputs)
    assert all(a is b for a, b in zip(found, inputs, strict=True))
    assert kept is target


@pytest.mark.parametrize(("batch", "count"), [(X, 2), ((X, X, Y), 1), ({"x": X}, 1), ((1, 2), 1), (None, 1), ((), 1)])
def test_anything_else_is_refused(batch: Any, count: int) -> None:
    with pytest.raises(DataError, match=f"the model's {count} inputs"):
        inputs_and_target(batch, count)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (None, "there is no data"),
        ([], "data is empty"),
        ([torch.zeros(0, 3, 8, 8)], "data is empty"),
        ([torch.zeros(3, 8, 8)], r"shape \(3, 8, 8\)"),
        ([torch.zeros(2, 5, 8, 8)], r"shape \[\(2, 5, 8, 8\)\]"),
        (["text"], "data yields str"),
    ],
)
def test_data_that_the_model_cannot_take_is_refused(data: Any, named: str) -> None:
    evidence = Evidence.of(capture(CUTTABLE["plain"](), inputs(IMAGE)), data)
    with pytest.raises(DataError, match=named):
        activation_energy(evidence)


def test_a_number_among_the_inputs_has_no_batch() -> None:
    x, t = torch.ones(2, 3, 8, 8), torch.tensor(0.5)
    evidence = Evidence.of(capture(pair(lambda m, x, t: m.b(m.a(x) * t), a=conv(3, 8), b=conv(8, 2))(), (x, t)), [(x, t)])
    assert activation_energy(evidence)["a.weight"].shape == (8,)
    assert [tuple(each.shape) for each in repeated((x, t), 5)] == [(5, 3, 8, 8), ()]


def test_criteria_are_found_by_name() -> None:
    assert all(criterion_named(name) is criterion for name, criterion in CRITERIA.items())
    with pytest.raises(RecipeError, match="did you mean 'taylor'"):
        criterion_named("tailor")
    with pytest.raises(RecipeError, match="choose one of"):
        criterion_named("zzz")
