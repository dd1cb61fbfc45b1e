"""How much a channel matters: functions ``Evidence -> {group name: (channels,)}``, higher = keep."""

from penjing.score.evidence import Criterion as Criterion
from penjing.score.evidence import Evidence as Evidence
from penjing.score.evidence import Scores as Scores
from penjing.score.magnitude import l2_norm as l2_norm
