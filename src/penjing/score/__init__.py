"""How much a channel matters: functions ``Evidence -> {group name: (channels,)}``, higher = keep."""

from penjing.errors import entry
from penjing.score.chance import random as random
from penjing.score.evidence import Criterion as Criterion
from penjing.score.evidence import Evidence as Evidence
from penjing.score.evidence import Scores as Scores
from penjing.score.geometric import geometric_median as geometric_median
from penjing.score.magnitude import bn_scale as bn_scale
from penjing.score.magnitude import l1_norm as l1_norm
from penjing.score.magnitude import l2_norm as l2_norm
from penjing.score.obs import Consumer as Consumer
from penjing.score.obs import Reading as Reading
from penjing.score.obs import greedy_removal as greedy_removal
from penjing.score.obs import ranked as ranked
from penjing.score.obs import structured_obs as structured_obs
from penjing.score.sensitivity import activation_energy as activation_energy
from penjing.score.sensitivity import fisher as fisher
from penjing.score.sensitivity import taylor as taylor
from penjing.score.weight_evidence import WeightCriterion as WeightCriterion
from penjing.score.weight_evidence import WeightEvidence as WeightEvidence
from penjing.score.weights import WEIGHT_CRITERIA as WEIGHT_CRITERIA
from penjing.score.weights import weight_criterion_named as weight_criterion_named

# Every criterion, by the name that recipes and the command line use.
CRITERIA: dict[str, Criterion] = {
    "l1_norm": l1_norm,
    "l2_norm": l2_norm,
    "bn_scale": bn_scale,
    "geometric_median": geometric_median,
    "activation_energy": activation_energy,
    "taylor": taylor,
    "fisher": fisher,
    "structured_obs": structured_obs,
    "random": random,
}


def criterion_named(name: str) -> Criterion:
    """The criterion of that name.

    Raises:
        RecipeError: There is none; names the nearest.
    """
    return entry(CRITERIA, name, "criterion")
