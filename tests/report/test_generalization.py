"""What the small net forgot: nothing is lost between the result and the section."""

from typing import Any

import pytest

from penjing.report.generalization import CLASSES, Generalization, class_chart, corruption_charts, generalization
from penjing.report.numbers import Metric, metric_of

Result = dict[str, Any]
TOP1 = Metric("top1")


def section(result: Result) -> Generalization:
    found = generalization(result, metric_of(result))
    assert found
    return found


def test_the_class_that_lost_most_is_on_top_and_joined_to_where_it_was(result: Result) -> None:
    rows = result["generalization"]["per_class"]
    chart = class_chart(rows, TOP1)
    assert chart
    before, after = chart["data"]
    assert chart["layout"]["yaxis"]["ticktext"][0] == max(rows, key=lambda row: row["before"] - row["after"])["label"]
    assert sorted(before["x"]) == pytest.approx(sorted(100 * row["before"] for row in rows))
    for old, new, up, down in zip(
        before["x"], after["x"], after["error_x"]["array"], after["error_x"]["arrayminus"], strict=True
    ):
        assert new + up - down == pytest.approx(old) and up >= 0 and down >= 0


def test_of_very_many_classes_the_worst_are_shown(result: Result) -> None:
    row = result["generalization"]["per_class"][0]
    rows = [row | {"class": i, "label": "", "after": row["before"] - i / 1000} for i in range(200)]
    chart = class_chart([*rows, row | {"class": 200, "after": None}], TOP1)
    assert chart and chart["layout"]["yaxis"]["ticktext"] == [str(i) for i in range(199, 199 - CLASSES, -1)]
    result["generalization"]["per_class"] = rows
    assert section(result).classes == "the 30 of 200 classes that lost most"


def test_each_corruption_has_a_panel_and_all_have_one_scale(result: Result) -> None:
    rows = result["generalization"]["corruptions"]
    charts = corruption_charts(list(reversed(rows)), TOP1)
    assert len(charts) == len({row["name"] for row in rows})
    names = [name for _, name in section(result | {"generalization": {"corruptions": list(reversed(rows))}}).panels]
    for name, chart in zip(names, charts.values(), strict=True):
        own = [row for row in rows if row["name"] == name]  # by severity
        for trace, key in zip(chart["data"], ("before", "after"), strict=True):
            assert trace["x"] == [row["severity"] for row in own]
            assert trace["y"] == pytest.approx([100 * row[key] for row in own])
    low, high = next(iter(charts.values()))["layout"]["yaxis"]["range"]
    assert all(chart["layout"]["yaxis"]["range"] == [low, high] for chart in charts.values())
    assert all(low < 100 * row[key] < high for row in rows for key in ("before", "after"))


def test_sentences_say_flips_calibration_and_the_mean(result: Result) -> None:
    said = " ".join(section(result).sentences).replace("\u00a0", " ")
    assert "3.10 % of the answers changed: 24 from right to wrong, 17 from wrong to right." in said
    assert "Calibration error: 2.10 % before, 3.40 % after." in said
    assert "91.27 % before, 90.34 % after, 0.93 points lost" in said


def test_a_net_without_classes_has_corruptions_only(denoiser: Result) -> None:
    found = section(denoiser)
    assert len(found.panels) == 5 and not found.forgotten and not found.warnings
    assert [s.replace("\u00a0", " ") for s in found.sentences] == [
        "Mean over all corruptions: 26.00 dB before, 25.50 dB after, 0.50 dB lost."
    ]
    assert class_chart(denoiser["generalization"]["per_class"], metric_of(denoiser)) is None


@pytest.mark.parametrize(
    "image", [None, "", "https://a.b/c.png", "data:text/html;base64,AAAA", 'data:image/png;base64,AA" onload="x']
)
def test_only_pictures_within_the_page_are_shown(result: Result, image: str | None) -> None:
    rows = result["generalization"]["forgotten"]
    assert section(result).forgotten[0].image == rows[0]["image"] != ""
    rows[0]["image"] = image
    assert section(result).forgotten[0].image == ""


def test_without_the_part_there_is_no_section(result: Result) -> None:
    assert generalization(result | {"generalization": None}, TOP1) is None
    assert corruption_charts([], TOP1) == {}
