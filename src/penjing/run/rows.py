"""Entries of ``result.json``: what was measured and tried as plain data, the verdict on it, and how to load the file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from torch import Tensor

from penjing.export import Artifact, Kernel
from penjing.files import finite
from penjing.measure import Judgement, Layer, Measurement, Paired
from penjing.result import ARTIFACT, DEFAULT, FP32, PLAN, REPORT, SMALL, WEIGHTS, amount, is_share, less_or_more
from penjing.search import Budget, Candidate
from penjing.task import Metric, Score

MEMORY_BOUND = 16  # multiply-accumulates a weight or channel below which reading takes longer than computing
SLOW = 1.5  # times faster than before: layers that gained less are explained
SHORT = 0.03  # share of the whole time below which nobody asks why


def accuracy(metric: Metric, before: Score, after: Score, found: Paired) -> dict[str, Any]:
    """The two scores and what a paired test says of the drop; whether the metric is a share, and what its unit is."""
    name, unit = getattr(metric, "__name__", "metric"), str(getattr(metric, "unit", ""))
    return {"metric": name, "percent": is_share(metric, before, after), "unit": unit} | {
        k: finite(v) for k, v in asdict(found).items()
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


def layer_rows(
    before: Sequence[Layer], after: Sequence[Layer], precisions: Mapping[str, str], times: Sequence[Mapping[str, float]]
) -> list[dict[str, Any]]:
    """The layers' widths, work, precision and times before and after, matched by name; what went has neither after.

    Args:
        precisions: Of the layers that run.
        times: ms of the layers before and after.
    """
    now = {layer.name: layer for layer in after}
    then, later = times
    return [
        {
            "name": was.name,
            "kind": was.kind,
            "before": list(was.widths),
            "after": list(now[was.name].widths) if was.name in now else [0, 0],
            "kernel": was.kernel,
            "macs": [was.macs, now[was.name].macs if was.name in now else 0],
            "precision": precisions.get(was.name, ""),
            "times": _times(was.name, then, later, gone=was.name not in now),
        }
        for was in before
    ]


def _times(name: str, then: Mapping[str, float], now: Mapping[str, float], *, gone: bool) -> list[float] | None:
    if name not in then or not (gone or name in now):
        return None
    return [then[name], 0.0 if gone else now[name]]


def slower_rows(layers: Sequence[Mapping[str, Any]], lanes: int) -> list[dict[str, Any]]:
    """The layers that gained little, and why, slowest first."""
    timed = [row for row in layers if row["times"]]
    whole = sum(row["times"][1] for row in timed)
    held = [row for row in timed if row["times"][1] > SHORT * whole and row["times"][0] < SLOW * row["times"][1]]
    return [
        {"layer": r["name"], "why": _why(r, lanes), "ms": r["times"][1], "gain": r["times"][0] / r["times"][1]}
        for r in sorted(held, key=lambda r: -r["times"][1])
    ]


def _why(row: Mapping[str, Any], lanes: int) -> str:
    if row["precision"] != "int8":
        return f"it runs in {row['precision'] or 'float'}, not in integers"
    if row["macs"][1] < MEMORY_BOUND * math.prod(row["after"]):
        return "it reads more than it computes: memory, not arithmetic, takes the time"
    odd = [n for n in row["after"] if n % lanes]
    if odd:
        return f"{odd[0]} channels cost as many as {-(-odd[0] // lanes) * lanes}: the runtime takes {lanes} at a time"
    return "it is small: what a call of its kernel costs is most of its time"


def kernel_rows(kernels: Sequence[Kernel]) -> list[dict[str, Any]]:
    """What a runtime executes."""
    return [
        {
            "layer": k.layer,
            "op": k.op,
            "precision": k.precision,
            "note": k.reason or (f"with {', '.join(k.fused)}" if k.fused else ""),
            "weighted": k.weighted,
        }
        for k in kernels
    ]


def candidate_rows(
    original: Mapping[str, Any], tried: Sequence[Candidate], reference: float, trained: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Everything that was tried, the original first.

    Args:
        original: Its row.
        reference: The original's score on the search split.
        trained: By the candidate's key, minutes of training.
    """
    return [dict(original)] + [
        {
            "name": c.name,
            "kind": c.kind,
            "score": c.score,
            "drop": None if c.score is None else reference - c.score,
            "status": c.status,
            "note": c.note,
            "predicted": c.predicted,
            "minutes": trained.get(c.key),
            **asdict(c.cost),
        }
        for c in tried
    ]


def budget_entry(budget: Budget) -> dict[str, Any]:
    """The budget as it was asked for, as JSON knows it; shares of the original's as such."""
    asked = {name: value.item() if isinstance(value, np.generic) else value for name, value in asdict(budget).items()}
    return asked | {name: f"{limit.value!r}x" for name, limit in budget.limits().items() if limit.share}


def file_entry(artifact: Artifact, precision: str | None) -> dict[str, Any]:
    """Names of the files beside ``result.json``, and what is needed to load the network."""
    return {
        "artifact": ARTIFACT,
        "plan": PLAN,
        "weights": WEIGHTS,
        "report": REPORT,
        "digest": artifact.digest,
        "inputs": [list(s) for s in artifact.inputs],
        "dynamic": artifact.dynamic,
        "precision": precision,
    }


