import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from penjing.errors import NotEquivalent
from penjing.graph import capture, find_channels
from penjing.plan import ChannelPlan
from penjing.prune import prune_channels, verify_pruned
from penjing.prune.verify import verify_against
from tests.nets import IMAGE, Make, conv, head, net, pooled
from tests.oracle import chosen, inputs, randomized, read_of

X = inputs(IMAGE)
HALF, OTHERS = tuple(range(8)), tuple(range(1, 9))
RIGHT = ChannelPlan({"a.weight": {0: HALF}, "a.bias": {0: HALF}, "b.weight": {1: HALF}})
WRONG = ChannelPlan({"a.weight": {0: HALF}, "a.bias": {0: HALF}, "b.weight": {1: OTHERS}})


def giving(output: Any) -> Make:
    """Two convolutions of which ``RIGHT`` halves the first; ``output`` makes what the network gives of the classes."""
    return net(lambda m, x: output(m.head(pooled(m.b(F.relu(m.a(x)))))), a=conv(3, 16), b=conv(16, 16), head=head(16))


@pytest.fixture
def model() -> nn.Module:
    return randomized(giving(lambda y: y)())


def test_a_right_cut_is_told_from_wrong_ones(model: nn.Module) -> None:
    small = prune_channels(model, RIGHT, X, verify=False)
    assert verify_pruned(model, small, RIGHT, X) < 1e-9
    with torch.no_grad():
        small.b.weight[3, 2, 1, 1] += 1e-6
    with pytest.raises(NotEquivalent, match=r"first in b\.weight"):
        verify_pruned(model, small, RIGHT, X)


@pytest.mark.parametrize(
    ("layers", "x"),
    [
        ((nn.ConvTranspose2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)), torch.randn(2, 3, 4, 4)),
        ((nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)), torch.randn(2, 7, 3)),
    ],
    ids=["transposed", "tokens"],
)
def test_the_layer_that_differs_is_named_wherever_its_channels_lie(layers: tuple[nn.Module, ...], x: torch.Tensor) -> None:
    model = randomized(nn.Sequential(*layers))
    plan = chosen(find_channels(capture(model, x)))
    small = prune_channels(model, plan, x)
    with torch.no_grad():
        small.get_parameter("2.weight")[0, 1] += 1e-3
    with pytest.raises(NotEquivalent, match=r"first in 2\.weight"):
        verify_pruned(model, small, plan, (x,))


def test_channels_that_do_not_belong_together_are_found(model: nn.Module) -> None:
    with pytest.raises(NotEquivalent, match=r"first in b\.weight"):
        prune_channels(model, WRONG, X)
    assert prune_channels(model, WRONG, X, verify=False).b.in_channels == 8  # what the check keeps from being handed back


def test_a_reader_that_was_left_whole_is_found(model: nn.Module) -> None:
    with pytest.raises(NotEquivalent, match="does not run"):
        prune_channels(model, ChannelPlan({"a.weight": {0: HALF}, "a.bias": {0: HALF}}), X)


def test_the_model_and_its_cut_are_left_alone(model: nn.Module) -> None:
    small = prune_channels(model.train(), RIGHT, X, verify=False)
    before = copy.deepcopy((model.state_dict(), small.state_dict()))
    chance = torch.get_rng_state()
    verify_pruned(model, small, RIGHT, X)
    for net_, state in zip((model, small), before, strict=True):
        assert net_.training
        assert all(
            torch.equal(value, state[name]) and value.dtype == state[name].dtype for name, value in net_.state_dict().items()
        )
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize(
    "output",
    [
        lambda y: {"classes": y, "best": y.argmax(1)},
        lambda y: {"classes": y, "sure": y > 0},
        lambda y: (y, None),
        lambda y: (y, 7, "classes"),
        lambda y: [y, torch.ones(3)],
        lambda y: (y, y.sum()),
    ],
    ids=["integers", "truths", "none", "python", "constant", "number"],
)
def test_outputs_of_any_kind_are_compared(output: Any) -> None:
    model = randomized(giving(output)())
    assert verify_pruned(model, prune_channels(model, RIGHT, X, verify=False), RIGHT, X) < 1e-9


