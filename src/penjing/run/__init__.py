"""The order of the stages: look -> decide -> cut, repair, train, put into integers (a candidate) -> confirm -> tell.

What a stage made is kept in ``OUT/stages``, so that a run that was killed goes on; the results appear in ``OUT`` at the end,
each file whole.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from penjing import ranks
from penjing.errors import PenjingError
from penjing.graph import reading_once
from penjing.progress import Progress, silent
from penjing.recipe import Recipe
from penjing.result import RESULT, Result, load_result
from penjing.run.baseline import Baseline, measure_baseline
from penjing.run.candidates import Maker
from penjing.run.choose import Chooser
from penjing.run.confirm import confirm
from penjing.run.crew import Crew
from penjing.run.job import Job
from penjing.run.rows import budget_entry
from penjing.run.tables import look
from penjing.run.training import Trainer
from penjing.search import Budget, Candidate, best, gallop, marked, over
from penjing.settings import Settings as Settings
from penjing.task import Task

TIGHTER = 2  # times that a file which takes longer than allowed is made again, smaller


@reading_once()
def compress(
    model: nn.Module,
    task: Task,
    *,
    budget: Budget | None = None,
    target: str = "onnxruntime",
    out: str | Path,
    settings: Settings | None = None,
    recipe: Recipe | None = None,
    progress: Progress = silent,
) -> Result:
    """Give the fastest network within the budget that keeps the model's accuracy, as a file, with the proof.

    Widths and precisions are chosen together, by tables of what they cost and lose, under all limits at once. First without
    training: how fast can it be for nothing? Then with it, as far as training goes. What is taken is confirmed on a split
    that nothing was chosen on; where it does not hold there, the next gentler candidate is, and in the end the original.

    Args:
        model: A trained network; left alone.
        budget: The limits; by default one point of the metric may be lost.
        target: The runtime that the file is placed for and judged in.
        out: A folder for the results: new, empty, or of an earlier run with the same model and settings, which goes on.
        recipe: What all this was read from, to be kept in the folder.

    Raises:
        BudgetError: No widths and precisions meet the limits; names the nearest that do. Nothing was trained.
        PenjingError: The model, the data or the folder cannot be used; nothing is written.
    """
    ranks.join()
    shown = progress if ranks.is_writer() else silent
    job = Job(model, task, budget or Budget(), target, Path(out), settings or Settings(), shown, recipe)
    Crew(job).run(_stages)
    return load_result(job.out)


def _stages(crew: Crew) -> None:
    job = crew.job
    if _finished(job):
        return
    assert crew.choices  # what cannot be read is refused before anything is written
    with job.claimed():
        try:
            baseline = measure_baseline(job)
        except PenjingError:  # nobody is to delete a folder before trying again
            job.release()
            raise
        chooser = Chooser(crew, look(crew), baseline)
        maker = Maker(job, chooser, baseline, Trainer(crew))
        confirm(job, maker, baseline, _Search(job, maker, baseline).run())


def _finished(job: Job) -> bool:
    """Whether this very run was finished before: under the same budget, and judged by the same samples."""
    if not (job.out / RESULT).is_file():
        return False
    held = load_result(job.out).data
    return bool(held["budget"] == budget_entry(job.budget) and held.get("judges", job.judges) == job.judges)


@dataclass
class _Search:
    """Tries candidates, each judged as it is made; ``tried`` has all of them."""

    job: Job
    maker: Maker
    baseline: Baseline
    tried: list[Candidate] = field(default_factory=list)

    def run(self) -> list[Candidate]:
        """All candidates, best first."""
        widest, narrowest = self.maker.chooser.bounds()
        untrained = self._attempt(lambda: None, trained=False)
        first = untrained(widest)
        for _ in range(TIGHTER):
            closer = _closer(self.tried[-1], widest, self.maker.chooser.ceilings)
            if not narrowest <= closer < widest:
                break
            widest = closer
            first = untrained(widest)
        trains = self.maker.trainer.trains
        if self.job.budget.wants_accuracy:  # the limits say how fast
            if trains:
                self._attempt(lambda: None, trained=True)(widest)
            return _ordered(self.tried, self.job.budget)
        least = widest
        if first and self.job.settings.probes:
            least = gallop(untrained, holds=widest, least=narrowest, trials=self.job.settings.probes)
        if trains:
            self._train(widest, least, narrowest)
        return _ordered(self.tried, self.job.budget)

    def _train(self, widest: float, least: float, narrowest: float) -> None:
        """From the narrowest that holds untrained to narrower ones; where none holds, the widest with all that there is."""
        trials = self.job.settings.attempts
        trained = self._attempt(lambda: _source(self.tried), trained=True, trials=trials)
        held = any(c.status == "holds" for c in self.tried)
        if held or trained(widest):
            gallop(trained, holds=least, least=narrowest, trials=trials if held else trials - 1)
        elif trials > 1 and self.tried[-1].status == "too inaccurate":  # nothing narrower will do: it gets what is left
            failed = self.tried[-1]
            self._attempt(lambda: failed, trained=True)(widest)

    def _attempt(self, source: Callable[[], Candidate | None], *, trained: bool, trials: int = 1) -> Callable[[float], bool]:
        """A function that makes a candidate for a share of the time and says whether it holds."""
        left = trials

        def make(share: float) -> bool:
            nonlocal left
            made = self.maker.make(share, source(), trained=trained, trials=left)
            left = max(1, left - 1)
            self.tried.append(marked(made, self.baseline.score, self.maker.chooser.ceilings, self.job.budget))
            return self.tried[-1].status == "holds"

        return make


def _closer(made: Candidate, share: float, ceilings: Mapping[str, float]) -> float:
    """A share that should keep the limit on latency, where the file made for ``share`` did not."""
    most = ceilings.get("latency", math.inf)
    return share if "latency" not in over(made.cost, ceilings) else 0.97 * share * most / made.cost.latency


def _source(tried: list[Candidate]) -> Candidate | None:
    """What the next trained candidate is cut from: the fastest that was trained and holds, or else the original."""
    holding = [c for c in tried if c.steps and c.status == "holds"]
    return min(holding, key=lambda c: c.cost.latency, default=None)


def _ordered(tried: list[Candidate], budget: Budget) -> list[Candidate]:
    holding = best(tried, budget)
    return holding + [c for c in tried if c not in holding]
