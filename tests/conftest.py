"""Every test runs on one thread, from one seed, with an empty ledger, and must leave torch as it found it."""

import importlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import torch

from penjing.graph import reading_once

hypothesis.settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)  # the same on a busy machine
hypothesis.settings.load_profile("steady")


FIRST = ("tests/run/", "tests/docs/", "tests/test_cli", "tests/export/", "tests/cli/", "tests/search/", "tests/train/")  # slow


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test that is ``sampled(n)`` all but every n-th are slow.

    Slow files first, so that no process is left with one of them at the end.
    """
    seen: Counter[str] = Counter()
    for item in items:
        if (sampled := item.get_closest_marker("sampled")) is not None:
            name = item.nodeid.partition("[")[0]
            if seen[name] % sampled.args[0]:
                item.add_marker("slow")
            seen[name] += 1
    items.sort(key=lambda item: next((i for i, start in enumerate(FIRST) if item.nodeid.startswith(start)), len(FIRST)))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more, and sums come out the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def reads_once() -> Iterator[None]:
    """Many tests read the same few networks, which takes more time than most of what they look at."""
    with reading_once():
        yield


@pytest.fixture(scope="session", autouse=True)
def own_ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests measure is nobody else's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENJING_CACHE", str(tmp_path_factory.mktemp("ledger")))
        yield


@pytest.fixture(scope="session", autouse=True)
def short_turns() -> Iterator[None]:
    """Times are taken in fewer and shorter turns than for users: almost no test asks how long something took."""
    timing = importlib.import_module("penjing.measure.latency")  # the package's name for it is the function
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AT_LEAST": 5, "AT_MOST": 15, "TURN": 5.0}.items():
            patch.setattr(timing, name, value)
        yield


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Start from a seed; fail the test after which a switch of torch's is not where it was."""
    torch.manual_seed(0)
    before = _switches()
    yield
    assert _switches() == before


def _switches() -> dict[str, Any]:
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision of products": torch.get_float32_matmul_precision(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }
