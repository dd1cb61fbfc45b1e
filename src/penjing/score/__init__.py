"""How much a channel matters: functions ``(group, weights) -> (channels,)``, higher = keep."""

from penjing.score.magnitude import l2_norm as l2_norm
