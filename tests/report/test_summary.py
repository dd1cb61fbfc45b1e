"""What a manager reads says the same as the numbers."""

from typing import Any

import pytest

from penjing.report import summary
from penjing.report.numbers import metric_of

Result = dict[str, Any]


def plain(text: str) -> str:
    return text.replace("\u00a0", " ").replace("\u2212", "-")


@pytest.mark.parametrize(
    ("given", "look"),
    [
        ({"status": "holds", "holds": True}, "good"),
        ({"status": "does not hold", "holds": False}, "bad"),
        ({"status": "cannot be told", "holds": False}, "open"),
        ({"holds": True}, "good"),
        ({"holds": False}, "bad"),
    ],
)
def test_three_answers_look_different(result: Result, given: Result, look: str) -> None:
    found = summary.verdict(result | {"verdict": given | {"sentence": "So."}})
    assert (found.look, found.sentence, found.advice) == (look, "So.", "")
    assert len({sign for _, sign, _ in summary.VERDICTS.values()}) == 3


def test_a_gain_is_no_negative_loss(result: Result) -> None:
    metric = metric_of(result)
    lost = summary.tiles(result, metric)[2]
    assert (lost.value, lost.label) == ("0.35", "points of accuracy lost")
    assert plain(lost.note) == "with 95 % confidence at most 0.90, at least -0.20"
    result["accuracy"] |= {"drop": -0.0123, "low": -0.02, "high": -0.001}
    gained = summary.tiles(result, metric)[2]
    assert (gained.value, gained.label) == ("1.23", "points of accuracy gained")
    assert plain(gained.note) == "with 95 % confidence at least 0.10, at most 2.00"


def test_the_control_stands_in_the_table_and_in_words(result: Result) -> None:
    metric = metric_of(result)
    row = summary.rows(result, metric)[1]
    assert [plain(text) for text in row[1:4]] == ["94.65 %", "94.10 %", "-0.55 points"]
    said = plain(summary.sentences(result, metric)[1])
    assert said.startswith("The original, trained on for the same 840 steps: 0.20 points gained by training alone.")
    assert said.endswith("Against that one the compressed net loses 0.55 points.")
    assert len(summary.rows(result | {"control": None}, metric)) == len(summary.rows(result, metric)) - 1


def test_the_test_is_told_with_its_counts(result: Result) -> None:
    metric = metric_of(result)
    said = summary.sentences(result, metric)[0]
    assert said.startswith("Of 2,000 samples 24 became worse and 17 better.")
    assert f"probability {result['accuracy']['p']:.2g} (exact McNemar test)" in said
    del result["accuracy"]["p"]
    assert len(summary.sentences(result | {"control": None}, metric)) == 0


def test_memory_is_a_row_where_it_was_measured(result: Result) -> None:
    metric = metric_of(result)
    assert summary.rows(result, metric)[-1][:5] == (
        "Peak memory", "5.16\u00a0MB", "1.24\u00a0MB", "4.2\u00d7 less", "of one call at batch 32",
    )  # fmt: skip
    del result["size"]["memory"]
    assert summary.rows(result, metric)[-1].what == "File"


def test_what_grew_is_not_called_less(result: Result) -> None:
    result["size"]["bytes"] = [1000, 2000]
    metric = metric_of(result)
    assert summary.rows(result, metric)[4].change == "2.0\u00d7 as much"
    assert summary.tiles(result, metric)[1][:2] == ("2.0\u00d7", "the size")


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"max_drop": 0.01}, ["at most 1 point of accuracy lost"]),
        ({"max_drop": 0.005}, ["at most 0.5 points of accuracy lost"]),
        ({"max_drop": None, "memory": "0.5x"}, ["peak memory at most 0.5 of the original's"]),
        ({"latency": "3ms", "memory": "2MB"}, ["latency at most 3ms", "peak memory at most 2MB"]),
        ({}, []),
    ],
)
def test_limits_as_words(result: Result, budget: Result, said: list[str]) -> None:
    assert summary.limits(budget, metric_of(result)) == said


def test_a_metric_that_is_no_share_is_told_in_its_unit(denoiser: Result) -> None:
    metric = metric_of(denoiser)
    tile = summary.tiles(denoiser, metric)[2]
    assert (tile.value, tile.label, plain(tile.note)) == (
        "0.31",
        "dB of PSNR lost",
        "with 95 % confidence at most 0.35, at least 0.27",
    )
    assert [plain(text) for text in summary.rows(denoiser, metric)[0][:4]] == ["PSNR", "31.27 dB", "30.96 dB", "-0.31 dB"]
    assert summary.limits(denoiser["budget"], metric)[0] == "at most 0.5 dB of PSNR lost"
