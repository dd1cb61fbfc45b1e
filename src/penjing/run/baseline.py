"""The original: as a file, its score on the search split, and what it costs in full and in its runtime's default precision."""

from dataclasses import dataclass, replace

from penjing.errors import RecipeError
from penjing.export import Artifact, export
from penjing.graph import capture
from penjing.measure import macs, peak_memory
from penjing.run.job import Job
from penjing.search import Candidate, Cost


@dataclass(frozen=True)
class Baseline:
    """What candidates are compared with.

    Attributes:
        artifact: The original's file.
        cost: In fp32, on the target: what limits in shares are shares of.
        default: The same file in the runtime's default precision, as a candidate.
        score: Of the file in fp32, on the search split.
    """

    artifact: Artifact
    cost: Cost
    default: Candidate
    score: float


def _check_drop(allowed: float | None, score: float) -> None:
    """Refuse a drop that was surely meant otherwise.

    Raises:
        RecipeError: It is more than there is to lose.
    """
    if allowed is not None and 0 < score <= allowed:
        raise RecipeError(
            f"max_drop is {allowed:g} of the metric and the original scores {score:.4g}: all of it may be lost; half a point "
            "of an accuracy is --max-drop 0.5 on the command line, '0.5 points' in a recipe, 0.005 in Python"
        )


def _check_batch(artifact: Artifact, job: Job) -> None:
    """Refuse to judge a network of a fixed batch at another.

    Raises:
        RecipeError: It takes no such batch in one call.
    """
    fixed, batch = artifact.inputs[0][0], job.settings.batch
    if not artifact.dynamic and fixed != batch:
        raise RecipeError(f"the network takes {fixed} samples at a time, and settings.batch is {batch}; give {fixed}")


def measure_baseline(job: Job) -> Baseline:
    """Write the original as a file, score and time it."""
    artifact = export(job.model, job.example, job.stages / "original.onnx", target=job.profile.name)
    _check_batch(artifact, job)
    held = job.kept("original")
    if held is None:
        with job.stage("score and time the original") as told:
            scores = [job.score(artifact.load(job.threads, p), job.task.search).value for p in ("f32", None)]
            held = {"scores": scores}
            _check_drop(job.budget.max_drop, scores[0])
            job.keep("original", held)
            told["gave"] = f"{scores[0]:.4g} on the search split"
    kept = f"original-times-{job.clock}"
    job.timer.known |= job.kept(kept) or {}  # limits in shares are to be what they were before a kill
    full = job.timer.refer(artifact, "f32").value
    times = job.timer({"default": (artifact, None)})
    job.keep(kept, job.timer.known)
    graph = capture(job.model, job.example)
    size = float(artifact.path.stat().st_size)
    cost = Cost(full, size, macs(graph), peak_memory(graph, job.settings.batch))
    default = Candidate(
        name="original, default precision",
        key="original",
        kind="float",
        share=1.0,
        cost=replace(cost, latency=times["default"].value),
        score=held["scores"][1],
    )
    return Baseline(artifact, cost, default, held["scores"][0])
