"""What is confirmed, in which order, and what comes out where nothing holds."""

import importlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from penjing.run.confirm import confirm
from penjing.search import Candidate, Cost

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
        task=SimpleNamespace(metric=lambda *_: None, confirm=None), threads=1, budget=SimpleNamespace(max_drop=None)
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
