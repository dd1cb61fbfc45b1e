"""What is confirmed, in which order, and what comes out where nothing holds."""

import importlib
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from penjing.run.confirm import confirm
from penjing.search import Candidate, Cost
from penjing.search.mix import FLOAT
from penjing.task import NoScore

confirming = importlib.import_module("penjing.run.confirm")


def candidate(name: str, status: str, **more: Any) -> Candidate:
    cost = Cost(latency=1.0, bytes=1, macs=1, memory=1)
    return Candidate(name=name, key=name, kind="untrained", share=1.0, cost=cost, status=status, **more)


@dataclass
class Form:
    """What ``_shipped`` gives, as far as it is looked at."""

    candidate: Candidate
    mix: object = "a mix"
    is_original: bool = False
    worth: bool = True

    def is_worth(self, *_: object) -> bool:
        return self.worth


def handed_over(monkeypatch: pytest.MonkeyPatch, tried: list[Candidate], **form: Any) -> tuple[str, dict[str, str]]:
    """The name of what comes out, and the status of all that was tried."""
    told: list[Any] = []
    monkeypatch.setattr(confirming, "_shipped", lambda _job, _maker, _baseline, c, *_: Form(c, **form))
    monkeypatch.setattr(confirming, "_original", lambda *_: Form(candidate("original", "chosen")))
    monkeypatch.setattr(confirming, "tell", lambda *given: told.extend(given[3:]))
    job: Any = SimpleNamespace(
        task=SimpleNamespace(confirm=None), score=lambda *_: None, threads=1, budget=SimpleNamespace(max_drop=None)
    )
    baseline: Any = SimpleNamespace(artifact=SimpleNamespace(load=lambda *_: None))
    confirm(job, SimpleNamespace(chooser=SimpleNamespace(ceilings={})), baseline, tried)  # type: ignore[arg-type]
    return told[1].candidate.name, {c.name: c.status for c in told[0]}


HOLDS, FAILS = candidate("2x", "holds", widths={"a": 1}), candidate("1x", "too inaccurate")


def test_what_holds_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert handed_over(monkeypatch, [HOLDS, FAILS]) == ("2x", {"2x": "chosen", "1x": "too inaccurate"})
    assert handed_over(monkeypatch, [HOLDS, FAILS], worth=False)[0] == "original"


