import importlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import penjing as pj
from penjing.errors import TrainingError
from penjing.progress import silent
from penjing.run.candidates import Net
from penjing.run.pictures import forgotten
from penjing.run.tell import Shipped
from penjing.search import Candidate, Cost
from penjing.search.mix import FLOAT

confirming, telling, training = (importlib.import_module(f"penjing.run.{name}") for name in ("confirm", "tell", "training"))
CUT = pj.ChannelPlan({"0.weight": {0: (0, 1)}})


@pytest.mark.parametrize(
    ("drop", "latency", "allowed", "worth"),
    [
        (0.009, 1.0, 0.01, True),
        (0.9 - 0.895, 1.0, 0.005, True),  # exactly what is allowed, with other last digits
        (0.011, 1.0, 0.01, False),  # though the interval may reach below
        (0.011, 1.0, None, True),
        (0.009, 1.5, 0.01, False),  # slower than the original
    ],
)
def test_what_loses_more_than_is_allowed_or_is_slower_is_not_taken(
    drop: float, latency: float, allowed: float | None, worth: bool
) -> None:
    found: Any = SimpleNamespace(drop=drop)
    known: Any = {"candidate": None, "net": None, "module": nn.Identity(), "artifact": None, "precision": None, "mix": None}
    shipped = Shipped(**known, found=found, judgement=None, before=None, after=None, latency=latency)  # type: ignore[arg-type]
    baseline: Any = SimpleNamespace(default=SimpleNamespace(cost=Cost(1.0, 1.0, 1, 1)))
    assert shipped.is_worth(baseline, {}, allowed) is worth


@pytest.mark.parametrize(
    ("form", "changed", "plan", "said"),
    [
        ("fp32", {}, pj.ChannelPlan({}), True),
        (FLOAT, {}, pj.ChannelPlan({}), True),
        (FLOAT, {"steps": 3}, pj.ChannelPlan({}), False),
        (FLOAT, {}, CUT, False),
        ("integers", {}, pj.ChannelPlan({}), False),
        ("2 layers back in float", {}, pj.ChannelPlan({}), False),
        (None, {}, pj.ChannelPlan({}), False),  # integers as they were scored
        (None, {"key": "original"}, pj.ChannelPlan({}), True),
    ],
)
def test_what_is_handed_over_is_the_original_where_nothing_was_done_to_it(
    form: str | None, changed: dict[str, Any], plan: pj.ChannelPlan, said: bool
) -> None:
    mix: Any = form and SimpleNamespace(chosen=SimpleNamespace(name=form))
    known = {"name": "1x", "key": "cut", "kind": "untrained", "share": 1.0, "cost": Cost(1.0, 1.0, 1, 1)}
    rest: Any = [None] * 7
    module = nn.Identity()
    shipped = Shipped(Candidate(**known | changed), Net(module, plan, {}), module, *rest, mix)
    assert shipped.is_original is said


def test_what_fails_beside_the_result_loses_no_run() -> None:
    stages: list[dict[str, str]] = []

    @contextmanager
    def stage(_name: str) -> Iterator[dict[str, str]]:
        stages.append({})
        yield stages[-1]

    def control(_candidate: Candidate) -> nn.Module:
        raise TrainingError("the loss has exploded")

    job: Any = SimpleNamespace(settings=pj.Settings(), stage=stage)
    maker: Any = SimpleNamespace(trainer=SimpleNamespace(control=control))
    assert telling._control(job, maker, SimpleNamespace(candidate=SimpleNamespace(steps=3))) is None  # type: ignore[arg-type]
    assert stages == [{"gave": "not known: the loss has exploded"}]


def test_processes_that_follow_go_on_where_the_original_cannot_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> nn.Module:
        raise TrainingError("the loss has exploded")

    monkeypatch.setattr(training, "_trained", failing)
    followed: list[Any] = []
    crew = SimpleNamespace(all=lambda work, *given: followed.append(work(None, *given)) or followed[0])
    trainer: Any = SimpleNamespace(crew=crew, job=SimpleNamespace(model=None))
    with pytest.raises(TrainingError):
        training.Trainer.control(trainer, SimpleNamespace(steps=3))  # type: ignore[arg-type]
    assert isinstance(followed[0], TrainingError)


