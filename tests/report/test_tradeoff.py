"""Every candidate stands in the chart where its numbers say."""

from typing import Any

import pytest

from penjing.report.figure import Figure
from penjing.report.numbers import metric_of
from penjing.report.tradeoff import STATUSES, tradeoff

Result = dict[str, Any]


def drawn(result: Result) -> Figure:
    figure = tradeoff(result, metric_of(result))
    assert figure
    return figure


def traces(result: Result) -> dict[str, Any]:
    return {trace["name"]: trace for trace in drawn(result)["data"]}


def points(result: Result) -> list[tuple[float, float, str]]:
    """Latency, drawn score and box of every mark; the region and the limits have no box."""
    marks = [trace for trace in drawn(result)["data"] if "customdata" in trace]
    return [point for trace in marks for point in zip(trace["x"], trace["y"], trace["customdata"], strict=True)]


def test_the_region_of_the_budget_holds_the_candidates_that_hold(result: Result) -> None:
    drawn = traces(result)
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
    drawn = [name.replace("\u00a0", " ") for name in traces(result)]
    assert [name for name in drawn if name.startswith("limit")] == lines
    assert ("within the budget" in drawn) == bool(lines)


def test_without_the_original_no_relative_limit_is_drawn(result: Result) -> None:
    result["original_candidate"] = None
    assert set(traces(result)) == {"chosen", "holds", "too inaccurate", "too inaccurate, not trained", "over the limit"}


def test_every_candidate_with_a_score_is_drawn_where_it_belongs(result: Result) -> None:
    marks = {told.split(":")[0].removeprefix("<b>"): (x, y) for x, y, told in points(result)}
    scored = [c for c in result["candidates"] if c["score"] is not None]
    assert set(marks) == {c["name"] for c in scored} | {result["name"]}
    for c in scored:
        latency = c["predicted"] if c["latency"] is None else c["latency"]
        lowest = drawn(result)["layout"]["yaxis"]["range"][0]
        expected = 100 * c["score"] if 100 * c["score"] >= lowest else pytest.approx(lowest, abs=0.5)
        assert marks[c["name"]] == (latency, expected)
    assert marks[result["name"]] == (8.4, pytest.approx(94.4))


def test_a_hopeless_candidate_does_not_flatten_the_others(result: Result) -> None:
    low = traces(result)["lower than the chart reaches"]
    bottom, top = drawn(result)["layout"]["yaxis"]["range"]
    assert len(low["x"]) == 1 and bottom < low["y"][0] < top and top - bottom < 10
    assert "61.20" in low["customdata"][0] and "not measured (predicted 0.700" in low["customdata"][0]
    result["candidates"].pop()  # control: without it nothing lies below
    assert "lower than the chart reaches" not in traces(result)


def test_all_forty_candidates_are_drawn_and_what_was_not_trained_is_hollow(result: Result) -> None:
    one = next(c for c in result["candidates"] if c["status"] == "holds")
    result["candidates"] = [one | {"name": f"n{i}", "kind": "untrained" if i % 4 == 0 else "trained"} for i in range(40)]
    found = traces(result)
    assert len(found["holds"]["x"]) == 30 and len(found["holds, not trained"]["x"]) == 10
    assert found["holds, not trained"]["marker"]["symbol"] == "circle-open"


def test_the_original_is_drawn_once(result: Result) -> None:
    own = result["candidates"][0] | {
        "name": "default precision",
        "kind": "original",
        "score": 0.944,
        "status": "over the limit",
    }
    result["candidates"].append(own | {"latency": 5.5})
    assert traces(result)["original"]["x"] == [5.5]
    result["candidates"][-1]["status"] = "chosen"  # it is what the run hands back
    assert "original" not in traces(result) and 5.5 in traces(result)["chosen"]["x"]


def test_a_metric_that_is_no_share_keeps_its_numbers(denoiser: Result) -> None:
    found = traces(denoiser)
    chosen = next(c for c in denoiser["candidates"] if c["status"] == "chosen")
    assert found["chosen"]["y"] == [chosen["score"]]
    assert "limit 30.80\u00a0dB" in found
    assert drawn(denoiser)["layout"]["yaxis"]["title"]["text"] == "PSNR in dB, search split"
    boxes = [told for _, _, told in points(denoiser)]
    assert all("%" not in told and "points" not in told for told in boxes) and any("dB lost" in told for told in boxes)


def test_without_a_measured_candidate_there_is_no_chart(result: Result) -> None:
    for c in result["candidates"]:
        c["latency"] = c["predicted"] = None
    assert tradeoff(result, metric_of(result)) is None


@pytest.mark.parametrize("kind", ["trained", "untrained"])
@pytest.mark.parametrize("status", STATUSES)
def test_every_status_has_a_mark_and_a_sign(result: Result, status: str, kind: str) -> None:
    result["candidates"][2] |= {"name": "this one", "status": status, "kind": kind}
    assert any(told.startswith(f"<b>this one: {status}</b>") for _, _, told in points(result))
