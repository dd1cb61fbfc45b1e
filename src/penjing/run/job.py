"""What all stages of one run need: network, task, limits, and the folder in which every stage leaves what it made."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from penjing import ranks
from penjing.errors import RecipeError
from penjing.files import alone, digest_of, is_only_locked, is_part, read_json, remove_parts, write_json
from penjing.graph import capture, check_weights, repeated
from penjing.measure import cores, machine
from penjing.progress import Progress
from penjing.quant import target_named
from penjing.quant.targets import WITHOUT_VNNI
from penjing.recipe import Recipe
from penjing.result import package_version
from penjing.search import Budget, Ledger, Timer
from penjing.settings import Settings
from penjing.task import (
    Batches,
    Run,
    Score,
    Task,
    check_metric,
    check_order,
    check_task,
    first_batch,
    first_batches,
    scored,
    searched,
)
from penjing.train.tensors import state_of

MARK = "run.json"  # says that a folder is ours, and of which model and settings
LOCK = "lock.json"  # what the run was made with: versions, machine, seed


class Job:
    """One run. Making it looks at everything and writes nothing.

    Attributes:
        example: One sample, as the network takes it.
        timer: Times files at the batch size that latency is judged at.
        calibration: Batches of inputs, without labels, the same in every run.
        stages: The folder of what stages made.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        budget: Budget,
        target: str,
        out: Path,
        settings: Settings,
        progress: Progress,
        recipe: Recipe | None = None,
    ) -> None:
        self.recipe = recipe
        self.model, self.task, self.budget, self.out, self.settings = model, task, budget, out, settings
        self.profile, self.progress = target_named(target), progress
        self.threads = settings.threads or cores()
        check_weights(model)
        searched = check_task(task, model, labels=settings.needs_labels)
        check_order(task)
        check_metric(task, model)
        self.example = tuple(x[:1] for x in searched)
        timed = repeated(self.example, settings.batch)
        computed = _computed(model, self.example)
        self.identity = _identity(model, computed, task, searched, settings, self.profile.name)
        self.mark = {
            "identity": self.identity,
            "model": digest_of(state_of(model), computed),
            "data": digest_of(_named(searched)),
            "target": self.profile.name,
            "settings": asdict(settings),
        }
        self.calibration = [x for x, _ in first_batches(task.train, settings.calibration, settings.seed)]
        self.ledger = Ledger()
        self.timer = Timer(
            timed, threads=self.threads, seconds=settings.seconds, ledger=self.ledger, fresh=settings.fresh, progress=progress
        )
        self.stages = out / "stages"
        self._check_folder()
        self.log = Log(self.stages / "log.json")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Have the folder, to write to it.

        Raises:
            RecipeError: Another process is at work in it.
        """
        with alone(self.stages):
            self._check_folder()  # again: somebody else may have been there in between
            write_json(self.out / MARK, self.mark)
            made_with = {"penjing": package_version(), **machine(), "threads": self.threads, "seed": self.settings.seed}
            write_json(self.out / LOCK, made_with)
            remove_parts(self.out)
            yield

    def release(self) -> None:
        """Leave the folder as it was before this process, where that was empty or not there."""
        if self.new:
            shutil.rmtree(self.stages, ignore_errors=True)
            for name in (MARK, LOCK):
                (self.out / name).unlink(missing_ok=True)
            with suppress(OSError):  # it was there, in use
                self.out.rmdir()

    @cached_property
    def judges(self) -> str:
        """What the confirm split is known by: a digest of all inputs and targets."""
        found = ""
        for batch in self.task.confirm:
            found = digest_of(_leaves(batch), found)
        return found

    @cached_property
    def asked(self) -> str:
        """What the log knows the stages of this run by: a digest of its budget and of what judges it."""
        return digest_of({}, json.dumps(asdict(self.budget), sort_keys=True, default=str) + self.judges)

    def score(self, run: Run, batches: Batches) -> Score:
        """What the metric gives, checked.

        Raises:
            NoScore: It fails, or gives no finite number.
        """
        return scored(self.task.metric, run, batches)

    def searched(self, run: Run) -> float:
        """The score on the search split; lower than all others where the metric gives no finite number."""
        return searched(self.task, run)

    def kept(self, name: str) -> Any | None:
        """What an earlier process of this run has left under a name; None where there is nothing."""
        path = self.stages / f"{name}.json"
        return read_json(path) if path.is_file() else None

    def keep(self, name: str, value: Any) -> None:
        """Leave something for a process that goes on."""
        if ranks.is_writer():
            write_json(self.stages / f"{name}.json", value)

    @cached_property
    def clock(self) -> str:
        """What times are known by: a run may go on where the same file takes another time."""
        here = machine()
        told = [here["cpu"], here["features"], here[self.profile.runtime], self.threads]
        return digest_of({}, json.dumps(told))[:12]

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, str]]:
        """A stage of the run: what it cost is noted, and what it gave, if ``gave`` is put into the dictionary."""
        began, told = time.perf_counter(), {"gave": ""}
        yield told
        self.log.add("stages", {"name": name, "seconds": round(time.perf_counter() - began, 2), **told, "of": self.asked})

    def _check_folder(self) -> None:
        """Refuse a folder that is not ours."""
        there = [p for p in self.out.iterdir() if not is_part(p)] if self.out.is_dir() else []
        self.new = all(p == self.stages and is_only_locked(p) for p in there)
        if not self.new:
            mark = self.out / MARK
            if not mark.is_file():
                raise RecipeError(f"{self.out} holds something else; choose a new or empty folder with --out")
            held = read_json(mark)
            if held.get("identity") != self.identity:
                other = ", ".join(_differing(held, self.mark))
                raise RecipeError(f"{self.out} holds a run with {other}; choose another folder with --out, or delete it")
        elif self.out.exists() and not self.out.is_dir():
            raise RecipeError(f"{self.out} is a file; choose a new or empty folder with --out")


class Log:
    """Rows that survive the process: what stages cost, what epochs were like."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Of one kind, in the order in which they came."""
        return list(self._all().get(kind, []))

    def add(self, kind: str, row: Mapping[str, Any]) -> None:
        """One more; the same row again, as when a killed run walks through epochs that are over, is not."""
        held = self._all()
        if ranks.is_writer() and row not in held.setdefault(kind, []):
            held[kind].append(dict(row))
            write_json(self.path, held)

    def _all(self) -> dict[str, list[dict[str, Any]]]:
        return read_json(self.path) if self.path.is_file() else {}


