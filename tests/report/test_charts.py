"""Charts draw the numbers of the result, where the result says."""

import json
from pathlib import Path
from typing import Any

import pytest

from penjing.report.charts import figures

Result = dict[str, Any]


@pytest.fixture
def result() -> Result:
    example: Result = json.loads((Path(__file__).parent / "example.json").read_text(encoding="utf-8"))
    return example


def traces(result: Result, chart: str) -> dict[str, Any]:
    return {trace["name"]: trace for trace in figures(result)[chart]["data"]}


def test_the_region_of_the_budget_holds_the_candidates_that_hold(result: Result) -> None:
    drawn = traces(result, "candidates")
    region = drawn["within the budget"]
    for status in ("chosen", "holds", "too inaccurate", "over the limit", "original"):
        for x, y in zip(drawn[status]["x"], drawn[status]["y"], strict=True):
            inside = min(region["x"]) < x < max(region["x"]) and min(region["y"]) < y < max(region["y"])
            assert inside == (status in ("chosen", "holds")), status


@pytest.mark.parametrize(
    ("latency", "drop", "lines"),
    [
        ("0.25x", 0.01, ["limit 2.10 ms", "limit 93.40 %"]),
        ("1.5ms", None, ["limit 1.50 ms"]),
        ("900 us", None, ["limit 0.900 ms"]),
        (None, 0.02, ["limit 92.40 %"]),
        (None, None, []),
    ],
)
def test_each_limit_of_the_budget_is_a_line(result: Result, latency: str | None, drop: float | None, lines: list[str]) -> None:
    result["budget"] = {"latency": latency, "max_drop": drop}
    drawn = [name.replace("\u00a0", " ") for name in traces(result, "candidates")]
    assert [name for name in drawn if name.startswith("limit")] == lines
    assert ("within the budget" in drawn) == bool(lines)


def test_without_the_original_no_relative_limit_is_drawn(result: Result) -> None:
    result["original_candidate"] = None
    assert set(traces(result, "candidates")) == {"chosen", "holds", "too inaccurate", "over the limit"}


def test_bars_are_the_medians_and_whiskers_the_percentiles(result: Result) -> None:
    for row in result["latency"]:
        bar = traces(result, f"latency-{row['batch']}")[row["net"]]
        i = bar["x"].index(row["runtime"])
        assert bar["y"][i] == row["median"]
        assert bar["y"][i] + bar["error_y"]["array"][i] == pytest.approx(row["high"])
        assert bar["y"][i] - bar["error_y"]["arrayminus"][i] == pytest.approx(row["low"])


def test_every_layer_has_a_row_and_equal_names_do_not_merge(result: Result) -> None:
    long = "features.denseblock3.denselayer12"
    result["layers"] += [result["layers"][0] | {"name": f"{part}.{long}"} for part in ("a", "b")]
    figure = figures(result)["layers"]
    wide, narrow = figure["data"]
    assert wide["y"] == narrow["y"] == list(range(len(result["layers"])))
    assert narrow["x"] == [layer["after"][1] for layer in result["layers"]]
    names = figure["layout"]["yaxis"]["ticktext"]
    assert len(names) == len(result["layers"]) and names[-1] == names[-2] and len(names[-1]) < len(long)
    assert wide["customdata"][-1] != wide["customdata"][-2]  # the box over the bar holds the whole name


def test_a_key_for_every_trace_and_its_own_looks_for_every_run(result: Result) -> None:
    epoch = result["training"][0]
    result["training"] = [epoch | {"run": f"run {i}", "epoch": e} for i in range(12) for e in (1, 2)]
    for figure in figures(result).values():
        assert [key.name for key in figure["keys"]] == [trace["name"] for trace in figure["data"]]
    keys = figures(result)["training"]["keys"]
    assert len({(key.sign, key.color) for key in keys}) == 12
