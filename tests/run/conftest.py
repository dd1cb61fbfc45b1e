"""Runs of whole compressions, which end sooner where the file is not placed in every way that is right."""

from functools import partial

import pytest

from penjing.search import MixSettings


@pytest.fixture(autouse=True)
def one_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the run that all tests of its results share tries all placements."""
    monkeypatch.setattr("penjing.run.confirm.MixSettings", partial(MixSettings, placements=False))
