"""Every criterion: one finite number a channel, whatever the batches; the model untouched; what is dead goes first."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import RecipeError
from penjing.graph import capture, find_channels
from penjing.prune import plan_channels, plan_widths, prune_channels
from penjing.score import CRITERIA, Criterion, Evidence
from penjing.zoo import DenseNet, MobileNet, ResNet, two_convolutions
from tests.oracle import choose_widths, difference, inputs, randomized, zeroed

NETS: dict[str, tuple[Any, tuple[int, ...]]] = {  # of the zoo, narrow
    "resnet": (lambda: ResNet(blocks=1, width=8), (1, 12, 12)),
    "two_convolutions": (lambda: two_convolutions(width=8), (3, 32, 32)),
    "mobilenet": (lambda: MobileNet(width=8), (1, 12, 12)),
    "densenet": (lambda: DenseNet(growth=8), (1, 12, 12)),
}
SHAPE_OF = {type(make()): shape for make, shape in NETS.values()}
CHANCE = {"random"}


class Judged(NamedTuple):
    """A network, what is known of it, and the samples and labels that it is judged by."""

    model: nn.Module
    read: Evidence
    x: Tensor
    target: Tensor

    def evidence(self, *sizes: int) -> Evidence:
        """With the data in batches of these sizes."""
        split = sizes or (len(self.x),)
        return replace(self.read, data=list(zip(self.x.split(split), self.target.split(split), strict=True)))


def judged(name: str, change: Callable[[nn.Module], Any] = nn.Module.eval) -> Judged:
    make, shape = NETS[name]
    torch.manual_seed(0)
    model = make().double().eval()
    change(model)
    x = inputs((shape,), 7, torch.float64)[0]
    return Judged(model, Evidence.of(capture(model, x[:2])), x, torch.arange(7))


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest) -> Judged:
    return judged(request.param)


@pytest.fixture(params=CRITERIA)
def criterion(request: pytest.FixtureRequest) -> Criterion:
    return CRITERIA[request.param]


def test_each_channel_gets_one_finite_score(net: Judged, criterion: Criterion) -> None:
    evidence = net.evidence()
    scores = criterion(evidence)
    assert list(scores) == [g.name for g in evidence.channels.groups]
    for group in evidence.channels.groups:
        assert scores[group.name].shape == (group.channels,)
        assert scores[group.name].isfinite().all()
        assert not scores[group.name].requires_grad
        told_apart = len(scores[group.name].unique()) > 1
        assert told_apart or group.channels == 1 or criterion is CRITERIA["bn_scale"]  # all scales are 1 at first


def test_how_samples_are_batched_does_not_matter(net: Judged, criterion: Criterion) -> None:
    whole = criterion(net.evidence())
    for sizes in ((4, 3), (1, 5, 1)):
        torch.testing.assert_close(dict(criterion(net.evidence(*sizes))), dict(whole), rtol=1e-6, atol=1e-12)


def test_the_order_of_samples_does_not_matter(net: Judged, criterion: Criterion) -> None:
    if criterion is CRITERIA["fisher"]:
        pytest.skip("it draws labels one after the other")
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    turned = net._replace(x=net.x[order], target=net.target[order])
    torch.testing.assert_close(dict(criterion(turned.evidence())), dict(criterion(net.evidence())), rtol=1e-6, atol=1e-12)


@pytest.fixture(scope="module")
def training() -> Judged:
    """A network that is in the midst of being trained, with a part that is not."""
    return judged("mobilenet", lambda m: m.train().get_submodule("head").requires_grad_(False))


def test_the_model_and_the_evidence_are_left_alone(training: Judged, criterion: Criterion) -> None:
    model, evidence = training.model, training.evidence()
    before, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    held = copy.deepcopy(evidence.graph.module.state_dict())
    with torch.no_grad():  # a caller's habit, which must not matter
        first, again = criterion(evidence), criterion(evidence)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert all(m.training for m in model.modules())
    for module, state in ((model, before), (evidence.graph.module, held)):
        assert all(p.grad is None for p in module.parameters())
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.fixture(scope="module", params=NETS)
def drawn(request: pytest.FixtureRequest) -> Judged:
    """A network with every weight and statistic at random."""
    return judged(request.param, randomized)


def test_what_it_chooses_is_cut_rightly(drawn: Judged, criterion: Criterion) -> None:
    scores = criterion(drawn.evidence(3, 4))
    plan = plan_widths(drawn.read.channels, scores, choose_widths(drawn.read.channels, 0.5))
    assert plan.keep
    small = prune_channels(drawn.model, plan, drawn.x[:1], verify=False)
    with torch.no_grad():
        assert difference(small(drawn.x), zeroed(drawn.model, plan)(drawn.x)) < 1e-9


def kill(model: nn.Module) -> None:
    """Nothing makes the third channel of any group and nothing reads it; every norm scales its channels differently."""
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 2)
    held = dict(model.named_parameters())
    for group in find_channels(capture(model, inputs((SHAPE_OF[type(model)],), 2, torch.float64))).groups:
        for axis in group.axes:
            if axis.name in held and group.channels > 2:
                held[axis.name].data.index_fill_(axis.dim, axis.index[2], 0)


@pytest.fixture(scope="module", params=NETS)
def with_dead(request: pytest.FixtureRequest) -> Judged:
    return judged(request.param, kill)


@pytest.mark.parametrize("name", sorted(CRITERIA.keys() - CHANCE))
def test_a_dead_channel_is_the_first_to_go(with_dead: Judged, name: str) -> None:
    """Filters are drawn around zero, so that a dead one lies in their midst."""
    if name == "bn_scale" and not any(isinstance(m, nn.BatchNorm2d) for m in with_dead.model.modules()):
        pytest.skip("no norm, no scale")
    scores = CRITERIA[name](with_dead.evidence())
    for group, score in ((g.name, scores[g.name]) for g in with_dead.read.channels.groups if g.channels > 2):
        others = torch.cat([score[:2], score[3:]])
        # Others may be as dead as this one for the data at hand, where a ReLU lets nothing through.
        assert score[2] < others.min() or score[2] == 0, group
        assert (others > score[2]).any()


def test_chance_does_not_see_what_is_dead() -> None:
    """The control: the test above can fail."""
    evidence = judged("densenet").evidence()
    scores = CRITERIA["random"](evidence)
    assert any(score.argmin() != 2 for score in scores.values())


def test_a_name_will_do() -> None:
    model, x = two_convolutions(width=8), inputs(((3, 32, 32),))
    by_name = plan_channels(model, x, 0.5, criterion="l1_norm", round_to=1)
    assert by_name == plan_channels(model, x, 0.5, criterion=CRITERIA["l1_norm"], round_to=1)
    with pytest.raises(RecipeError, match="did you mean 'l1_norm'"):
        plan_channels(model, x, 0.5, criterion="l1norm")
