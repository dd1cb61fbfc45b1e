"""The page holds what the result says, fetches nothing, and takes no word of the result for markup."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import pytest
from plotly.offline import get_plotlyjs

from penjing.report import render, write_report

HOSTILE = '<script>hacked()</script><b title="x">&'
MEANT = {"status", "net", "precision", "created", "latency", "memory", "image"}  # words that the report compares or parses
KINDS = {"original", "float", "untrained", "trained", "quantization-aware"}  # likewise, of candidates; those of layers are free
SECTIONS = {
    "latency": ["Latency"],
    "candidates": ["Candidates tried"],
    "generalization": ["Does it generalize?"],
    "layers": ["Latency of each layer", "Width and precision of each layer"],
    "slower": ["Why it is not faster"],
    "training": ["Training"],
    "kernels": ["What the runtime executes"],
    "agreement": ["The file against the trained net"],
    "stages": ["What each stage cost and gave"],
    "load": ["Load the file"],
}
# parts without a section of their own
QUIET = ("speedup", "original_candidate", "budget", "control", "plan", "other_time", "machine", "settings", "files")
CHARTS = [
    "candidates",
    "classes",
    *(f"corruption-{i}" for i in range(5)),
    "latency-1",
    "latency-32",
    "times",
    "layers",
    "training",
]

Result = dict[str, Any]


class Reader(HTMLParser):
    """Every tag of a page, and the text that a person reads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(" ".join([tag, *sorted(name for name, _ in attrs)]))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while tag in self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self.inside):
            return
        self.words.append(data)
        if "h2" in self.inside:
            self.headings.append(data)


def text(page: str) -> str:
    return " ".join(" ".join(Reader(page).words).split())


def figures(page: str) -> dict[str, Any]:
    """What the page's script draws."""
    found = re.search(r"^const figures = (.*);$", page, re.M)
    return json.loads(found[1]) if found else {}


