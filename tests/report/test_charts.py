"""Charts draw the numbers of the result, where the result says."""

from typing import Any

import pytest

from penjing.report.charts import LOOKS, figures

Result = dict[str, Any]


def traces(result: Result, chart: str) -> dict[str, Any]:
    return {trace["name"]: trace for trace in figures(result)[chart]["data"]}


def test_bars_are_the_medians_and_whiskers_the_percentiles(result: Result) -> None:
    for row in result["latency"]:
        bar = traces(result, f"latency-{row['batch']}")[row["net"]]
        i = bar["x"].index(row["runtime"])
        assert bar["y"][i] == row["median"]
        assert bar["y"][i] + bar["error_y"]["array"][i] == pytest.approx(row["high"])
        assert bar["y"][i] - bar["error_y"]["arrayminus"][i] == pytest.approx(row["low"])


def test_a_key_for_every_trace_and_its_own_looks_for_every_run(result: Result) -> None:
    epoch = result["training"][0]
    result["training"] = [epoch | {"run": f"run {i}", "epoch": e} for i in range(12) for e in (1, 2)]
    for figure in figures(result).values():
        assert [key.name for key in figure["keys"]] == [trace["name"] for trace in figure["data"] if trace["name"]]
    keys = figures(result)["training"]["keys"]
    assert len({(key.sign, key.color) for key in keys}) == 12


def test_of_very_many_runs_the_chosen_keeps_its_color_and_the_rest_shares_one_key(result: Result) -> None:
    epoch, chosen = result["training"][0], next(c["name"] for c in result["candidates"] if c["status"] == "chosen")
    result["training"] = [epoch | {"run": run} for run in [*(f"run {i}" for i in range(39)), chosen]]
    figure = figures(result)["training"]
    assert len(figure["data"]) == 40 and len(figure["keys"]) == LOOKS + 1
    assert figure["keys"][0].name == chosen and figure["keys"][-1].name == f"{40 - LOOKS} more runs"
    assert len({(key.sign, key.color) for key in figure["keys"]}) == LOOKS + 1