def test_a_class_that_is_given_up_is_told_where_no_drop_is_limited() -> None:
    one_hot, target = torch.eye(20).repeat(10, 1), torch.arange(20).repeat(10)
    forgetful = torch.eye(20)
    forgetful[0, :2] = torch.tensor([0.0, 1.0])
    artifacts: Any = [SimpleNamespace(load=lambda *_, r=run: r) for run in (lambda x: x, lambda x: x @ forgetful)]
    job: Any = SimpleNamespace(
        settings=pj.Settings(), budget=pj.Budget(max_drop=None, bytes=0.5), stage=lambda _: nullcontext({}), threads=1,
        task=SimpleNamespace(confirm=[(one_hot, target)], metric=pj.measure.top1, classes=None), progress=silent,
    )  # fmt: skip
    shipped: Any = SimpleNamespace(artifact=artifacts[1], precision=None, found=SimpleNamespace(drop=0.05))
    told = telling._generalization(job, SimpleNamespace(artifact=artifacts[0]), shipped)  # type: ignore[arg-type]
    assert told is not None
    assert told["warnings"][0].startswith("Class 0 falls from 100")


def test_the_original_in_fp32_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the runtime's default precision loses too much: the row that was not taken stays beside it."""
    cost = Cost(1.0, 1.0, 1, 1)
    default = Candidate(name="original, default precision", key="original", kind="float", share=1.0, cost=cost, score=0.8)
    baseline: Any = SimpleNamespace(default=default, cost=replace(cost, latency=2.0), score=0.9, artifact=Loads())
    job: Any = SimpleNamespace(
        score=lambda run, _: run, task=SimpleNamespace(confirm=None), threads=1, model=None,
        log=SimpleNamespace(rows=lambda _: []), budget=pj.Budget(max_drop=0.01),
        timer=lambda _, *__: {"it": SimpleNamespace(value=2.0)},
    )  # fmt: skip
    maker: Any = SimpleNamespace(net=lambda _: None, chooser=SimpleNamespace(ceilings={}))
    monkeypatch.setattr(confirming, "paired", lambda *_, **__: SimpleNamespace(drop=0.0))
    shipped = confirming._original(job, maker, baseline, SimpleNamespace(value=0.9), 1)  # type: ignore[arg-type]
    rows = telling._candidates(job, maker, baseline, [], shipped)
    assert [(r["name"], r["status"], r["score"], r["latency"]) for r in rows] == [
        ("original, fp32", "original", 0.9, 2.0),
        ("original, default precision", "does not hold", 0.8, 1.0),
        ("original, in fp32", "chosen", 0.9, 2.0),
    ]


@pytest.mark.parametrize(
    ("limit", "score", "status", "note"),
    [
        (0.5, 0.9, "over the limit", "1 ms, 0.5 ms allowed"),
        (1.0, 0.8, "too inaccurate", "loses 0.1, 0.01 allowed"),
        (1.0, 0.9, "holds", "loses 0, 0.01 allowed"),
    ],
)
def test_the_original_holds_only_within_the_budget(limit: float, score: float, status: str, note: str) -> None:
    default = Candidate(name="original", key="original", kind="float", share=1.0, cost=Cost(1, 1, 1, 1), score=score)
    baseline: Any = SimpleNamespace(default=default, cost=default.cost, score=0.9)
    job: Any = SimpleNamespace(log=SimpleNamespace(rows=lambda _: []), budget=pj.Budget(max_drop=0.01))
    maker: Any = SimpleNamespace(chooser=SimpleNamespace(ceilings={"latency": limit}))
    shipped: Any = SimpleNamespace(precision=None, candidate=SimpleNamespace(key="cut"))
    row = telling._candidates(job, maker, baseline, [], shipped)[1]
    assert (row["status"], row["note"]) == (status, note)


class Loads:
    """An artifact whose precisions are their scores."""

    def load(self, _threads: int, precision: str | None = None) -> Any:
        return SimpleNamespace(value=0.9 if precision else 0.8)


def test_weights_swing_only_where_there_are_integers() -> None:
    way = pj.Freezing()
    job: Any = SimpleNamespace(settings=pj.Settings(seed=2, training=pj.Training(seed=1, freezing=way)))
    assert [training._settings(job, in_integers=i).freezing for i in (False, True)] == [None, way]
    assert training._settings(job, in_integers=True).seed == 3


def test_classes_have_their_names_in_warnings_too() -> None:
    splits: Any = {"train": [], "search": [], "confirm": [], "metric": pj.measure.top1}
    said = ["Class 1 falls from 90% to 80% right", "3% of the predictions changed", "Class 7 falls"]
    found = {"per_class": [{"class": 1}], "forgotten": [], "warnings": said}
    named = forgotten(found, pj.Task(**splits, classes=np.array(["cat", "dog"])))
    assert named["warnings"] == ["Class dog falls from 90% to 80% right", said[1], said[2]]
    assert named["per_class"][0]["label"] == "dog"
    assert forgotten(found, pj.Task(**splits))["warnings"] == said