@pytest.mark.parametrize(
    ("form", "out", "status"),
    [
        ({}, "1x", "chosen"),
        ({"worth": False}, "original", "does not hold"),
        ({"mix": None}, "original", "too inaccurate"),  # its integers alone, which lose too much
        ({"is_original": True}, "original", "too inaccurate"),
    ],
)
def test_where_nothing_holds_a_mix_of_the_whole_is_tried(
    form: dict[str, Any], out: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert handed_over(monkeypatch, [FAILS], **form) == (out, {"1x": status})


def test_only_the_whole_is_tried_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for more in ({"widths": {"a": 1}}, {"blocks": ("b",)}, {"steps": 3}):
        assert handed_over(monkeypatch, [candidate("2x", "too inaccurate", **more)])[0] == "original"
    assert handed_over(monkeypatch, [candidate("1x", "over the limit")])[0] == "original"


@pytest.mark.parametrize(
    ("form", "floats", "said"),
    [
        ("integers", (), False),
        ("the 1 chosen layers in float", ("conv2d",), True),
        ("2 layers back in float", ("linear", "conv2d"), False),
        (FLOAT, ("conv2d",), False),
    ],
)
def test_a_time_was_predicted_for_one_form_alone(form: str, floats: tuple[str, ...], said: bool) -> None:
    tried: Any = SimpleNamespace(name=form, floats=floats)
    assert confirming._is_as_planned(tried, replace(HOLDS, floats=("conv2d",))) is said


def test_behind_one_that_fails_a_gentler_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half way to the next, where that leaves room; no candidate is looked at that was not scored."""
    fast, slow = replace(HOLDS, name="4x", key="4x", share=0.25), replace(HOLDS, name="1x", key="1x", share=1.0)
    asked: list[float] = []

    def make(share: float, _source: None, *, trained: bool) -> Candidate:
        assert not trained
        asked.append(share)
        return replace(HOLDS, name=f"{1 / share:g}x", key=f"{share}", share=share)

    def ended(worth: str, *, holds: bool = True, tried: tuple[Candidate, ...] = (fast, slow)) -> str:
        told: list[Any] = []
        asked.clear()
        monkeypatch.setattr(confirming, "marked", lambda c, *_: c if holds else replace(c, status="too inaccurate"))
        monkeypatch.setattr(confirming, "_shipped", lambda _job, _maker, _base, c, *_: Form(c, worth=c.name == worth))
        monkeypatch.setattr(confirming, "_original", lambda *_: Form(candidate("original", "chosen")))
        monkeypatch.setattr(confirming, "tell", lambda *given: told.extend(given[3:]))
        task, budget = SimpleNamespace(confirm=None), SimpleNamespace(max_drop=None)
        job: Any = SimpleNamespace(task=task, score=lambda *_: None, threads=1, budget=budget)
        baseline: Any = SimpleNamespace(artifact=SimpleNamespace(load=lambda *_: None), score=1.0)
        maker: Any = SimpleNamespace(chooser=SimpleNamespace(ceilings={}), make=make)
        confirm(job, maker, baseline, tried)
        return str(told[1].candidate.name)

    assert (ended("2x"), asked) == ("2x", [0.5])
    assert (ended("1x"), asked) == ("1x", [0.5])  # the third look is for what was there
    assert (ended("1x", holds=False), asked) == ("1x", [0.5])
    assert (ended("1x", tried=(replace(fast, share=0.9), slow)), asked) == ("1x", [])
    assert (ended("1x", tried=(replace(fast, steps=5), slow)), asked) == ("1x", [])


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_all_looks_together_err_no_more_than_one(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def looked(*given: Any) -> Form:
        shares.append(1 / given[-1])
        return Form(given[3] if len(given) == 6 else candidate("original", "chosen"), worth=False)

    handed_over(monkeypatch, [])  # puts the others in place
    monkeypatch.setattr(confirming, "_shipped", looked)
    monkeypatch.setattr(confirming, "_original", looked)
    monkeypatch.setattr(confirming, "_why_not", lambda *_: "")
    budget = SimpleNamespace(max_drop=0.1)
    job: Any = SimpleNamespace(task=SimpleNamespace(confirm=None), score=lambda *_: None, threads=1, budget=budget)
    baseline: Any = SimpleNamespace(artifact=SimpleNamespace(load=lambda *_: None))
    maker: Any = SimpleNamespace(chooser=SimpleNamespace(ceilings={}))
    tried = [replace(HOLDS, name=str(i), key=str(i)) for i in range(count)]
    confirm(job, maker, baseline, tried)
    assert len(shares) == min(count, confirming.LOOKS) + 1
    assert sum(shares) == pytest.approx(1)


def test_what_the_metric_gives_no_number_for_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    handed_over(monkeypatch, [HOLDS])  # puts the others in place

    def refused(*_: Any) -> Form:
        raise NoScore("task.metric gives NaN")

    monkeypatch.setattr(confirming, "_shipped", refused)
    told: list[Any] = []
    monkeypatch.setattr(confirming, "tell", lambda *given: told.extend(given[3:]))
    job: Any = SimpleNamespace(task=SimpleNamespace(confirm=None), score=lambda *_: None, threads=1)
    baseline: Any = SimpleNamespace(artifact=SimpleNamespace(load=lambda *_: None))
    confirm(job, SimpleNamespace(), baseline, [HOLDS])  # type: ignore[arg-type]
    assert told[1].candidate.name == "original"
    assert [(c.status, c.note) for c in told[0]] == [("does not hold", "the metric gives no number")]
