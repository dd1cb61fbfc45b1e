"""How far apart the outputs of two networks are; what errors of widths, blocks and integers are told in. No labels."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

Outputs = Sequence[Sequence[Tensor]]  # of every batch, all tensors of the output
Apart = Callable[[Outputs, Outputs], float]  # of the exact and of the other: 0 where they are the same


def noise_share(exact: Outputs, other: Outputs) -> float:
    """Power of what differs over the power of the exact outputs; infinite where there is a NaN."""
    signal = sum(float(a.double().square().sum()) for one in exact for a in one)
    differs = sum(
        float((a.double() - b.double()).square().sum())
        for one, two in zip(exact, other, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    return math.inf if math.isnan(differs) else differs / max(signal, 1e-300)


def divergence(exact: Outputs, other: Outputs) -> float:
    """Of classes along dimension 1 (Kullback-Leibler), in nats; the mean over all else. Infinite where there is a NaN.

    It counts a difference by what it does to the probabilities: one in the logits of classes that are out of question is
    nothing, one between two classes that compete is much.
    """
    found = count = 0.0
    for one, two in zip(exact, other, strict=True):
        for a, b in zip(one, two, strict=True):
            p, q = (F.log_softmax(x.double(), dim=1) for x in (a, b))
            found += float(F.kl_div(q, p, reduction="sum", log_target=True))
            count += p.numel() / p.shape[1]
    return math.inf if math.isnan(found) else max(0.0, found / max(count, 1.0))  # rounding may make it negative


def decibels(apart: float) -> float:
    """As a ratio of signal to noise: high is near, infinite is the same."""
    return math.inf if apart == 0 else -10 * math.log10(apart) if math.isfinite(apart) else -math.inf
