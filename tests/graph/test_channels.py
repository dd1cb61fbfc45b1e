from collections.abc import Iterator

import pytest
import torch
from torch import nn

from penjing.errors import PenjingError
from penjing.graph import Channels, capture, find_channels
from penjing.zoo import ResNet, two_convolutions
from tests.nets import CUTTABLE, IMAGE
from tests.oracle import channels_of, inputs

SOME = [
    "grouped",
    "concatenated_then_grouped",
    "concatenated_then_depthwise",
    "csp",
    "unet",
    "pixel_shuffle",
    "norm_after_flatten",
]


def found(model: nn.Module, *shape: int) -> Channels:
    return find_channels(capture(model, torch.zeros(1, *shape)))


def cells(channels: Channels) -> Iterator[tuple[str, int, int]]:
    """Every index that some group holds, once for each time it is held."""
    for group in channels.groups:
        for axis in group.axes:
            yield from ((axis.name, axis.dim, i) for i in axis.index.flatten().tolist())


def test_the_textbook_s_example() -> None:
    channels = found(two_convolutions(width=4), 3, 32, 32)
    first, second = channels.groups
    assert (first.name, first.channels) == ("0.weight", 4)
    assert {(a.name, a.dim) for a in first.axes} == {("0.weight", 0), ("0.bias", 0), ("3.weight", 1)}
    assert {(a.name, a.dim) for a in second.axes} == {("3.weight", 0), ("3.bias", 0), ("7.weight", 1)}
    columns = next(a.index for a in second.axes if a.name == "7.weight")
    assert torch.equal(columns, torch.arange(8 * 64).view(8, 64))  # a channel's 8x8 map lies together after flatten
    assert channels.reads == {("0.weight", 1), ("3.weight", 1), ("7.weight", 1)}


def test_a_stage_of_a_resnet_is_one_group() -> None:
    channels = found(ResNet(blocks=2, width=4), 1, 12, 12)
    trunk = next(g for g in channels.groups if g.name == "conv.weight")
    written = {a.name for a in trunk.axes if a.dim == 0}
    read = {a.name for a in trunk.axes if a.dim == 1}
    assert {"conv.weight", "bn.running_var", "stage1.0.conv2.weight", "stage1.1.bn2.bias"} <= written
    assert read == {f"stage1.{i}.conv1.weight" for i in (0, 1)} | {"stage2.0.conv1.weight", "stage2.0.shortcut.0.weight"}


def test_inputs_and_outputs_are_fixed() -> None:
    channels = found(two_convolutions(width=4), 3, 32, 32)
    assert channels.fixed["0.weight", 1] == "model input"
    assert channels.fixed["7.weight", 0] == channels.fixed["7.bias", 0] == "model output"


@pytest.mark.parametrize("name", SOME)
def test_no_index_is_in_two_places(name: str) -> None:
    channels, held = channels_of(name), list(cells(channels_of(name)))
    assert len(held) == len(set(held))
    model = CUTTABLE[name]()
    shapes = {n: t.shape for n, t in [*model.named_parameters(), *model.named_buffers()]}
    assert all(0 <= i < shapes[n][dim] for n, dim, i in held)
    assert all(axis.index.shape[0] == group.channels for group in channels.groups for axis in group.axes)


@pytest.mark.parametrize("name", SOME)
def test_every_group_has_a_name_of_its_own(name: str) -> None:
    """Widths are chosen by name: two groups of one name would be cut alike."""
    names = [g.name for g in channels_of(name).groups]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["unet", "csp"])
def test_groups_come_in_the_order_of_the_computation(name: str) -> None:
    model, seen = CUTTABLE[name](), []
    for layer, module in model.named_modules():
        module.register_forward_pre_hook(lambda _m, _x, layer=layer: seen.append(layer))
    model(*inputs(IMAGE))
    used = [seen.index(g.name.rpartition(".")[0]) for g in channels_of(name).groups]
    assert len(used) > 2
    assert used == sorted(used)


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("running_sum", "cumsum"),
        ("eca", "conv1d.default slides along"),
        ("flipped_channels", "flip"),
        ("channels_selected", "index_select"),
        ("bilinear_pooling", "linear.default over values that are not channels"),
        ("constant_made_inside", "fixed size"),
    ],
)
def test_what_is_fixed_says_by_which_operation(name: str, operation: str) -> None:
    channels = channels_of(name)
    assert operation in channels.fixed["a.weight", 0]
    assert not any(a.name == "a.weight" for g in channels.groups for a in g.axes)


def test_reading_channels_leaves_the_graph_as_it_was() -> None:
    graph = capture(CUTTABLE["csp"](), inputs(IMAGE))
    code, state = graph.module.code, {n: t.clone() for n, t in graph.module.state_dict().items()}
    first = find_channels(graph)
    assert graph.module.code == code
    assert all(torch.equal(t, state[n]) for n, t in graph.module.state_dict().items())
    again = find_channels(graph)
    assert list(cells(again)) == list(cells(first))


def test_a_number_among_the_inputs() -> None:
    class Noised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3)

        def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x) * noise)  # type: ignore[no-any-return]

    channels = find_channels(capture(Noised(), (torch.zeros(2, 3, 8, 8), torch.tensor(0.5))))
    assert [(g.name, g.channels) for g in channels.groups] == [("a.weight", 8)]


def test_an_image_without_a_batch_is_refused_or_read_rightly() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    try:
        channels = find_channels(capture(model, torch.zeros(3, 8, 8)))
    except PenjingError:
        return
    assert {(a.name, a.dim) for g in channels.groups for a in g.axes} <= {("0.weight", 0), ("0.bias", 0), ("2.weight", 1)}


@pytest.mark.parametrize(
    ("name", "group", "blocks"),
    [
        ("group_norm", "a.weight", (4, 4)),
        ("group_norm_by_hand", "a.weight", (4, 4)),
        ("group_norm_then_grouped", "a.weight", (2, 4)),
        ("of_many_layers", "q.weight", (2, 8)),
        ("grouped", "g.weight", (4, 8)),
        ("csp", "a.weight", None),
        ("layer_norm", "a.weight", None),
    ],
)
def test_blocks_of_a_group_stay_equal(name: str, group: str, blocks: tuple[int, int] | None) -> None:
    found = next(g for g in channels_of(name).groups if g.name == group)
    assert (None if found.blocks is None else tuple(found.blocks.shape)) == blocks
    if found.blocks is not None:
        assert sorted(found.blocks.flatten().tolist()) == list(range(found.channels))


def test_heads_are_cut_in_width_and_stay_as_many() -> None:
    """Queries and keys together, values by themselves, equally many of each head."""
    groups = {g.name: {a.name for a in g.axes} for g in channels_of("of_many_layers").groups}
    assert groups["q.weight"] == {"q.weight", "q.bias", "k.weight", "k.bias"}
    assert groups["v.weight"] == {"v.weight", "v.bias", "p.weight"}


def test_what_a_convolution_slides_along_stays_and_no_more() -> None:
    """ECA's gate ties the channels to their places; the layers before and after it are free."""
    channels = channels_of("eca")
    assert ("a.weight", 0) in channels.fixed
    assert [g.name for g in channels.groups] == ["b.weight"]


def test_blocks_of_one_channel_each_are_fixed() -> None:
    channels = found(nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1, groups=8), nn.Conv2d(8, 2, 1)), 3, 4, 4)
    assert channels.fixed["1.weight", 0] == channels.fixed["2.weight", 1] == "equal parts of one channel"
    assert [g.name for g in channels.groups] == ["0.weight"]
