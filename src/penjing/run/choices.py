"""Read the network, before anything is measured: what there is to choose from."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import torch

from penjing.distill.logits import is_classes
from penjing.graph import Channels, Graph, capture
from penjing.prune.decide import allowed_widths, cuttable
from penjing.quant.apart import Apart, divergence, noise_share
from penjing.run.job import Job
from penjing.score import Evidence
from penjing.task import as_tuple

LOOKED_AT = 8  # batches whose targets say what they are: of one sample with one label each, several labels are not seen


@dataclass(frozen=True)
class Choices:
    """What there is to choose from: the channels, what their errors are told in, and the widths that every group may have."""

    evidence: Evidence
    apart: Apart
    widths: Mapping[str, list[int]]

    @property
    def classes(self) -> bool:
        """Whether the task's targets are classes of the output."""
        return self.apart is divergence


def choices(job: Job) -> Choices:
    """Read the network; nothing is written.

    Raises:
        ModelError: It cannot be read.
        RecipeError: A pattern to exclude fits nothing.
    """
    evidence = Evidence.of(capture(job.model, job.example), job.calibration, job.task.loss)
    return Choices(evidence, _apart(job, evidence.graph), _widths(job, evidence.channels))


def _apart(job: Job, graph: Graph) -> Apart:
    """Classes are compared by what becomes of their probabilities, other outputs by their values."""
    for inputs, target in islice(job.task.search, LOOKED_AT):
        given = as_tuple(inputs)
        if not graph.dynamic:  # it takes the batch it was read with; one sample says less
            given, target = job.example, target[:1] if isinstance(target, torch.Tensor) else target
        with torch.no_grad():
            output = graph.module(*given)
        if not is_classes(output, target):
            return noise_share
    return divergence


def _widths(job: Job, channels: Channels) -> dict[str, list[int]]:
    """The widths that every group may have; groups that are to stay whole are not there."""
    s = job.settings
    step = s.round_to or job.profile.lanes
    groups = cuttable(channels, s.exclude, cut_sums=s.cut_sums)
    return {g.name: allowed_widths(g.channels, step, blocks=g.equal, floor=s.floor) for g in groups}
