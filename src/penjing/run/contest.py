"""Of several ways to cut a network, the one after which it says most nearly what the original does. No labels."""

from collections.abc import Mapping

from torch import nn

from penjing.graph import capture
from penjing.measure import macs
from penjing.plan import ChannelPlan
from penjing.prune import prune_to_look, repair
from penjing.quant.apart import Apart
from penjing.run.job import Job
from penjing.score.flow import calibration
from penjing.search import outputs
from penjing.search.damage import few, parted

WORK = 8e12  # multiply-accumulates that one contest may cost
REPAIR = 5  # runs of the network that repairing it on a sample costs, about
LEAST, MOST = 64, 256  # samples to repair with; where the least would cost too much, nothing is compared


def contest(job: Job, apart: Apart, net: nn.Module, plans: Mapping[str, ChannelPlan]) -> dict[str, float]:
    """How far from the original the network is after each plan and a repair on few samples; nothing if that costs too much.

    Args:
        net: What the plans cut: the original, or what became of it.
    """
    graph = capture(job.model, job.example)
    samples = min(MOST, int(WORK / (macs(graph) * REPAIR * max(1, len(plans)))))
    if samples < LEAST:
        return {}
    fitted, judged = parted(calibration(job.calibration, graph))
    exact, found = outputs(job.model, job.example, judged), {}
    with job.progress("choices", len(plans)) as advance:
        for name, plan in plans.items():
            small = prune_to_look(net, plan, job.example)
            small = repair(small, net, plan, job.example, few(fitted, samples), seed=job.settings.seed)
            found[name] = apart(exact, outputs(small, job.example, judged))
            advance(name)
    return found