def spoiled(value: Any, key: str = "") -> Any:
    """The result with markup at the end of every string that is shown."""
    if isinstance(value, dict):
        return {k: spoiled(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [spoiled(v, key) for v in value]
    return value + HOSTILE if isinstance(value, str) and key not in MEANT and value not in KINDS else value


def strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        return [s for v in (value.values() if isinstance(value, dict) else value) for s in strings(v)]
    return [value] if isinstance(value, str) else []


def test_the_page_says_the_verdict_and_the_numbers(result: Result) -> None:
    said = text(render(result))
    assert result["verdict"]["sentence"] in said and result["verdict"]["advice"] in said
    for number in (
        "6.0\u00d7 faster",
        "11.1\u00d7 smaller",
        "0.35 points of accuracy lost",
        "\u22120.90 to 0.20",
        "33 % of the MACs",
    ):
        assert number in said
    for number in (
        "94.45 %",
        "94.10 %",
        "1.08 M",
        "371 k",
        "4.34 MB",
        "390 kB",
        "1.38 ms 1.31 to 1.56",
        "22 of 22 layers in int8",
    ):
        assert number in said
    for part in ("candidates", "stages"):
        assert all(row["name"] in said for row in result[part])
    assert all(stage["gave"] in said for stage in result["stages"])
    assert all(row["layer"] in said and row["why"] in said for row in result["slower"])
    assert "predicted 1.31 ms for the chosen one before it was built; measured: 1.38 ms" in said
    for layers in result["kernels"].values():
        assert all((layer["note"] in said) == layer["weighted"] for layer in layers if layer["precision"] != "int8")
    assert " ".join(result["load"].split()) in said


def test_what_the_small_net_forgot_is_shown(result: Result) -> None:
    page, general = render(result), result["generalization"]
    said = text(page)
    assert all(warning in said for warning in general["warnings"]) and "No warning" not in said
    assert all(row["name"] in said for row in general["corruptions"])
    for row in general["forgotten"]:
        assert f"{row['label']} now {row['now']} , {100 * row['confidence']:.0f} % sure" in said
        assert f'src="{row["image"]}"' in page or row["image"] is None
    assert page.count("<img ") == sum(row["image"] is not None for row in general["forgotten"]) > 3
    general["warnings"] = []
    assert "No warning" in text(render(result))


def test_the_default_precision_that_is_faster_is_not_hidden(result: Result) -> None:
    result["slower"], result["speedup"]["versus_default"] = [], 0.82
    page = render(result)
    assert "Why it is not faster" in Reader(page).headings
    assert "the compressed net has 0.82\u00d7 its speed at batch 32" in text(page)
    result["speedup"]["versus_default"] = 1.0
    assert "Why it is not faster" not in Reader(render(result)).headings


def test_a_metric_that_is_no_share_has_no_percent_and_no_points(denoiser: Result) -> None:
    del denoiser["settings"], denoiser["training"]
    for row in denoiser["slower"]:
        row["why"] = ""
    page = render(denoiser)
    said = text(page).replace("95 % confidence", "").replace("of the MACs left", "").replace("33 %", "")
    said = said.replace("5.1 % too fast", "")  # these are shares of other things
    assert "%" not in said and "point" not in said and "31.27 dB" in said and "0.31 dB of PSNR lost" in said
    drawn = json.dumps(figures(page), ensure_ascii=False)
    assert "points" not in drawn and "%" not in drawn and "PSNR in dB" in drawn


def test_same_answers_are_told_where_there_are_answers(result: Result) -> None:
    assert "same answer" in text(render(result))  # of earlier runs, which did not say
    assert "same answer" in text(render(result | {"classes": True}))
    assert "same answer" not in text(render(result | {"classes": False}))  # of masks, a share too


def test_that_the_original_is_faster_by_default_is_no_news_of_the_original_itself(result: Result) -> None:
    result["speedup"] |= {"versus_default": 0.9}
    assert "the original is the faster of the two" in text(render(result))
    assert "the original is the faster of the two" not in text(render(result | {"unchanged": True}))


def test_the_contents_lead_to_every_section(result: Result) -> None:
    page = render(result)
    links = re.findall(r'<a href="#([^"]+)">([^<]+)</a>', page)
    assert [title for _, title in links] == Reader(page).headings
    assert all(page.count(f'<section id="{id}">') == 1 for id, _ in links)


def test_the_numbers_follow_the_result(result: Result) -> None:
    result["accuracy"] |= {"drop": -0.0123, "low": -0.02, "high": -0.001}
    result["verdict"] = {"status": "does not hold", "holds": False, "sentence": "Does not hold.", "advice": ""}
    page = render(result)
    assert "1.23 points of accuracy gained" in text(page) and "0.35 points of accuracy lost" not in text(page)
    assert 'class="verdict bad"' in page and 'class="verdict bad"' not in render(
        result | {"verdict": {"holds": True, "sentence": ""}}
    )


def test_no_word_of_the_result_becomes_markup(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    harmless, hostile = render(result), render(spoiled(result))
    assert Reader(hostile).tags == Reader(harmless).tags
    assert text(hostile).count("hacked()") > 80
    environment = jinja2.Environment
    monkeypatch.setattr(jinja2, "Environment", lambda **settings: environment(**settings | {"autoescape": False}))
    assert Reader(render(spoiled(result))).tags != Reader(harmless).tags  # control: without escaping the tags differ


def test_no_word_of_the_result_becomes_markup_of_plotly(result: Result) -> None:
    drawn = strings({id: [f["data"], f["layout"]] for id, f in figures(render(spoiled(result))).items()})
    labels = [s for s in drawn if "hacked()" in s and s.startswith(("<b>", "&", "o", "\u2026"))]
    assert labels and all("<script" not in s and "<b title" not in s for s in labels)
    assert any("&lt;script" in s for s in labels)


def test_the_page_fetches_nothing(result: Result) -> None:
    page, plotly = render(result), get_plotlyjs()
    assert page.count(plotly) == 1
    own = page.replace(plotly, "")
    assert "://" not in own and "@import" not in own
    linked = re.findall(r'\b(?:src|href|action)="([^"]*)"', own)
    assert "data:," in linked and all(link.startswith(("data:", "#")) for link in linked)
    assert "default-src 'none'" in own  # what the browser is told to refuse, were anything asked for
    assert "://" in plotly  # control: the search does find addresses


@pytest.mark.parametrize("part", [*SECTIONS, *QUIET])
def test_a_part_may_be_missing_or_empty(result: Result, part: str) -> None:
    gone = SECTIONS.get(part, [])
    expected = [h for h in Reader(render(result)).headings if h not in gone]
    assert set(gone) <= set(Reader(render(result)).headings)
    for empty in (type(result[part])(), None):
        assert Reader(render(result | {part: empty})).headings == expected
    del result[part]
    assert Reader(render(result)).headings == expected


def test_without_optional_parts_the_page_is_small(result: Result) -> None:
    page = render({part: value for part, value in result.items() if part not in (*SECTIONS, *QUIET)})
    assert Reader(page).headings == ["Before and after"] and "#sizes" not in page
    assert len(page) < 30_000 < len(render(result))


def test_what_was_not_measured_is_a_dash(result: Result) -> None:
    for row in result["latency"]:
        row["median"] = row["low"] = row["high"] = None
    for candidate in result["candidates"]:
        candidate["latency"] = None
        del candidate["predicted"], candidate["minutes"]
    result["candidates"][0]["latency"] = 0.71
    result["agreement"]["openvino"] |= {"cosine": None, "largest": None}
    page = render(result)
    assert set(CHARTS) - set(figures(page)) == {"latency-1", "latency-32"}
    assert "ratio 0.45 quantization-aware chosen 94.05 % 0.35 \u2013 390 kB" in text(page)


def test_the_file_is_there_whole_or_not_at_all(result: Result, tmp_path: Path) -> None:
    write_report(result, tmp_path / "run" / "report.html")
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == render(result)
    with pytest.raises(KeyError):
        write_report({}, tmp_path / "none.html")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


PROBE = """<script>
const marks = ".barlayer path, .scatterlayer path";
const seen = document.documentElement.dataset;
const charts = [...document.querySelectorAll(".chart")];
seen.drawn = charts.filter((c) => c.querySelector(marks)).map((c) => c.id).join();
seen.fill = getComputedStyle(document.querySelector("#layers .barlayer path")).fill;
seen.overflow = document.documentElement.scrollWidth - innerWidth;
seen.cut = charts.flatMap((c) => [...c.querySelectorAll("svg text")].filter((t) => {
  const box = t.getBoundingClientRect(), room = c.getBoundingClientRect();
  return box.width > 0 && (box.left < room.left - 1 || box.right > room.right + 1);
}).map((t) => c.id)).join();
</script>"""


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., tuple[dict[str, str], list[str]]]:
    """Open a page in a browser: what the probe saw in it, and what was said on the console."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")

    def browse(page: str, width: int, scheme: str) -> tuple[dict[str, str], list[str]]:
        (tmp_path / "page.html").write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
        quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        looks = [f"--window-size={width},1000", "--hide-scrollbars", f"--blink-settings=preferredColorScheme={scheme}"]
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet, *looks]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom"]
        done = subprocess.run(
            [*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=300, check=True
        )
        root = re.search(r"<html[^>]*>", done.stdout)
        assert root
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return dict(re.findall(r'data-(\w+)="([^"]*)"', root[0])), console

    return browse


def test_a_browser_draws_every_chart_without_complaint(
    result: Result, browse: Callable[..., tuple[dict[str, str], list[str]]]
) -> None:
    page = render(spoiled(result))
    assert re.findall(r'<div class="chart" id="([^"]+)"', page) == CHARTS
    wide, complaints = browse(page, 1280, "1")
    assert complaints == []
    assert wide["drawn"].split(",") == CHARTS
    narrow, complaints = browse(page, 390, "0")
    assert complaints == [] and narrow["drawn"] == wide["drawn"]
    assert int(wide["overflow"]) <= 0 and int(narrow["overflow"]) <= 0
    assert narrow["fill"] != wide["fill"]  # the second visit is in the dark
    _, complaints = browse(page.replace("\ndraw();\n", "\nundraw();\n", 1), 390, "1")
    assert len(complaints) > 0  # control: errors are seen


@pytest.mark.slow
def test_no_label_is_cut_off_on_a_phone(result: Result, browse: Callable[..., tuple[dict[str, str], list[str]]]) -> None:
    seen, complaints = browse(render(result), 390, "1")
    assert (seen["cut"], complaints) == ("", [])
    page = render(result).replace('"automargin": true', "").replace("automargin: true", "automargin: false")
    assert browse(page, 390, "1")[0]["cut"] != ""  # control: labels that are cut are seen


@pytest.mark.slow
def test_sixty_layers_and_forty_candidates_stay_readable(
    result: Result, browse: Callable[..., tuple[dict[str, str], list[str]]]
) -> None:
    layer, candidate = result["layers"][1], result["candidates"][2]
    result["layers"] = [layer | {"name": f"features.denseblock{i}.denselayer12.conv1"} for i in range(60)]
    result["candidates"] = [candidate | {"name": f"plan {i}", "latency": 0.5 * 1.08**i} for i in range(40)]
    result["training"] = [result["training"][0] | {"run": f"plan {i}"} for i in range(40)]
    seen, complaints = browse(render(result), 390, "0")
    assert (seen["cut"], complaints, seen["drawn"].split(",")) == ("", [], CHARTS)
    assert int(seen["overflow"]) <= 0


@pytest.mark.slow
def test_a_denoiser_and_the_smallest_result_draw_without_complaint(
    denoiser: Result, browse: Callable[..., tuple[dict[str, str], list[str]]]
) -> None:
    seen, complaints = browse(render(denoiser), 1280, "0")
    assert (seen["drawn"].split(","), seen["cut"], complaints) == ([c for c in CHARTS if c != "classes"], "", [])
    small = render({part: value for part, value in denoiser.items() if part not in (*SECTIONS, *QUIET)})
    assert 'class="chart"' not in small and "<script" not in small
