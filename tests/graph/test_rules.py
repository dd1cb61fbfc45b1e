import operator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx
from torch._ops import OpOverload

from penjing.graph.labels import INPUT, NONE, Ledger, Sheets, Weight, narrow, tidy
from penjing.graph.rules import RULES
from penjing.graph.walk import Walk

aten = torch.ops.aten
N, C, H, W = 2, 12, 4, 6
ALL = list(range(C))


def ruled(ledger: Ledger, target: OpOverload, out: tuple[int, ...], *args: Any) -> Any:
    """What the rule for ``target`` makes of labels; ``out`` is the shape that the operation gives."""
    node = fx.Graph().call_function(target)
    node.meta["val"] = torch.empty(out, device="meta")
    return RULES[target](ledger, node, *args)


def channels(ledger: Ledger, *shape: int, dim: int = 1, name: str = "w") -> Tensor:
    """Labels of a value whose channels lie along ``dim``."""
    labels = ledger.labels_of(Weight(name, (shape[dim],)), 0)
    return labels.view([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)


def joined(ledger: Ledger, labels: Tensor) -> Tensor:
    """``labels`` with one number for all that were joined, by following the joins one by one."""
    lead = list(range(max(ledger.count, int(labels.max()) + 1)))

    def leader(i: int) -> int:
        while lead[i] != i:
            i = lead[i]
        return i

    for a, b in ledger.joins:
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            lead[leader(i)] = leader(j)
    return torch.tensor([NONE if i < 0 else leader(i) for i in labels.flatten().tolist()]).view(labels.shape)


def frozen(ledger: Ledger) -> set[int]:
    return {int(i) for labels, _ in ledger.frozen for i in labels}


def kinds(ledger: Ledger, labels: Tensor) -> int:
    """How many channels of ``labels`` may live and die on their own."""
    return len(set(joined(ledger, labels).flatten().tolist()))


def grouped(sizes: list[int], cuts: list[bool]) -> tuple[int, ...]:
    """Neighbouring sizes multiplied where there is no cut."""
    shape = [1]
    for size, cut in zip(sizes, cuts, strict=True):
        shape = [*shape, size] if cut else [*shape[:-1], shape[-1] * size]
    return tuple(shape)


@st.composite
def two_shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Two shapes of as many elements, and the dimension of the first along which the channels lie."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    cuts = st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))
    before, after = grouped(sizes, draw(cuts)), grouped(sizes, draw(cuts))
    return before, after, draw(st.integers(0, len(before) - 1))


@given(two_shapes(), st.sampled_from([aten.view.default, aten.reshape.default]))
def test_labels_move_as_elements_do_when_reshaped(given: tuple[Any, Any, int], target: OpOverload) -> None:
    before, after, dim = given
    ledger = Ledger()
    x = channels(ledger, *before, dim=dim)
    out = ruled(ledger, target, after, x, after)
    assert out.shape == after
    assert torch.equal(joined(ledger, out), joined(ledger, x.reshape(after)))


@pytest.mark.parametrize("groups", [2, 3])
def test_blocks_of_a_view_stay_equal_and_choose_their_own_channels(groups: int) -> None:
    ledger = Ledger()
    shape = (N, groups, C // groups, H, W)
    out = ruled(ledger, aten.view.default, shape, channels(ledger, N, C, H, W), shape)
    assert kinds(ledger, out) == C
    assert [b.tolist() for b in ledger.balances] == [torch.arange(C).view(groups, -1).tolist()]
    assert not frozen(ledger)


@pytest.mark.parametrize("groups", [4, 6])
def test_many_small_blocks_come_and_go_as_a_whole(groups: int) -> None:
    """The larger of two sizes is taken for the one that the model leaves free."""
    ledger = Ledger()
    shape = (N, groups, C // groups, H, W)
    out = ruled(ledger, aten.view.default, shape, channels(ledger, N, C, H, W), shape)
    assert kinds(ledger, out) == groups
    assert torch.equal(joined(ledger, out), joined(ledger, out)[:, :, :1].expand_as(out))


@pytest.mark.parametrize("groups", [2, 4, 6])
def test_the_size_that_a_view_does_not_say_is_the_free_one(groups: int) -> None:
    ledger = Ledger()
    shape = (N, groups, -1, H, W)
    node = fx.Graph().call_function(aten.view.default, (None, list(shape)))
    node.meta["val"] = torch.empty(N, groups, C // groups, H, W, device="meta")
    out = RULES[node.target](ledger, node, channels(ledger, N, C, H, W), shape)
    assert kinds(ledger, out) == C
    assert [b.shape for b in ledger.balances] == [(groups, C // groups)]


def test_groups_with_all_their_positions_stay_equal() -> None:
    """As a group norm written by hand has them."""
    ledger = Ledger()
    out = ruled(ledger, aten.view.default, (N, 4, 72), channels(ledger, N, C, H, W), (N, 4, -1))
    assert kinds(ledger, out) == C
    assert [sorted(set(row)) for row in ledger.balances[0].tolist()] == torch.arange(C).view(4, -1).tolist()
    ruled(ledger, aten.mean.dim, (N, 4, 1), out, [2], True)
    assert ledger.mixes
    assert not frozen(ledger)


def test_positions_may_be_viewed_as_one_likes() -> None:
    ledger = Ledger()
    x = channels(ledger, N, C, H, W)
    for shape in ((N, C, H * W), (N, C, 2, 2, 3, 2), (N * C, H, W), (N, C * H, W), (N, C * H * W)):
        ruled(ledger, aten.view.default, shape, x, shape)
    assert kinds(ledger, x) == C
    assert not frozen(ledger)


MOVES: list[tuple[OpOverload, tuple[Any, ...]]] = [
    (aten.permute.default, ([0, 2, 3, 1],)),
    (aten.transpose.int, (1, -1)),
    (aten.unsqueeze.default, (1,)),
    (aten.squeeze.dim, (0,)),
    (aten.flatten.using_ints, (1, -1)),
    (aten.unflatten.int, (1, [3, 4])),
    (aten.expand.default, ([5, 12, 4, 6],)),
    (aten.clone.default, ()),
    (aten.pixel_shuffle.default, (2,)),
    (aten.pixel_unshuffle.default, (2,)),
    (aten.channel_shuffle.default, (3,)),
]


@pytest.mark.parametrize(("target", "args"), MOVES, ids=lambda v: str(v))
def test_labels_move_as_elements_do(target: OpOverload, args: tuple[Any, ...]) -> None:
    ledger = Ledger()
    x = channels(ledger, 1, C, H, W)
    expected = target(x.contiguous(), *args)
    out = ruled(ledger, target, tuple(expected.shape), x, *args)
    assert torch.equal(joined(ledger, out), joined(ledger, expected))


def test_a_shuffle_of_channels_needs_blocks_of_one_size() -> None:
    """With 12 channels in 3 blocks of which one loses two channels and another none, the rest is shuffled differently."""
    ledger = Ledger()
    x = channels(ledger, N, C, H, W)
    ruled(ledger, aten.channel_shuffle.default, (N, C, H, W), x, 3)
    assert kinds(ledger, x) == C // 3 or frozen(ledger) == set(range(C))


def test_concatenated_values_stay_side_by_side() -> None:
    ledger = Ledger()
    a, b = channels(ledger, N, 3, H, W, name="a"), channels(ledger, N, 5, H, W, name="b")
    out = ruled(ledger, aten.cat.default, (N, 8, H, W), [a, b], 1)
    assert out[0, :, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert not ledger.joins or kinds(ledger, out) == 8


@pytest.mark.parametrize(
    ("target", "size"), [(aten.split.Tensor, 4), (aten.chunk.default, 3), (aten.split_with_sizes.default, [4, 4, 4])]
)
def test_parts_of_one_size_stay_of_one_size(target: OpOverload, size: Any) -> None:
    ledger = Ledger()
    x = channels(ledger, N, C, H, W)
    parts = ruled(ledger, target, (N, 4, H, W), x, size, 1)
    assert len(parts) == 3
    assert kinds(ledger, x) == C
    assert [b.tolist() for b in ledger.balances] == [torch.arange(C).view(3, 4).tolist()]
    assert not frozen(ledger)


def test_parts_of_other_sizes_are_free() -> None:
    ledger = Ledger()
    parts = ruled(ledger, aten.split_with_sizes.default, (N, 5, H, W), channels(ledger, N, C, H, W), [5, 7], 1)
    assert [p[0, :, 0, 0].tolist() for p in parts] == [list(range(5)), list(range(5, 12))]
    assert not ledger.balances
    assert not frozen(ledger)


def test_parts_of_the_positions_are_free() -> None:
    ledger = Ledger()
    parts = ruled(ledger, aten.split.Tensor, (N, C, H, 3), channels(ledger, N, C, H, W), 3, 3)
    assert [p.shape for p in parts] == [(N, C, H, 3)] * 2
    assert kinds(ledger, parts[0]) == C
    assert not frozen(ledger)


@pytest.mark.parametrize(
    ("target", "args", "out", "kept", "fixed"),
    [
        (aten.slice.Tensor, (2, 1, 3), (N, C, 2, W), ALL, set()),
        (aten.select.int, (3, 0), (N, C, H), ALL, set()),
        (aten.slice.Tensor, (1, 0, 12), (N, C, H, W), ALL, set()),
        (aten.slice.Tensor, (1, 0, 8), (N, 8, H, W), ALL[:8], set()),
        (aten.slice.Tensor, (1, -4, 99), (N, 4, H, W), ALL[8:], set()),
        (aten.select.int, (1, 3), (N, H, W), [3], {3}),
        (aten.flip.default, ([3],), (N, C, H, W), ALL, set()),
        (aten.flip.default, ([1],), (N, C, H, W), [NONE], set(ALL)),
        (aten.roll.default, ([1], [2]), (N, C, H, W), ALL, set()),
        (aten.roll.default, ([1], [1]), (N, C, H, W), [NONE], set(ALL)),
        (aten.constant_pad_nd.default, ([1, 1, 2, 0],), (N, C, H + 2, W + 2), ALL, set()),
        (aten.constant_pad_nd.default, ([0, 0, 0, 0, 1, 3],), (N, C + 4, H, W), [NONE, *ALL], set()),
    ],
    ids=str,
)
def test_picking_and_padding_keeps_each_channel_in_its_place(
    target: OpOverload, args: tuple[Any, ...], out: tuple[int, ...], kept: list[int], fixed: set[int]
) -> None:
    ledger = Ledger()
    x = channels(ledger, N, C, H, W)
    labels = ruled(ledger, target, out, x, *args)
    assert labels.shape == out
    assert sorted(set(labels.flatten().tolist())) == kept
    assert kinds(ledger, x) == C
    assert frozen(ledger) == fixed


def test_every_second_channel_cannot_be_asked_for() -> None:
    ledger = Ledger()
    node = fx.Graph().call_function(aten.slice.Tensor, (None, 1, 0, C, 2))
    node.meta["val"] = torch.empty(N, C // 2, H, W, device="meta")
    RULES[node.target](ledger, node, channels(ledger, N, C, H, W), 1, 0, C, 2)
    assert frozen(ledger) == set(ALL)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 10**6))
def test_labels_that_meet_in_an_element_are_joined(shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(first, first + 4, shape, generator=generator) for first in (0, 10))
    found, expected = Ledger(count=20), Ledger(count=20)
    labels = ruled(found, aten.add.Tensor, tuple(shape), a, b)
    expected.join(a, b, "add")
    assert torch.equal(joined(found, torch.arange(20)), joined(expected, torch.arange(20)))
    assert torch.equal(joined(found, labels), joined(expected, a))


def test_a_gate_of_every_channel_is_joined_with_it() -> None:
    for gate, dim in (((N, C, 1, 1), 1), ((C, 1, 1), 0), ((1, C, H, W), 1)):
        ledger = Ledger()
        x, g = channels(ledger, N, C, H, W, name="x"), channels(ledger, *gate, dim=dim, name="g")
        out = ruled(ledger, aten.mul.Tensor, (N, C, H, W), g, x)
        assert torch.equal(joined(ledger, torch.arange(C)), joined(ledger, torch.arange(C, 2 * C)))
        assert kinds(ledger, out) == C
        assert not frozen(ledger)


def test_a_gate_of_all_channels_stays() -> None:
    """One channel that weighs all the others: if it could be cut, nothing would be left of it."""
    ledger = Ledger()
    x, gate = channels(ledger, N, C, H, W, name="x"), channels(ledger, N, 1, H, W, name="gate")
    ruled(ledger, aten.mul.Tensor, (N, C, H, W), x, gate)
    assert C in frozen(ledger) or kinds(ledger, torch.arange(C + 1)) == 1


@pytest.mark.parametrize("known_first", [True, False])
def test_a_value_without_labels_freezes_whichever_comes_first(known_first: bool) -> None:
    ledger = Ledger()
    x, other = channels(ledger, N, C, H, W), torch.full((), NONE).expand(N, C, H, W)
    ruled(ledger, aten.add.Tensor, (N, C, H, W), *((x, other) if known_first else (other, x)))
    assert frozen(ledger) == set(range(C))


@pytest.mark.parametrize("label", [NONE, INPUT])
def test_a_value_of_fixed_size_freezes_what_it_meets(label: int) -> None:
    for size, free in (((N, C, H, W), False), ((C, 1, 1), False), ((N, 1, H, W), True), ((1,), True), ((), True)):
        ledger = Ledger()
        x = channels(ledger, N, C, H, W)
        ruled(ledger, aten.mul.Tensor, (N, C, H, W), x, torch.full(size, label))
        assert frozen(ledger) == (set() if free else set(range(C)))


def test_a_constant_is_no_channel() -> None:
    """The values of ``arange`` must not pass for labels, nor those of ``ones``."""
    for made in ((aten.arange.default, (C,)), (aten.ones.default, ([C],))):
        graph = fx.Graph()
        x = graph.placeholder("x")
        constant = graph.call_function(*made)
        constant.meta["val"] = torch.empty(C, device="meta")
        product = graph.call_function(aten.mul.Tensor, (x, constant))
        product.meta["val"] = torch.empty(N, C, device="meta")
        graph.output((product,))
        ledger = Ledger()
        x_labels = channels(ledger, N, C)
        Walk(fx.GraphModule({}, graph), {aten.mul.Tensor: RULES[aten.mul.Tensor]}, ledger).run(x_labels)
        assert ledger.frozen[0][0].tolist() == list(range(C))
        assert "model output" not in ledger.frozen[0][1]


def weight(ledger: Ledger, *shape: int) -> tuple[Weight, Tensor, Tensor]:
    w = Weight("kernel", shape)
    return w, ledger.labels_of(w, 0), ledger.labels_of(w, 1)


def test_a_convolution_reads_its_input_and_writes_its_output() -> None:
    ledger = Ledger()
    x = channels(ledger, N, C, H, W)
    w, outputs, reads = weight(ledger, 5, C, 3, 3)
    out = ruled(ledger, aten.conv2d.default, (N, 5, H, W), x, w, Weight("bias", (5,)), [1, 1], [1, 1], [1, 1], 1)
    assert torch.equal(joined(ledger, reads), joined(ledger, x[0, :, 0, 0]))
    assert torch.equal(out[1, :, 2, 3], outputs)
    assert torch.equal(joined(ledger, outputs), joined(ledger, ledger.labels_of(Weight("bias", (5,)), 0)))
    assert kinds(ledger, torch.cat([outputs, reads])) == 5 + C
    assert ledger.reads == {("kernel", 1)}


def test_groups_of_a_convolution_keep_the_same_inputs_and_as_many_outputs() -> None:
    ledger = Ledger()
    x = channels(ledger, N, C, H, W)
    w, outputs, reads = weight(ledger, 8, 3, 3, 3)
    ruled(ledger, aten.conv2d.default, (N, 8, H, W), x, w, None, [1, 1], [1, 1], [1, 1], 4)
    assert torch.equal(joined(ledger, x[0, :, 0, 0]), joined(ledger, reads).repeat(4))
    assert kinds(ledger, outputs) == 8
    assert any(torch.equal(b, outputs.view(4, 2)) for b in ledger.balances)


def test_a_kernel_is_no_channel_whatever_else_uses_it() -> None:
    """Its mean, taken of all dimensions, must not make channels of its rows and columns; whichever comes first."""
    for first in (0, 1):
        ledger = Ledger()
        x, w = channels(ledger, N, C, H, W), Weight("kernel", (8, C, 3, 3))
        for step in (first, 1 - first):
            if step:
                ruled(ledger, aten.conv2d.default, (N, 8, H, W), x, w, None, [1, 1], [1, 1], [1, 1], 1)
            else:
                ruled(ledger, aten.mean.default, (), ledger.value(w))
        rows = {*ledger.labels_of(w, 2).tolist(), *ledger.labels_of(w, 3).tolist()}
        assert frozen(ledger) == rows
        assert len(rows) == 6


def test_a_depthwise_convolution_ties_each_output_to_its_input() -> None:
    ledger = Ledger()
    x = channels(ledger, N, C, H, W)
    w, outputs, _ = weight(ledger, 2 * C, 1, 3, 3)
    ruled(ledger, aten.conv2d.default, (N, 2 * C, H, W), x, w, None, [1, 1], [1, 1], [1, 1], C)
    assert torch.equal(joined(ledger, outputs), joined(ledger, x[0, :, 0, 0]).repeat_interleave(2))
    assert not ledger.reads


def test_a_transposed_convolution_reads_along_its_first_dimension() -> None:
    ledger = Ledger()
    x = channels(ledger, N, C, H, W)
    w, reads, outputs = weight(ledger, C, 5, 2, 2)
    out = ruled(ledger, aten.conv_transpose2d.input, (N, 5, 2 * H, 2 * W), x, w, None, [2, 2])
    assert torch.equal(joined(ledger, reads), joined(ledger, x[0, :, 0, 0]))
    assert torch.equal(out[0, :, 0, 0], outputs)
    assert ledger.reads == {("kernel", 0)}


def test_a_linear_layer_reads_the_last_dimension() -> None:
    ledger = Ledger()
    x = channels(ledger, N, H, C, dim=2)
    w, outputs, reads = weight(ledger, 5, C)
    out = ruled(ledger, aten.linear.default, (N, H, 5), x, w)
    assert torch.equal(joined(ledger, reads), joined(ledger, x[0, 0]))
    assert torch.equal(out[1, 2], outputs)


def test_a_linear_layer_over_a_flattened_map_ties_its_columns() -> None:
    ledger = Ledger()
    x = channels(ledger, N, C, H, W).reshape(N, -1)
    w, _, reads = weight(ledger, 5, C * H * W)
    ruled(ledger, aten.linear.default, (N, 5), x, w)
    assert torch.equal(joined(ledger, reads), joined(ledger, torch.arange(C)).repeat_interleave(H * W))


def test_a_norm_takes_its_statistics_along() -> None:
    ledger = Ledger()
    x = channels(ledger, N, C, H, W)
    held = [Weight(name, (C,)) for name in ("scale", "shift", "mean", "variance")]
    node = fx.Graph().call_function(aten._native_batch_norm_legit_no_training.default)
    node.meta["val"] = (torch.empty(N, C, H, W), torch.empty(0), torch.empty(0))
    out = RULES[node.target](ledger, node, x, *held, 0.1, 1e-5)[0]
    assert all(torch.equal(joined(ledger, ledger.labels_of(h, 0)), joined(ledger, x[0, :, 0, 0])) for h in held)
    assert torch.equal(joined(ledger, out), joined(ledger, x))


@pytest.mark.parametrize(
    ("dims", "keep", "mixed"),
    [([2, 3], True, False), ([2, 3], False, False), ([-1], False, False), ([1], True, True), (None, False, True)],
    ids=str,
)
def test_a_sum_over_channels_is_one_of_those_that_are_left(dims: list[int] | None, keep: bool, mixed: bool) -> None:
    ledger = Ledger()
    x = channels(ledger, N, C, H, W)
    target = aten.sum.default if dims is None else aten.sum.dim_IntList
    args = () if dims is None else (dims, keep)
    shape = tuple(target(torch.zeros(N, C, H, W), *args).shape)
    out = ruled(ledger, target, shape, x, *args)
    assert out.shape == shape
    assert kinds(ledger, x) == C
    assert bool(ledger.mixes) == mixed
    assert bool((out >= 0).any()) != mixed
    assert not frozen(ledger)


def test_a_softmax_along_the_channels_is_one_of_those_that_are_left() -> None:
    for dim, mixed in ((1, True), (-3, True), (2, False), (-1, False)):
        ledger = Ledger()
        x = channels(ledger, N, C, H, W)
        out = ruled(ledger, aten._softmax.default, (N, C, H, W), x, dim, False)
        assert torch.equal(out, x)
        assert bool(ledger.mixes) == mixed
        assert not frozen(ledger)


def test_the_largest_channel_may_be_used_but_not_named() -> None:
    """``x.max(1)`` gives which channel it was too, and some use that."""
    for asked in (False, True):
        graph, ledger = fx.Graph(), Ledger()
        x = graph.placeholder("x")
        node = graph.call_function(aten.max.dim, (x, 1))
        node.meta["val"] = (torch.empty(N, H, W, device="meta"), torch.empty(N, H, W, device="meta"))
        graph.output(graph.call_function(operator.getitem, (node, int(asked))))
        RULES[node.target](ledger, node, channels(ledger, N, C, H, W), 1)
        assert frozen(ledger) == (set(ALL) if asked else set())
        assert bool(ledger.mixes) != asked


def heads(ledger: Ledger, name: str, width: int = 6) -> Tensor:
    """Labels of queries of two heads, ``(N, heads, positions, width)``."""
    x = channels(ledger, N, 5, 2 * width, dim=2, name=name)
    return ruled(ledger, aten.view.default, (N, 5, 2, width), x, (N, 5, 2, width)).transpose(1, 2)  # type: ignore[no-any-return]


def test_queries_meet_keys_head_by_head() -> None:
    ledger = Ledger()
    q, k = heads(ledger, "q"), heads(ledger, "k")
    out = ruled(ledger, aten.matmul.default, (N, 2, 5, 5), q, k.transpose(2, 3))
    assert not bool((out >= 0).any())
    assert torch.equal(joined(ledger, torch.arange(12)), joined(ledger, torch.arange(12, 24)))
    assert kinds(ledger, torch.arange(24)) == 12
    values = heads(ledger, "v")
    assert torch.equal(ruled(ledger, aten.matmul.default, (N, 2, 5, 6), out, values), values)
    assert not frozen(ledger)


def test_channels_that_attend_to_channels_vary_both_ways() -> None:
    ledger = Ledger()
    q, k = heads(ledger, "q"), heads(ledger, "k")
    out = ruled(ledger, aten.matmul.default, (N, 2, 6, 6), q.transpose(2, 3), k)
    assert isinstance(out, Sheets)
    assert [ledger.along(s) for s in out.sheets] == [[2], [3]]
    assert kinds(ledger, torch.arange(24)) == 24
    assert not frozen(ledger)


def test_a_temperature_of_every_head_stays() -> None:
    ledger = Ledger()
    q, t = heads(ledger, "q"), Weight("t", (2, 1, 1))
    out = ruled(ledger, aten.mul.Tensor, (N, 2, 5, 6), q, t)
    assert frozen(ledger) == set(ledger.labels_of(t, 0).tolist())
    assert torch.equal(out, q)


def test_weights_are_added_dimension_by_dimension() -> None:
    ledger = Ledger()
    a, b = Weight("a", (6, C, 3, 3)), Weight("b", (6, C, 3, 3))
    out = ruled(ledger, aten.add.Tensor, a.shape, ledger.value(a), b)
    assert isinstance(out, Sheets)
    for d in range(4):
        assert torch.equal(joined(ledger, ledger.labels_of(a, d)), joined(ledger, ledger.labels_of(b, d)))
    assert kinds(ledger, torch.arange(ledger.count)) == 6 + C + 3 + 3
    assert not frozen(ledger)


def test_a_flattened_weight_says_of_an_element_all_that_it_belongs_to() -> None:
    """Its sheets lie along one dimension then, and must not be taken for one another."""
    ledger = Ledger()
    w = Weight("w", (6, C, 3, 3))
    flat = ruled(ledger, aten.view.default, (6, C * 9), ledger.value(w), (6, -1))
    assert isinstance(flat, Sheets)
    centered = ruled(ledger, aten.sub.Tensor, (6, C * 9), flat, ruled(ledger, aten.mean.dim, (6, 1), flat, [1], True))
    assert len(centered.sheets) == 4
    back = ruled(ledger, aten.view.default, w.shape, centered, w.shape)
    assert {tuple(ledger.along(s)) for s in back.sheets} == {(0,), (1,), (2,), (3,)}
    assert kinds(ledger, torch.arange(ledger.count)) == 6 + C + 3 + 3
    assert not frozen(ledger)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_tidying_changes_no_label(shape: list[int], data: st.DataObject) -> None:
    labels = torch.tensor([data.draw(st.integers(NONE, 2)) for _ in range(torch.Size(shape).numel())]).view(shape)
    short = narrow(tidy(labels))
    assert torch.equal(tidy(labels), labels)
    assert torch.equal(short.expand(shape), labels)
    assert all(n == 1 or not torch.equal(short.narrow(d, 0, 1).expand_as(short), short) for d, n in enumerate(short.shape))


def test_every_rule_is_for_an_operation() -> None:
    assert all(isinstance(target, OpOverload) and callable(rule) for target, rule in RULES.items())
