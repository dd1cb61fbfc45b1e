"""One run on several processes: the first leads, the others lend a hand where work can be shared, tables and training.

All that is measured, decided or written is the leader's alone, so neither clocks nor rounding can make processes part ways.
Alone, a process leads nobody.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Concatenate, ParamSpec, TypeVar

import torch

from penjing import ranks
from penjing.errors import PenjingError, RecipeError
from penjing.run.choices import Choices, choices
from penjing.run.job import Job

Given = ParamSpec("Given")
Found = TypeVar("Found")
Work = Callable[Concatenate["Crew", Given], Found]


class Crew:
    """The processes of one run; each has a job of its own, made from the same things."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.sharing = False  # whether shared work has begun and not ended: then the others cannot be told to stop

    @cached_property
    def choices(self) -> Choices:
        """What there is to choose from; the same in every process."""
        return choices(self.job)

    def run(self, lead: Callable[["Crew"], None]) -> None:
        """Lead, or follow until the leader has ended; what the leader refuses, all refuse."""
        profiles = sorted(set(ranks.gathered(self.job.profile.name)))  # now all have looked at the folder
        if len(profiles) > 1:
            raise RecipeError(f"the processes' processors differ, and take targets {', '.join(profiles)}; give {profiles[-1]}")
        if not ranks.is_writer():
            return self._follow()
        threads, local = torch.get_num_threads(), ranks.launched()[0]
        refused: PenjingError | None = None
        with ranks.apart():
            torch.set_num_threads(threads * local)  # the others sleep
            try:
                lead(self)
            except PenjingError as e:
                refused = e
                raise
            finally:
                torch.set_num_threads(threads)
                if not self.sharing:
                    with ranks.together():
                        ranks.told(refused)
        return None

    def all(self, work: Work[Given, Found], *given: Given.args, **named: Given.kwargs) -> Found:
        """Have every process do the same work, each with its own crew; what it is given must be plain data.

        Returns:
            What the leader's work gave.
        """
        threads = torch.get_num_threads()
        with ranks.together():
            ranks.told((work, given, named))
            self.sharing = True
            torch.set_num_threads(threads // ranks.launched()[0] or 1)
            found = work(self, *given, **named)
            torch.set_num_threads(threads)
            self.sharing = False
        return found

    def _follow(self) -> None:
        while isinstance(order := ranks.told(None), tuple):
            work, given, named = order
            work(self, *given, **named)
        if order is not None:
            raise order
