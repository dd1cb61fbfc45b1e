"""Scores by lot: what every other criterion must beat."""

import torch

from penjing.score.evidence import Evidence, Scores


def random(evidence: Evidence, *, seed: int = 0) -> Scores:
    """Uniform in [0, 1), the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.channels, generator=generator, dtype=torch.float64) for g in evidence.channels.groups}
