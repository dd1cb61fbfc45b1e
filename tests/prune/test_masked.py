"""The run-time reference of the proof against the tests' own, which knows nothing of graphs and labels."""

import pytest
import torch

from penjing.prune.masked import Masked
from tests.nets import IMAGE, SHAPES
from tests.oracle import absent, chosen, difference, inputs, read_of, shifted, zeroed

SUMMED = ["unet", "grouped", "transposed", "pixel_shuffle", "concatenated_then_depthwise", "used_twice", "conv3d"]
AVERAGED = [
    "layer_norm_of_maps", "group_norm_by_hand", "group_norm_without_scale", "batch_statistics", "by_statistics", "compared",
    "weight_norm_of_inputs", "spectral_norm", "standardized_by_batch_norm", "standardized_at_once", "added_product",
    "times_a_batch_of_one", "many_headed", "of_channels", "twice_attended", "split_attention_of_two", "convolutional_gates",
]  # fmt: skip


@pytest.mark.parametrize("name", SUMMED)
def test_sums_pass_over_what_is_dropped(name: str) -> None:
    model, graph, channels = read_of(name)
    plan = chosen(channels)
    x = inputs(SHAPES.get(name, IMAGE), 3, torch.float64)  # another batch than the labels were found for
    with torch.no_grad():
        assert difference(Masked(graph.module, channels, plan.keep).run(*x), zeroed(model, plan)(*x)) < 1e-12


@pytest.mark.parametrize("name", AVERAGED)
def test_means_maxima_and_shares_are_of_what_is_left(name: str) -> None:
    model, graph, channels = read_of(name)
    plan = chosen(channels, None, seed=2)
    x = inputs(SHAPES.get(name, IMAGE), 3, torch.float64)
    with torch.no_grad():
        found = Masked(graph.module, channels, plan.keep).run(*x)
        assert difference(found, absent(model, plan)(*x)) < 1e-10
        assert difference(found, graph.module(*x)) > 1e-4  # control: what is dropped took part before


@pytest.mark.parametrize("name", ["plain", "layer_norm", "group_norm", "softmax_over_channels"])
def test_other_channels_would_make_a_difference(name: str) -> None:
    model, graph, channels = read_of(name)
    plan = chosen(channels)
    others = shifted(model, plan)
    with torch.no_grad():
        found = Masked(graph.module, channels, plan.keep).run(*graph.example)
        assert difference(Masked(graph.module, channels, others.keep).run(*graph.example), found) > 1e-4


def test_what_is_kept_whole_is_the_original() -> None:
    for name in (*SUMMED, *AVERAGED):
        _, graph, channels = read_of(name)
        with torch.no_grad():
            found = Masked(graph.module, channels, {}).run(*graph.example)
            assert difference(found, graph.module(*graph.example)) == 0
