"""What a run found, as plain data (``result.json``) and as the object that ``compress`` hands back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import RecipeError
from penjing.export import Artifact, Kernel
from penjing.files import digest
from penjing.measure import Layer, Measurement
from penjing.plan import ChannelPlan
from penjing.task import Score

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
        shapes = tuple(tuple(s) for s in data["files"]["inputs"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise RecipeError(f"{folder} holds no finished run ({RESULT}: {e}); run penjing compress or penjing demo first") from e
    file = folder / ARTIFACT
    artifact = Artifact(file, data["target"], shapes, bool(data["files"]["dynamic"]), data["files"]["digest"])
    if not file.is_file() or digest(file) != artifact.digest:
        raise RecipeError(f"{file} is missing or is not the file that the run wrote; delete {folder} and run again")
    return Result(folder, data, artifact, ChannelPlan.load(folder / PLAN))


def accuracy(name: str, before: Score, after: Score) -> dict[str, Any]:
    """The two scores and the drop, with the 95 % interval of the mean paired difference."""
    lost = before.per_sample - after.per_sample
    half = 1.96 * float(np.std(lost, ddof=1)) / max(len(lost), 1) ** 0.5 if len(lost) > 1 else 0.0
    drop = before.value - after.value
    return {
        "metric": name,
        "samples": after.samples,
        "before": before.value,
        "after": after.value,
        "drop": drop,
        "low": drop - half,
        "high": drop + half,
    }


def latency_rows(table: Mapping[tuple[str, int], Mapping[str, Measurement]]) -> list[dict[str, Any]]:
    """``{(runtime, batch): {network: measurement}}`` as rows."""
    return [
        {
            "runtime": runtime,
            "batch": batch,
            "net": net,
            "median": m.value,
            "low": m.low,
            "high": m.high,
            "samples": m.samples,
            "unit": m.unit,
            "where": m.where,
        }
        for (runtime, batch), contenders in table.items()
        for net, m in contenders.items()
    ]


def speedup(rows: Sequence[Mapping[str, Any]], batch: int) -> dict[str, Any]:
    """How many times faster the compressed network is at a batch size, each in its faster runtime."""

    def fastest(net: str) -> float:
        return min(float(r["median"]) for r in rows if r["net"] == net and r["batch"] == batch)

    return {
        "batch": batch,
        "value": fastest(FP32) / fastest(SMALL),
        "against": FP32,
        "versus_default": min(fastest(FP32), fastest(DEFAULT)) / fastest(SMALL),
    }


def layer_rows(before: Sequence[Layer], after: Sequence[Layer]) -> list[dict[str, Any]]:
    """The layers' widths and work before and after, matched by name."""
    now = {layer.name: layer for layer in after}
    return [
        {
            "name": was.name,
            "kind": was.kind,
            "before": list(was.widths),
            "after": list(now[was.name].widths),
            "kernel": was.kernel,
            "macs": [was.macs, now[was.name].macs],
        }
        for was in before
        if was.name in now
    ]


def kernel_rows(kernels: Sequence[Kernel]) -> list[dict[str, Any]]:
    """What a runtime executes."""
    return [
        {
            "layer": k.layer,
            "op": k.op,
            "precision": k.precision,
            "note": f"with {', '.join(k.fused)}" if k.fused else "",
            "weighted": k.weighted,
        }
        for k in kernels
    ]


def verdict(data: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the budget held where it was confirmed, in one sentence."""
    a, size, fast = data["accuracy"], data["size"], data["speedup"]
    allowed = data["budget"]["max_drop"]
    holds = a["drop"] <= allowed + 1e-12
    speed = f"{fast['value']:.1f} times faster" if fast["value"] >= 1 else f"{1 / fast['value']:.1f} times SLOWER"
    sentence = (
        f"{'Holds' if holds else 'Does not hold'}: {speed} than fp32 (batch {fast['batch']}) and "
        f"{size['bytes'][0] / size['bytes'][1]:.1f} times smaller, for {points(a['drop'])} points of {a['metric']} lost on "
        f"{a['samples']:,} samples (95 % interval {points(a['low'])} to {points(a['high'])}; {points(allowed)} may be lost)."
    )
    if fast["versus_default"] < 1:
        sentence += " In its default precision the original is the faster of the two: deploy that, or compress less."
    return {"holds": holds, "sentence": sentence}


def points(share: float) -> str:
    """A share as points, without a minus before a zero."""
    return f"{100 * share:.2f}".replace("-0.00", "0.00")


def file_entry(artifact: Artifact) -> dict[str, Any]:
    """Names of the files beside ``result.json``, and what is needed to load the network."""
    return {
        "artifact": ARTIFACT,
        "plan": PLAN,
        "weights": WEIGHTS,
        "report": REPORT,
        "digest": artifact.digest,
        "inputs": [list(s) for s in artifact.inputs],
        "dynamic": artifact.dynamic,
    }


def how_to_load(artifact: Artifact) -> str:
    """Ten lines of Python that run the file."""
    shape = artifact.inputs[0]
    if artifact.runtime == "openvino":
        return (
            "import numpy as np\nimport openvino\n\n"
            f'net = openvino.Core().compile_model("{ARTIFACT}", "CPU", {{"PERFORMANCE_HINT": "LATENCY"}})\n'
            f"images = np.zeros({shape}, np.float32)  # prepared as in training\n"
            "outputs = net([images])[0]\n"
            "print(outputs.argmax(1))\n"
        )
    return (
        "import numpy as np\nimport onnxruntime\n\n"
        f'net = onnxruntime.InferenceSession("{ARTIFACT}", providers=["CPUExecutionProvider"])\n'
        f"images = np.zeros({shape}, np.float32)  # prepared as in training\n"
        "(outputs,) = net.run(None, {net.get_inputs()[0].name: images})\n"
        "print(outputs.argmax(1))\n"
    )


def package_version() -> str:
    """Of penjing."""
    return version("penjing")


def now() -> str:
    """The time, in ISO form."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def budget_entry(budget: Any) -> dict[str, Any]:
    """The budget as it was asked for."""
    return {k: f"{v}x" if k != "max_drop" and isinstance(v, float) and v <= 1 else v for k, v in asdict(budget).items()}
