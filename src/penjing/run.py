"""The order of the stages: look -> price -> cut, teach, quantize (a rung of the ladder) -> ship -> confirm -> tell.

What a stage made is kept in ``OUT/stages``, so that a run that was killed goes on; the results appear in ``OUT`` at the end,
each file whole.
"""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import penjing.result as told
from penjing.distill import TeacherLoss, imitate, weighted, with_labels
from penjing.errors import BudgetError, RecipeError
from penjing.export import RUNTIMES, Artifact, agreement, export, left_in_float, torch_outputs
from penjing.files import read_json, remove_parts, whole_file, write_json, write_tensors
from penjing.graph import capture, check_weights, find_channels
from penjing.measure import compare, cores, layers, machine, macs, parameters
from penjing.plan import ChannelPlan
from penjing.progress import Progress, silent
from penjing.prune import choose_widths, plan_widths, prune_channels
from penjing.quant import quantize, target_named
from penjing.report import write_report
from penjing.result import Result, load_result
from penjing.score import Evidence, l2_norm
from penjing.search import Budget, Candidate, Cost, climb, within_limits
from penjing.task import Inputs, Task, as_tuple, check_task
from penjing.train import Epoch, Training, fit

MARK = "run.json"  # says that a folder is ours, and of which model and settings


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How ``compress`` goes about it."""

    ratios: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)  # shares of channels to drop, gentlest first
    cut_sums: bool = False  # also cut channels that are added to one another: smaller still, and harder to recover
    epochs: int = 4  # of training after each cut
    training: Training = field(default_factory=lambda: Training(lr=0.02, mixup=0.5))
    temperature: float = 4.0  # of the teacher's softened classes
    labels: float = 0.1  # weight of the task's own loss; the rest follows the teacher. 0 needs no labels
    calibration: int = 512  # images that the ranges of int8 values are read from
    batch: int = 1  # the batch size that latency is judged at
    report_batches: tuple[int, ...] = (1, 32)  # the batch sizes in the report
    round_to: int | None = None  # channels are kept in multiples of this; None for the target's
    exclude: tuple[str, ...] = ()  # patterns of parameter names to leave whole
    threads: int | None = None  # of the runtimes; None for all cores
    seconds: float = 0.5  # to time each contender

    def __post_init__(self) -> None:
        if not self.ratios or list(self.ratios) != sorted(set(self.ratios)) or not 0 <= self.ratios[0] <= self.ratios[-1] < 1:
            raise RecipeError(f"ratios are {self.ratios}; give rising shares from 0 up to 1, e.g. 0,0.25,0.5")
        if not 0 <= self.labels <= 1:
            raise RecipeError(f"labels is {self.labels}; give the weight of the task's own loss, from 0 to 1")
        for name in ("epochs", "calibration", "batch"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}; give at least 1")


def compress(
    model: nn.Module,
    task: Task,
    *,
    budget: Budget | None = None,
    target: str = "onnxruntime",
    out: str | Path,
    settings: Settings | None = None,
    progress: Progress = silent,
) -> Result:
    """Give the fastest int8 network within the budget that keeps the model's accuracy, as a file, with the proof.

    Args:
        model: A trained network; left alone.
        budget: The limits; by default one point of the metric may be lost.
        target: The runtime that the file is placed for and judged in.
        out: A folder for the results: new, empty, or of an earlier run with the same model and settings, which goes on.

    Raises:
        BudgetError: No candidate meets the limits; names the nearest that can be met.
        PenjingError: The model, the data or the folder cannot be used; nothing is written.
    """
    run = _Compression(model, task, budget or Budget(), target, Path(out), settings or Settings(), progress)
    return run.finished() or run.result()


class _Compression:
    """One run: what all stages need, and what each has cost."""

    def __init__(
        self, model: nn.Module, task: Task, budget: Budget, target: str, out: Path, settings: Settings, progress: Progress
    ) -> None:
        self.model, self.task, self.budget, self.out, self.settings = model, task, budget, out, settings
        self.profile, self.progress = target_named(target), progress
        self.threads = settings.threads or cores()
        check_weights(model)
        searched = check_task(task, model)
        self.example = tuple(x[:1] for x in searched)
        self.timed = _repeated(self.example, settings.batch)
        self.loss: TeacherLoss = weighted(
            (1 - settings.labels, imitate(settings.temperature)), (settings.labels, with_labels(task.loss))
        )
        self.identity = _identity(model, searched, settings, self.profile.name)
        self.stages = out / "stages"
        self.seconds: list[dict[str, Any]] = []
        self.curves: list[dict[str, Any]] = []
        self.calibration = _calibration(task, settings.calibration)
        self._check_folder()

    def finished(self) -> Result | None:
        """The result, when this very run was finished before."""
        if not (self.out / told.RESULT).is_file():
            return None
        done = load_result(self.out)
        return done if done.data["budget"] == told.budget_entry(self.budget) else None

    def result(self) -> Result:
        """Run what is left to run."""
        self.widths = self._widths()
        original, candidates = self._prices()
        candidates = within_limits(candidates, original, self.budget)
        self._claim()
        float32 = export(self.model, self.example, self.stages / "original.onnx", target=self.profile.name)
        with self._stage("score the original"):
            reference = self.task.metric(float32.load(self.threads, "f32"), self.task.search)
        self.nets: dict[float, tuple[nn.Module, ChannelPlan]] = {}
        self.shipped: dict[float, tuple[nn.Module, Artifact]] = {}
        try:
            candidates = climb(candidates, reference.value, self.budget, self._attempt)
        except BudgetError as e:
            raise BudgetError(f"{e}. What was trained is kept in {self.stages}: with another budget the run goes on") from e
        chosen = next(c for c in candidates if c.status == "chosen")
        data = self._confirm(float32, chosen) | {
            "candidates": [_candidate_row(c) for c in candidates],
            "original_candidate": {"score": reference.value, "latency": original.latency},
            "training": self.curves,
            "stages": self.seconds,
        }
        self._write(data, chosen)
        return load_result(self.out)

    # Look and price.

    def _widths(self) -> list[dict[str, int]]:
        step = self.settings.round_to or self.profile.lanes
        channels = find_channels(capture(self.model, self.example))
        s = self.settings
        return [choose_widths(channels, r, exclude=s.exclude, round_to=step, cut_sums=s.cut_sums) for r in s.ratios]

    def _prices(self) -> tuple[Cost, list[Candidate]]:
        """What every candidate costs, untrained: weights do not change it."""
        kept = self.stages / "prices.json"
        if kept.is_file():
            prices = [Cost(**p) for p in read_json(kept)]
        else:
            with self._stage("price the ladder"), tempfile.TemporaryDirectory() as folder:
                prices = self._priced(Path(folder))
        self.prices = prices
        return prices[0], [Candidate(r, c) for r, c in zip(self.settings.ratios, prices[1:], strict=True)]

    def _priced(self, folder: Path) -> list[Cost]:
        contenders = [export(self.model, self.example, folder / "original.onnx", target=self.profile.name)]
        work = [macs(capture(self.model, self.example))]
        net = self.model
        with self.progress("pricing", len(self.widths)) as advance:
            for ratio, widths in zip(self.settings.ratios, self.widths, strict=True):
                net, _ = self._cut(net, widths, verify=False)
                _, artifact = self._shipped(net, folder / f"{ratio:g}.onnx", self.calibration[:1])  # ranges cost nothing
                contenders.append(artifact)
                work.append(macs(capture(net, self.example)))
                advance(f"{ratio:.0%} of the channels dropped")
        runs = {str(i): a.load(self.threads, None if i else "f32") for i, a in enumerate(contenders)}
        times = compare(runs, *self.timed, seconds=self.settings.seconds)
        return [
            Cost(times[str(i)].value, a.path.stat().st_size, m) for i, (a, m) in enumerate(zip(contenders, work, strict=True))
        ]

    def _cut(self, net: nn.Module, widths: Mapping[str, int], *, verify: bool) -> tuple[nn.Module, ChannelPlan]:
        evidence = Evidence.of(capture(net, self.example))
        plan = plan_widths(evidence.channels, l2_norm(evidence), widths)
        return (prune_channels(net, plan, self.example, verify=verify), plan) if plan.keep else (net, plan)

    def _shipped(self, net: nn.Module, path: Path, calibration: list[Inputs]) -> tuple[nn.Module, Artifact]:
        module = quantize(net, self.example, calibration, target=self.profile.name)
        return module, export(module, self.example, path, target=self.profile.name)

    # A rung of the ladder.

    def _attempt(self, candidate: Candidate) -> float:
        """Cut from what the gentler rungs learned, teach, quantize, write, and score the file on the search split."""
        at = self.settings.ratios.index(candidate.ratio)
        name = _name(candidate.ratio)
        net, plan = (
            self.nets.get(self.settings.ratios[at - 1], (self.model, ChannelPlan({}))) if at else (self.model, ChannelPlan({}))
        )
        net, cut = self._cut(net, self.widths[at], verify=True)
        if cut.keep:
            with self._stage(f"{name}: distil"):
                net = fit(
                    net,
                    self.task,
                    epochs=self.settings.epochs,
                    teacher=self.model,
                    loss=self.loss,
                    settings=self.settings.training,
                    checkpoint=self.stages / f"{name.replace(' ', '-')}.safetensors",
                    on_epoch=lambda e: self.curves.append(_epoch_row(name, e)),
                    progress=self.progress,
                )
        self.nets[candidate.ratio] = net, plan.then(cut)
        with self._stage(f"{name}: quantize, export, score"):
            module, artifact = self._shipped(net, self._file(candidate), self.calibration)
            self.shipped[candidate.ratio] = module, artifact
            return self.task.metric(artifact.load(self.threads), self.task.search).value

    def _file(self, candidate: Candidate) -> Path:
        return self.stages / f"{_name(candidate.ratio).replace(' ', '-')}.onnx"

    # Confirm and tell.

    def _confirm(self, float32: Artifact, chosen: Candidate) -> dict[str, Any]:
        """Everything that is said of the chosen network, measured on its file."""
        net, _ = self.nets[chosen.ratio]
        module, artifact = self.shipped[chosen.ratio]
        with self._stage("confirm"):
            before = self.task.metric(float32.load(self.threads, "f32"), self.task.confirm)
            after = self.task.metric(artifact.load(self.threads), self.task.confirm)
        with self._stage("time"):
            rows = told.latency_rows(self._timings(float32, artifact))
        with self._stage("compare with torch"):
            inputs = [as_tuple(x) for x, _ in self.task.confirm]
            expected = torch_outputs(module, inputs)
            agree = {n: asdict(agreement(artifact.on(n).load(self.threads), inputs, expected)) for n in RUNTIMES}
            kernels = {name: artifact.on(name).kernels() for name in RUNTIMES}
        old, new = capture(self.model, self.example), capture(net, self.example)
        return {
            "accuracy": told.accuracy(getattr(self.task.metric, "__name__", "metric"), before, after),
            "size": {
                "parameters": [parameters(self.model), parameters(net)],
                "macs": [macs(old), macs(new)],
                "bytes": [float32.path.stat().st_size, artifact.path.stat().st_size],
            },
            "latency": rows,
            "speedup": told.speedup(rows, self.settings.batch),
            "layers": told.layer_rows(layers(old), layers(new)),
            "agreement": agree,
            "kernels": {name: told.kernel_rows(k) for name, k in kernels.items()},
            "left_in_float": {name: [k.layer for k in left_in_float(ks)] for name, ks in kernels.items()},
            "load": told.how_to_load(artifact),
            "files": told.file_entry(artifact),
        }

    def _timings(self, float32: Artifact, small: Artifact) -> dict[tuple[str, int], dict[str, Any]]:
        table: dict[tuple[str, int], dict[str, Any]] = {}
        for batch in sorted({self.settings.batch, *self.settings.report_batches}):
            inputs = _repeated(self.example, batch)
            runs = {
                (name, net): a.on(name).load(self.threads, precision)
                for name in RUNTIMES
                for net, a, precision in ((told.FP32, float32, "f32"), (told.DEFAULT, float32, None), (told.SMALL, small, None))
            }
            keys = {f"{runtime} {net}": (runtime, net) for runtime, net in runs}
            found = compare(
                {k: runs[v] for k, v in keys.items()}, *inputs, seconds=self.settings.seconds, progress=self.progress
            )
            for key, m in found.items():
                runtime, net = keys[key]
                table.setdefault((runtime, batch), {})[net] = m
        return table

    def _write(self, data: dict[str, Any], chosen: Candidate) -> None:
        """Put the results into the folder, ``result.json`` last: where it is, all is."""
        net, plan = self.nets[chosen.ratio]
        data |= {
            "penjing": told.package_version(),
            "created": told.now(),
            "name": type(self.model).__name__,
            "target": self.profile.name,
            "budget": told.budget_entry(self.budget),
            "machine": machine() | {"threads": self.threads},
            "settings": asdict(self.settings),
        }
        data["verdict"] = told.verdict(data)
        with whole_file(self.out / told.ARTIFACT) as part:
            shutil.copyfile(self._file(chosen), part)
        plan.save(self.out / told.PLAN)
        write_tensors(self.out / told.WEIGHTS, net.state_dict())
        write_report(data, self.out / told.REPORT)
        write_json(self.out / told.RESULT, data)

    # The folder.

    def _check_folder(self) -> None:
        """Refuse a folder that is not ours; write nothing."""
        if self.out.is_dir() and any(self.out.iterdir()):
            mark = self.out / MARK
            if not mark.is_file():
                raise RecipeError(f"{self.out} holds something else; choose a new or empty folder with --out")
            if read_json(mark).get("identity") != self.identity:
                raise RecipeError(
                    f"{self.out} holds a run of another model, other data or other settings; choose another folder or delete it"
                )
        elif self.out.exists() and not self.out.is_dir():
            raise RecipeError(f"{self.out} is a file; choose a new or empty folder with --out")

    def _claim(self) -> None:
        write_json(self.out / MARK, {"identity": self.identity, "target": self.profile.name, "settings": asdict(self.settings)})
        remove_parts(self.out)
        (self.out / told.RESULT).unlink(missing_ok=True)  # of an earlier budget: until this run ends, there is no result
        write_json(self.stages / "prices.json", [asdict(c) for c in self.prices])

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds.append({"name": name, "seconds": round(time.perf_counter() - began, 2)})


def _identity(model: nn.Module, searched: tuple[Tensor, ...], settings: Settings, target: str) -> str:
    """A digest of what decides what a stage makes; the budget only chooses among what they made.

    The first batch of the search split stands for the data: it is the one most often walked in the same order.
    """
    sha = hashlib.sha256(repr((asdict(settings), target, type(model).__name__)).encode())
    for name, value in (*model.state_dict().items(), *((f"input {i}", x) for i, x in enumerate(searched))):
        if isinstance(value, Tensor):
            sha.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _calibration(task: Task, images: int) -> list[Inputs]:
    """The first inputs of the training split, the same at every call."""
    held: list[Inputs] = []
    seen = 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if set_epoch := getattr(task.train, "set_epoch", None):
            set_epoch(0)
        for inputs, _ in task.train:
            held.append(inputs)
            seen += len(as_tuple(inputs)[0])
            if seen >= images:
                break
    return held


def _repeated(example: tuple[Tensor, ...], batch: int) -> tuple[Tensor, ...]:
    return tuple(x.repeat(batch, *[1] * (x.ndim - 1)) for x in example)


def _name(ratio: float) -> str:
    return f"ratio {ratio:g}" if ratio else "int8 only"


def _candidate_row(c: Candidate) -> dict[str, Any]:
    return {
        "name": _name(c.ratio),
        "ratio": c.ratio,
        "score": c.score,
        "drop": c.drop,
        "status": c.status,
        "note": c.note,
    } | asdict(c.cost)


def _epoch_row(name: str, e: Epoch) -> dict[str, Any]:
    return {"run": name, "epoch": e.epoch, "loss": e.loss, "lr": e.lr, "seconds": e.seconds}
