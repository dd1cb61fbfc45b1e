"""Runs of whole compressions, which end sooner where the file is not placed in every way that is right."""

import importlib
from functools import partial

import pytest

from penjing.search import MixSettings


@pytest.fixture(autouse=True)
def one_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the run that all tests of its results share tries all placements."""
    module = importlib.import_module("penjing.run.confirm")  # the package's name for it is the function
    monkeypatch.setattr(module, "MixSettings", partial(MixSettings, placements=False))
