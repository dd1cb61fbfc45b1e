"""What a run found, as plain data (``result.json``) and as the object that ``compress`` hands back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import RecipeError
from penjing.export import Artifact
from penjing.files import digest
from penjing.measure import Measurement
from penjing.plan import ChannelPlan
from penjing.task import Metric, Score

RESULT, REPORT, ARTIFACT, PLAN, WEIGHTS = "result.json", "report.html", "net.onnx", "plan.json", "weights.safetensors"
FP32, DEFAULT, SMALL = "original fp32", "original default", "compressed"


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: Where its files are.
        data: The content of ``result.json``.
        artifact: The file to deploy.
        plan: Which channels of the original stay.
    """

    folder: Path
    data: Mapping[str, Any]
    artifact: Artifact
    plan: ChannelPlan

    @property
    def holds(self) -> bool:
        """Whether the budget held on the confirm split."""
        return bool(self.data["verdict"]["holds"])

    @property
    def measurements(self) -> dict[str, dict[str, Measurement]]:
        """``{network: {what: measurement}}``: the metric, parameters, macs, bytes and latencies, before and after."""
        a, size = self.data["accuracy"], self.data["size"]
        exact = {k: [Measurement.exact(v, k) for v in pair] for k, pair in size.items()}
        scores = [Measurement(a[k], a["metric"], a[k], a[k], a["samples"], "confirm split") for k in ("before", "after")]
        table: dict[str, dict[str, Measurement]] = {
            net: {a["metric"]: scores[i], **{k: pair[i] for k, pair in exact.items()}} for i, net in enumerate((FP32, SMALL))
        }
        for r in self.data["latency"]:
            m = Measurement(r["median"], r["unit"], r["low"], r["high"], r["samples"], r["where"])
            table.setdefault(r["net"], {})[f"latency, batch {r['batch']}, {r['runtime']}"] = m
        return table

    def __str__(self) -> str:
        return str(self.data["verdict"]["sentence"])


def load_result(folder: Path) -> Result:
    """Read a finished run from its folder.

    Raises:
        RecipeError: There is none.
    """
    path = folder / RESULT
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        told = data["files"]
        shapes = tuple(tuple(s) for s in told["inputs"])
        artifact = Artifact(folder / ARTIFACT, data["target"], shapes, bool(told["dynamic"]), told["digest"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise RecipeError(f"{folder} holds no finished run ({RESULT}: {e}); run penjing compress or penjing demo first") from e
    if not artifact.path.is_file() or digest(artifact.path) != artifact.digest:
        raise RecipeError(f"{artifact.path} is missing or is not the file that the run wrote; delete {folder} and run again")
    return Result(folder, data, artifact, ChannelPlan.load(folder / PLAN))


def is_share(metric: Metric, *scores: Score) -> bool:
    """Whether a metric is a share, told in points: it has no unit, and all that it gave is between 0 and 1."""
    each = np.concatenate([np.append(s.per_sample, s.value) for s in scores])
    return bool(not getattr(metric, "unit", "") and each.min() >= 0 and each.max() <= 1)


def less_or_more(before: float, after: float, less: str, more: str) -> str:
    """How many times less there is, or more: ``2.0 times smaller``."""
    return f"{before / after:.1f}{less}" if after <= before else f"{after / before:.1f}{more}"


def amount(value: float, accuracy: Mapping[str, Any]) -> str:
    """A difference of the metric with its unit: points of a share, else as it is."""
    return f"{points(value)} points" if accuracy["percent"] else f"{value:.3g} {accuracy['unit']}".strip()


def points(share: float) -> str:
    """A share as points, without a minus before a zero."""
    return f"{100 * share:.2f}".replace("-0.00", "0.00")


def package_version() -> str:
    """Of penjing."""
    return version("penjing")
