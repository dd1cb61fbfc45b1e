"""Charts by layer: a row for each, the small bar inside the large one."""

from typing import Any

import pytest

from penjing.report.figure import Figure
from penjing.report.layers import REST, layer_times, layer_widths, time_sentence

Result = dict[str, Any]


def widths(result: Result) -> Figure:
    figure = layer_widths(result["layers"])
    assert figure
    return figure


def times(result: Result) -> Figure:
    figure = layer_times(result["layers"], result["other_time"])
    assert figure
    return figure


def test_every_layer_has_a_row_and_equal_names_do_not_merge(result: Result) -> None:
    long = "features.denseblock3.denselayer12"
    result["layers"] += [result["layers"][0] | {"name": f"{part}.{long}"} for part in ("a", "b")]
    figure = widths(result)
    wide, *narrow = figure["data"]
    assert wide["y"] == sorted(y for bars in narrow for y in bars["y"]) == list(range(len(result["layers"])))
    drawn = {y: x for bars in narrow for x, y in zip(bars["x"], bars["y"], strict=True)}
    assert [drawn[i] for i in range(len(drawn))] == [layer["after"][1] for layer in result["layers"]]
    names = figure["layout"]["yaxis"]["ticktext"]
    assert len(names) == len(result["layers"]) and names[-1] == names[-2] and len(names[-1]) < len(long)
    assert wide["customdata"][-1] != wide["customdata"][-2]  # the box over the bar holds the whole name


def test_each_precision_has_its_own_looks(result: Result) -> None:
    bars = {bar["name"]: bar for bar in widths(result)["data"]}
    for precision in ("int8", "bf16", "f32"):
        places = [i for i, layer in enumerate(result["layers"]) if layer["precision"] == precision]
        assert bars[precision]["y"] == places != []
    assert len({bar["marker"]["color"] for bar in bars.values()}) == 4
    assert len({key.sign for key in widths(result)["keys"][1:]}) == 3  # told apart without color
    for layer in result["layers"]:
        del layer["precision"]
    assert [bar["name"] for bar in widths(result)["data"]] == ["original", "compressed"]


def test_times_are_drawn_for_the_layers_that_have_them(result: Result) -> None:
    timed = [layer for layer in result["layers"] if layer["times"]]
    assert len(timed) < len(result["layers"])
    wide, *narrow, labels = times(result)["data"]
    assert wide["x"] == [*(layer["times"][0] for layer in timed), result["other_time"][0]]
    drawn = {y: x for bars in narrow for x, y in zip(bars["x"], bars["y"], strict=True)}
    assert [drawn[i] for i in range(len(drawn))] == [*(layer["times"][1] for layer in timed), result["other_time"][1]]
    assert times(result)["layout"]["yaxis"]["ticktext"][-1] == REST
    assert labels["x"] == [max(pair) for pair in zip(wide["x"], [drawn[i] for i in range(len(drawn))], strict=True)]
    assert labels["text"][0].strip() == "0.81\u00d7"


def test_a_layer_that_became_slower_stands_out(result: Result) -> None:
    bars = {bar["name"]: bar for bar in times(result)["data"]}
    assert bars["compressed, slower than before"]["y"] == [0]
    result["layers"][0]["times"] = [0.2, 0.1]
    assert "compressed, slower than before" not in [bar["name"] for bar in times(result)["data"]]


@pytest.mark.parametrize("times", [None, "missing"])
def test_without_times_there_is_no_chart(result: Result, times: str | None) -> None:
    for layer in result["layers"]:
        layer.pop("times") if times else layer.update(times=None)
    assert layer_times(result["layers"], None) is None
    assert layer_widths([]) is None


def test_the_sentence_sums_the_layers() -> None:
    layers = [{"times": [3.0, 1.0]}, {"times": None}, {"times": [1.0, 0.5]}]
    said = time_sentence(layers, [0.5, 0.25]).replace("\u00a0", " ")
    assert said.startswith("2 layers took 4.00 ms in the original in fp32, now 1.50 ms; all else took 0.500 ms, now 0.250 ms.")
    assert "all else" not in time_sentence(layers, None)
