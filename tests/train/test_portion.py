import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import penjing as pj
from penjing.data import ImageBatches, LabelledImages
from penjing.train import Training, portioned, seconds_a_step
from penjing.train.portion import Portion


@given(st.integers(1, 40), st.integers(1, 400))
def test_about_so_many_steps_are_made_and_no_epoch_is_longer_than_the_loader(whole: int, steps: int) -> None:
    loader = [(torch.zeros(1), torch.zeros(1))] * whole
    train, epochs = portioned(loader, steps)
    made = epochs * len(train)  # type: ignore[arg-type]
    assert abs(made - steps) <= epochs / 2 + 1
    assert len(list(train)) == len(train) <= whole  # type: ignore[arg-type]
    if steps % whole == 0:
        assert train is loader


def test_a_portion_is_the_loader_cut_short() -> None:
    data = LabelledImages(torch.randint(255, (12, 1, 4, 4), dtype=torch.uint8), torch.arange(12))
    loader = ImageBatches(data, 2, augment=True)
    part = Portion(loader, 3)
    part.set_epoch(5)
    assert loader.epoch == 5
    assert [y.tolist() for _, y in part] == [y.tolist() for _, y in loader][:3]
    assert not part.fixed


@pytest.mark.parametrize("loader", [list(range(10)), DataLoader(TensorDataset(torch.arange(10)), batch_size=1)])
def test_of_a_fixed_order_every_walk_goes_on_where_the_last_one_stopped(loader: Any) -> None:
    part, epochs = portioned(loader, 11)
    seen = []
    for epoch in range(epochs):
        part.set_epoch(epoch)  # type: ignore[attr-defined]
        seen += [int(b if isinstance(b, int) else b[0]) for b in part]
    assert seen == [*range(10), 0, 1]
    assert not part.fixed  # type: ignore[attr-defined]


def test_a_step_takes_the_time_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that ticks once for every batch that is drawn."""
    now = [0.0]

    class Ticking(list):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[object]:
            for batch in super().__iter__():
                now[0] += 0.25
                yield batch

    monkeypatch.setattr("penjing.train.portion.time.perf_counter", lambda: now[0])
    batches = Ticking([(torch.randn(4, 3), torch.randint(2, (4,))) for _ in range(9)])
    task = pj.Task(train=batches, search=batches, confirm=batches, metric=pj.measure.top1)
    took = seconds_a_step(nn.Linear(3, 2), task, teacher=None, loss=None, settings=Training(precision="32-true"))
    assert took == pytest.approx(0.25)


class _Fixed:
    """Neither a list nor a DataLoader, and always in the same order."""

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[Any]:
        return iter(range(10))


def test_of_an_unknown_loader_everything_is_walked_in_turn() -> None:
    portion, epochs = portioned(_Fixed(), 15)
    seen: set[Any] = set()
    for epoch in range(epochs):
        portion.set_epoch(epoch)  # type: ignore[attr-defined]
        seen |= set(portion)
    assert seen == set(range(10))
    assert len(copy.copy(portion)) == len(portion)  # type: ignore[arg-type]


class _Augmented:
    """Always in the same order, each time a little otherwise."""

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[Any]:
        return ((torch.full((2,), i) + torch.rand(2), torch.full((2,), i)) for i in range(10))


def test_augmentation_is_no_other_order() -> None:
    portion, epochs = portioned(_Augmented(), 15)
    seen: set[int] = set()
    for epoch in range(epochs):
        portion.set_epoch(epoch)  # type: ignore[attr-defined]
        seen |= {int(y[0]) for _, y in portion}
    assert seen == set(range(10))