def _identity(
    model: nn.Module, computed: str, task: Task, searched: tuple[Tensor, ...], settings: Settings, target: str
) -> str:
    """A digest of what decides what a stage makes; the budget only chooses among what they made.

    The first batch of the search split stands for the data: it is the one most often walked in the same order.
    """
    told = json.dumps([asdict(settings), target, type(model).__name__, computed], sort_keys=True, default=str)
    return digest_of({**state_of(model), **_named(searched), **_leaves(first_batch(task.search, "search")[1])}, told)


def _computed(model: nn.Module, example: tuple[Tensor, ...]) -> str:
    """What a network computes, which its weights alone do not say: its operations, and the constants among them."""
    graph = capture(model, example)
    read = {str(n.target) for n in graph.module.graph.nodes if n.op == "get_attr"} - model.state_dict().keys()
    constants = {name: attrgetter(name)(graph.module) for name in sorted(read)}
    return digest_of({n: t for n, t in constants.items() if isinstance(t, Tensor)}, graph.module.code)


def _leaves(tree: Any) -> dict[str, Tensor | bytes]:
    """The leaves of any tree with their places in it; of what cannot be told from outside, what kind it is."""
    return {keystr(path): _told(leaf) for path, leaf in tree_flatten_with_path(tree)[0]}


def _told(leaf: Any) -> Tensor | bytes:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        leaf = torch.from_numpy(np.ascontiguousarray(leaf))
    if isinstance(leaf, Tensor):
        return leaf
    plain = isinstance(leaf, str | bytes | int | float | bool | None)
    return (repr(leaf) if plain else type(leaf).__qualname__).encode()


def _named(searched: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {f"input {i}": x for i, x in enumerate(searched)}


def _differing(held: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What another run's mark says otherwise than ours, in words."""
    words = {"model": "another model", "data": "other data"}
    parts = [said for part, said in words.items() if held.get(part, now[part]) != now[part]]
    if held.get("target") != now["target"]:
        parts.append(f"target {held.get('target')} (now {now['target']}){_flavor(held.get('target', ''), now['target'])}")
    then, asked = _flat(held.get("settings", {})), _flat(json.loads(json.dumps(now["settings"])))
    changed = [n for n in {**asked, **then} if then.get(n) != asked.get(n)]
    parts += [f"{n} {then.get(n)!r} (now {asked.get(n)!r})" for n in changed]
    return parts or ["another model, or other data"]


def _flavor(held: str, now: str) -> str:
    """Why the same runtime is another target on this machine."""
    alike = held.removesuffix(WITHOUT_VNNI) == now.removesuffix(WITHOUT_VNNI)
    return ", for one of the two processors has no VNNI; go on where it was begun" if alike else ""


def _flat(settings: Mapping[str, Any], above: str = "settings.") -> dict[str, Any]:
    """Settings by their whole names, those of inner sections too."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value}
    return found
