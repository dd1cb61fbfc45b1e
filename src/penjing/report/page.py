"""A run's result as one HTML page: for the manager the verdict and four numbers, for the engineer all the rest.

``summary.py``, ``tables.py`` and ``generalization.py`` turn numbers into words, ``charts.py`` into figures; the templates
only lay them out. Plotly's script is written into the page, which therefore fetches nothing.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

from penjing.files import whole_file
from penjing.report import summary, tables
from penjing.report.charts import figures
from penjing.report.figure import Data
from penjing.report.generalization import generalization
from penjing.report.layers import time_sentence
from penjing.report.numbers import metric_of


def write_report(result: Data, path: Path) -> None:
    """Write the page, whole or not at all."""
    page = render(result)
    with whole_file(path) as part:
        part.write_text(page, encoding="utf-8")


def render(result: Data) -> str:
    """The page for the content of a run's ``result.json``; a section whose part is missing or empty is left out."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # here and not above: ``import penjing`` stays light
    from plotly.offline import get_plotlyjs

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    page: str = environment.get_template("page.html.jinja").render(
        result=result, created=_date(result["created"]), plotly=get_plotlyjs(), figures=figures(result), **_words(result)
    )
    return page


def _words(result: Data) -> dict[str, Any]:
    """The content of every section, by the name that the templates use."""
    metric, kernels = metric_of(result), result.get("kernels") or {}
    return {
        "metric": metric,
        "verdict": summary.verdict(result),
        "budget": summary.limits(result.get("budget") or {}, metric),
        "tiles": summary.tiles(result, metric),
        "rows": summary.rows(result, metric),
        "sentences": summary.sentences(result, metric),
        "candidates": tables.candidates(result, metric),
        "general": generalization(result, metric),
        "timings": tables.timings(result),
        "measured": tables.measured(result),
        "layer_times": time_sentence(result.get("layers") or (), result.get("other_time")),
        "slower": tables.slower(result),
        "slower_sentence": tables.slower_sentence(result),
        "kernels": [tables.kernels(runtime, layers) for runtime, layers in kernels.items() if layers],
        "classes": result.get("classes", metric.percent),
        "agreement": tables.agreement(result),
        "stages": tables.stages(result),
        "spent": tables.spent(result),
        "facts": tables.facts(result),
    }


def _date(text: str) -> str:
    when = datetime.fromisoformat(text)
    return f"{when:%B} {when.day}, {when:%Y, %H:%M} {when.tzname() or ''}".strip()
