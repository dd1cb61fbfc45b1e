from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from penjing.export import Artifact
from penjing.measure import Measurement
from penjing.search import Ledger, Timer
from penjing.search import timer as timer_module

CALLS: list[set[str]] = []


def artifact(name: str) -> Artifact:
    return Artifact(Path(name), "onnxruntime", ((1, 3),), True, name)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Files take what this says, and loading one gives its name."""
    times = {"a": 4.0, "b": 2.0, "c": 1.0}
    CALLS.clear()

    def compare(runs: Mapping[str, Any], *_inputs: Any, **_settings: Any) -> dict[str, Measurement]:
        CALLS.append(set(runs.values()))
        return {n: Measurement(times[run], "ms", times[run], times[run], 3, "here") for n, run in runs.items()}

    monkeypatch.setattr(timer_module, "compare", compare)
    monkeypatch.setattr(Artifact, "load", lambda self, *_: self.digest)
    return times


def timer(ledger: Ledger | None = None, **settings: Any) -> Timer:
    return Timer((torch.zeros(1, 3),), threads=1, seconds=0.01, ledger=ledger, **settings)


def test_what_was_timed_is_not_timed_again_by_a_later_run(tmp_path: Path, clock: dict[str, float]) -> None:
    first = timer(Ledger(tmp_path))({"x": (artifact("a"), None)})
    clock["a"] = 99.0
    again = timer(Ledger(tmp_path))({"y": (artifact("a"), None), "z": (artifact("b"), None)})
    assert first["x"] == again["y"]
    assert again["z"].value == 2.0
    assert [{"a"}, {"b"}] == CALLS
    assert timer(Ledger(tmp_path))({"x": (artifact("a"), "f32")})["x"].value == 99.0  # another precision is another number
    assert timer(Ledger(tmp_path), fresh=True)({"x": (artifact("a"), None)})["x"].value == 99.0
    assert timer(Ledger(tmp_path))({"x": (artifact("a"), None)})["x"].value == 99.0


def test_a_busy_moment_is_divided_out_by_the_reference(tmp_path: Path, clock: dict[str, float]) -> None:
    watch = timer(Ledger(tmp_path))
    assert watch.refer(artifact("a"), "f32").value == 4.0
    clock.update({name: 3 * t for name, t in clock.items()})
    found = watch({"b": (artifact("b"), None), "c": (artifact("c"), None)})
    assert {n: m.value for n, m in found.items()} == {"b": pytest.approx(2.0), "c": pytest.approx(1.0)}


def test_without_a_ledger_it_remembers_itself() -> None:
    watch = timer()
    assert watch({"b": (artifact("b"), None)}) == watch({"b": (artifact("b"), None)})
    assert [{"b"}] == CALLS


def test_what_was_timed_surely_is_what_a_later_run_knows(tmp_path: Path, clock: dict[str, float]) -> None:
    clock["a"] = 99.0
    watch = timer(Ledger(tmp_path))
    assert watch({"x": (artifact("a"), None)})["x"].value == 99.0
    clock["a"] = 4.0
    assert watch.surely((artifact("a"), None)).value == 4.0
    assert watch({"x": (artifact("a"), None)})["x"].value == 4.0
    assert timer(Ledger(tmp_path))({"x": (artifact("a"), None)})["x"].value == 4.0