def test_a_difference_in_any_output_counts() -> None:
    """In the second alone, after one that is no tensor; and a value that was negated is as large as it was."""
    model = randomized(giving(lambda y: (None, y.abs() * 0, -y))())
    with pytest.raises(NotEquivalent):
        prune_channels(model, WRONG, X)


@pytest.mark.parametrize("bad", [torch.log, torch.sqrt, lambda y: 1 / F.relu(y.sum() * 0)], ids=["log", "sqrt", "infinite"])
def test_what_is_not_a_number_proves_nothing(bad: Any) -> None:
    """On random inputs these give NaN or infinity, and NaN is above no tolerance."""
    model = randomized(giving(lambda y: bad(y - y.amax()))())
    with pytest.raises(NotEquivalent):
        prune_channels(model, WRONG, X)


def test_a_right_cut_of_a_network_for_positive_images_is_handed_back() -> None:
    """The check may choose its inputs, but where they lead to NaN it must not refuse what is right."""
    model = randomized(net(lambda m, x: m.b(F.relu(m.a(torch.log(x)))), a=conv(3, 16), b=conv(16, 4))())
    prune_channels(model, RIGHT, (X[0].abs() + 0.1,))


def test_weights_in_half_precision_are_compared_in_double() -> None:
    model = randomized(giving(lambda y: y)()).bfloat16()
    x = (X[0].bfloat16(),)
    assert verify_pruned(model, prune_channels(model, RIGHT, x, verify=False), RIGHT, x) < 1e-9
    with pytest.raises(NotEquivalent):
        verify_pruned(model, prune_channels(model, WRONG, x, verify=False), WRONG, x)


def test_a_precision_written_into_the_model_is_met() -> None:
    model = randomized(net(lambda m, x: m.b(m.a(x).float()), a=conv(3, 16), b=conv(16, 4))())
    assert verify_pruned(model, prune_channels(model, RIGHT, X, verify=False), RIGHT, X) < 1e-9
    with pytest.raises(NotEquivalent):
        verify_pruned(model, prune_channels(model, WRONG, X, verify=False), WRONG, X)


def test_an_assertion_about_the_precision_of_the_original_is_no_obstacle() -> None:
    """torch writes one beside every ``to``, and the check runs in another precision."""
    model, x = (
        randomized(
            net(lambda m, x: m.b(m.a(x) * m.s.to(x.dtype)), a=conv(3, 16), b=conv(16, 4), s=nn.Parameter(torch.ones(1)))()
        ),
        X,
    )
    assert verify_pruned(model, prune_channels(model, RIGHT, x, verify=False), RIGHT, x) < 1e-9


@pytest.mark.parametrize("name", ["layer_norm", "group_norm", "softmax_over_channels", "many_headed", "standardized_weights"])
def test_a_wrong_cut_beside_a_norm_is_found(name: str) -> None:
    """One channel more or less among those that the statistics are taken of."""
    model, graph, channels = read_of(name)
    plan = chosen(channels)
    small = prune_channels(model, plan, graph.example, verify=False)
    assert verify_against(graph, channels, small, plan) < 1e-9
    with torch.no_grad():
        next(small.parameters())[0] += 1e-3
    with pytest.raises(NotEquivalent):
        verify_against(graph, channels, small, plan)
    kept = plan.keep["a.weight"][0]
    other = next(i for i in range(16) if i not in kept)
    moved = (*kept[1:], other)
    wrong = ChannelPlan(
        {n: {d: moved if n == "a.weight" and d == 0 else i for d, i in dims.items()} for n, dims in plan.keep.items()}
    )
    with pytest.raises(NotEquivalent):
        verify_against(graph, channels, prune_channels(model, wrong, graph.example, verify=False), plan)
