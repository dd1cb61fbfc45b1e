import pytest
import torch

from penjing.errors import ModelError
from penjing.graph import capture
from penjing.score import Evidence, fisher, taylor
from penjing.score.sites import Tapped, all_sites, norm_scales, reading_sites
from penjing.zoo import MobileNet
from tests.nets import IMAGE, conv, head, net, pooled
from tests.oracle import inputs, randomized


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return Evidence.of(capture(randomized(MobileNet(width=8)), inputs(((1, 8, 8),))))


def test_channels_pass_through_depthwise_layers_and_are_read_by_the_others(evidence: Evidence) -> None:
    read = {site.weight for site, _ in reading_sites(evidence)["blocks.0.widen.0.weight"]}
    assert read == {"blocks.0.gate.reduce.weight", "blocks.0.narrow.0.weight"}


def test_what_makes_scales_and_reads_channels_is_found_once_each(evidence: Evidence) -> None:
    found = [(s.weight, s.reads) for s, _ in all_sites(evidence)["blocks.0.widen.0.weight"]]
    made = ["widen.0", "widen.1", "filter.0", "filter.1", "gate.expand"]
    expected = [(n, False) for n in made] + [("gate.reduce", True), ("narrow.0", True)]
    assert sorted(found) == sorted((f"blocks.0.{n}.weight", reads) for n, reads in expected)


def test_the_scales_of_norms_are_told_from_their_shifts_and_statistics(evidence: Evidence) -> None:
    assert norm_scales(evidence.graph) == {"stem.1.weight"} | {
        f"blocks.{i}.{layer}.1.weight" for i in (0, 1) for layer in ("widen", "filter", "narrow")
    }


def test_a_tap_sees_values_and_changes_only_what_it_is_told_to(evidence: Evidence) -> None:
    sites = [site for found in all_sites(evidence).values() for site, _ in found]
    x = inputs(((1, 8, 8),), 3)
    with torch.no_grad():
        expected = evidence.graph.module(*x)
        seen = []
        untouched = Tapped(evidence.graph.module, sites, lambda site, value: (seen.append(site), value)[1]).outputs(x)
        silenced = Tapped(evidence.graph.module, sites, lambda _, value: value * 0).outputs(x)
    assert torch.equal(untouched, expected)
    assert set(seen) == set(sites)
    assert not torch.allclose(silenced, expected)


@pytest.mark.parametrize("criterion", [taylor, fisher])
def test_samples_that_cannot_be_told_apart_are_not_mixed_up(criterion: object) -> None:
    """Here channels are folded into the batch, by a number that is fixed when the model is read."""
    make = net(
        lambda m, x: m.head(pooled(m.c(m.a(x).view(4 * int(x.shape[0]), 4, 8, 8)).view(int(x.shape[0]), 16, 8, 8))),
        a=conv(3, 16), c=conv(4, 4), head=head(16),
    )  # fmt: skip
    model, (x,) = make(), inputs(IMAGE, 2)
    evidence = Evidence.of(capture(model, x), [(x, torch.tensor([0, 1]))])
    assert not evidence.graph.dynamic
    with pytest.raises(ModelError, match="one by one"):
        criterion(evidence)  # type: ignore[operator]
