import torch

from penjing.graph import capture
from penjing.score import Evidence, random
from tests.nets import CUTTABLE, IMAGE
from tests.oracle import inputs


def test_a_seed_gives_the_same_lots_and_another_others() -> None:
    evidence = Evidence.of(capture(CUTTABLE["plain"](), inputs(IMAGE)))
    chance = torch.get_rng_state()
    first, again, other = random(evidence), random(evidence), random(evidence, seed=1)
    for name, lots in first.items():
        assert torch.equal(lots, again[name])
        assert not torch.equal(lots, other[name])
    assert torch.equal(torch.get_rng_state(), chance)
    assert not torch.equal(first["a.weight"], first["b.weight"])