def how_to_load(artifact: Artifact, precision: str | None, example: Sequence[Tensor], *, classes: bool) -> str:
    """Ten lines of Python that run the file.

    Args:
        example: Inputs as the network takes them.
        classes: Whether the largest output is the answer.
    """
    zeros = ", ".join(f"np.zeros({tuple(x.shape)}, np.{str(x.dtype).removeprefix('torch.')})" for x in example)
    if artifact.runtime == "openvino":
        hints = '{"PERFORMANCE_HINT": "LATENCY"' + (f', "INFERENCE_PRECISION_HINT": "{precision}"' if precision else "") + "}"
        sizes = ", ".join(f"{i}: {list(x.shape)}" for i, x in enumerate(example))
        load = (
            f'openvino.Core().read_model("{ARTIFACT}")\n'
            f"net.reshape({{{sizes}}})  # of fixed sizes it is fastest\n"
            f'net = openvino.Core().compile_model(net, "CPU", {hints})'
        )
        run = "list(net(inputs).values())"
    else:
        load = f'onnxruntime.InferenceSession("{ARTIFACT}", providers=["CPUExecutionProvider"])'
        run = "net.run(None, {i.name: x for i, x in zip(net.get_inputs(), inputs)})"
    return (
        f"import numpy as np\nimport {artifact.runtime}\n\n"
        f"net = {load}\n"
        f"inputs = [{zeros}]  # prepared as in training\n"
        f"outputs = {run}\n"
        f"print({'outputs[0].argmax(1)' if classes else '[y.shape for y in outputs]'})\n"
    )


def verdict(data: Mapping[str, Any], judgement: Judgement) -> dict[str, Any]:
    """Whether the budget held where it was confirmed, in one sentence, and what to do where it did not."""
    a, size, fast, status = data["accuracy"], data["size"], data["speedup"], judgement.status
    speed = less_or_more(fast["value"], 1.0, " times faster", " times SLOWER")
    smaller = less_or_more(size["bytes"][0], size["bytes"][1], " times smaller", " times LARGER")
    begins = {
        "holds": "Holds",
        "does not hold": "Does not hold",
        "cannot be told": f"Cannot be told with {a['samples']:,} samples",
    }
    changed = _changed(a, data["budget"]["max_drop"])
    sentence = (
        f"{begins[status]}: {speed} than fp32 (batch {fast['batch']}) and {smaller}, "
        f"{'with' if a['drop'] < 0 else 'for'} {changed}."
    )
    if data["unchanged"]:
        why = "Nothing that was tried holds" if status == "does not hold" else "Nothing faster was found within the budget"
        sentence = (
            f"{why}, so this is the original, as fast and as large as before: {begins[status][0].lower()}{begins[status][1:]}, "
            f"with {changed}."
        )
    elif fast["versus_default"] < 1 and _default_holds(data):
        sentence += " In its default precision the original is the faster of the two: deploy that, or compress less."
    if data["untrained"]:
        sentence += " Nothing was trained: no narrower network would be faster than what holds without training."
    return {"status": status, "holds": status == "holds", "sentence": sentence, "advice": _advice(data, judgement)}


def _changed(a: Mapping[str, Any], allowed: float | None) -> str:
    """What was lost or gained, on how many samples, how sure that is, and what was allowed."""
    gained = a["drop"] < 0
    change, ends = (-a["drop"], (a["high"], a["low"])) if gained else (a["drop"], (a["low"], a["high"]))
    told = [] if None in ends else [amount(-end if gained else end, a) for end in ends]
    interval = f"95 % sure on each side: {' to '.join(told)}; " if told else ""
    limit = "the drop was not limited" if allowed is None else f"{amount(allowed, a)} may be lost"
    verb = "gained" if gained else "lost"
    return f"{amount(change, a)} of {a['metric']} {verb} on {a['samples']:,} samples ({interval}{limit})"


def _default_holds(data: Mapping[str, Any]) -> bool:
    """Whether the original in its runtime's default precision keeps the limits."""
    return any(c["kind"] == "float" and c["status"] == "holds" for c in data["candidates"])


def _advice(data: Mapping[str, Any], judgement: Judgement) -> str:
    if judgement.needed:
        return f"About {judgement.needed:,} samples to confirm on would settle it."
    if data["chosen"] != "original":
        return ""
    missed = [
        c
        for c in data["candidates"]
        if c["drop"] is not None and c["kind"] not in ("original", "float") and c["status"] != "holds"
    ]
    if not missed:
        return "Loosen the limits."
    near = min(missed, key=lambda c: (c["status"] != "too inaccurate", c["drop"]))
    if near["status"] != "too inaccurate":
        return f"The nearest was {near['name']}: {near['note']}."
    return (
        f"The nearest was {near['name']}, which loses {amount(near['drop'], data['accuracy'])} on the search split: allow that "
        "much, train longer, or loosen the other limits."
    )


def now() -> str:
    """The time, in ISO form."""
    return datetime.now(UTC).isoformat(timespec="seconds")
