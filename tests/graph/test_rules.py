from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx
from torch._ops import OpOverload

from penjing.graph.rules import RULES
from penjing.graph.walk import INPUT, NONE, Ledger, Walk, Weight, narrow, tidy

aten = torch.ops.aten
N, C, H, W = 2, 12, 4, 6


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


@pytest.mark.parametrize("groups", [2, 3, 4, 6])
def test_blocks_of_a_view_keep_the_same_channels(groups: int) -> None:
    ledger = Ledger()
    out = ruled(
        ledger, aten.view.default, (N, groups, C // groups, H, W), channels(ledger, N, C, H, W), (N, groups, C // groups, H, W)
    )
    out = joined(ledger, out)
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert kinds(ledger, out) == C // groups


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
def test_parts_of_one_size_keep_the_same_channels(target: OpOverload, size: Any) -> None:
    ledger = Ledger()
    x = channels(ledger, N, C, H, W)
    parts = ruled(ledger, target, (N, 4, H, W), x, size, 1)
    assert len(parts) == 3
    assert kinds(ledger, x) == 4
    assert all(torch.equal(joined(ledger, p), joined(ledger, parts[0])) for p in parts)
    assert not frozen(ledger)


def test_parts_of_other_sizes_are_frozen() -> None:
    ledger = Ledger()
    ruled(ledger, aten.split_with_sizes.default, (N, 5, H, W), channels(ledger, N, C, H, W), [5, 7], 1)
    assert frozen(ledger) == set(range(C))


def test_parts_of_the_positions_are_free() -> None:
    ledger = Ledger()
    parts = ruled(ledger, aten.split.Tensor, (N, C, H, 3), channels(ledger, N, C, H, W), 3, 3)
    assert [p.shape for p in parts] == [(N, C, H, 3)] * 2
    assert kinds(ledger, parts[0]) == C
    assert not frozen(ledger)


@pytest.mark.parametrize(
    ("target", "args", "out", "free"),
    [
        (aten.slice.Tensor, (2, 1, 3), (N, C, 2, W), True),
        (aten.select.int, (3, 0), (N, C, H), True),
        (aten.slice.Tensor, (1, 0, 12), (N, C, H, W), True),
        (aten.slice.Tensor, (1, 0, 8), (N, 8, H, W), False),
        (aten.select.int, (1, 0), (N, H, W), False),
        (aten.flip.default, ([3],), (N, C, H, W), True),
        (aten.flip.default, ([1],), (N, C, H, W), False),
        (aten.roll.default, ([1], [2]), (N, C, H, W), True),
        (aten.roll.default, ([1], [1]), (N, C, H, W), False),
        (aten.constant_pad_nd.default, ([1, 1, 2, 0],), (N, C, H + 2, W + 2), True),
        (aten.constant_pad_nd.default, ([0, 0, 0, 0, 0, 3],), (N, C + 3, H, W), False),
    ],
    ids=str,
)
def test_picking_and_padding_is_free_along_positions_only(
    target: OpOverload, args: tuple[Any, ...], out: tuple[int, ...], free: bool
) -> None:
    ledger = Ledger()
    x = channels(ledger, N, C, H, W)
    labels = ruled(ledger, target, out, x, *args)
    assert labels.shape == out
    if free:
        assert set(labels.flatten().tolist()) == set(range(C))
        assert kinds(ledger, x) == C
        assert not frozen(ledger)
    else:  # frozen, or joined so that what is left is picked alike
        assert frozen(ledger) == set(range(C)) or kinds(ledger, x) < C


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


def test_groups_of_a_convolution_keep_the_same_channels() -> None:
    ledger = Ledger()
    x = channels(ledger, N, C, H, W)
    w, outputs, reads = weight(ledger, 8, 3, 3, 3)
    ruled(ledger, aten.conv2d.default, (N, 8, H, W), x, w, None, [1, 1], [1, 1], [1, 1], 4)
    assert torch.equal(joined(ledger, x[0, :, 0, 0]), joined(ledger, reads).repeat(4))
    assert joined(ledger, outputs).tolist() == joined(ledger, outputs)[:2].repeat(4).tolist()


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
    ("dims", "keep", "kept"),
    [([2, 3], True, C), ([2, 3], False, C), ([-1], False, C), ([1], True, 1), (None, False, 1)],
    ids=str,
)
def test_what_is_summed_up_lives_or_dies_together(dims: list[int] | None, keep: bool, kept: int) -> None:
    ledger = Ledger()
    x = channels(ledger, N, C, H, W)
    target = aten.sum.default if dims is None else aten.sum.dim_IntList
    args = () if dims is None else (dims, keep)
    shape = tuple(target(torch.zeros(N, C, H, W), *args).shape)
    out = ruled(ledger, target, shape, x, *args)
    assert out.shape == shape
    assert kinds(ledger, x) == kept


def test_a_softmax_along_the_channels_freezes_them() -> None:
    for dim, free in ((1, False), (-3, False), (2, True), (-1, True)):
        ledger = Ledger()
        ruled(ledger, aten._softmax.default, (N, C, H, W), channels(ledger, N, C, H, W), dim, False)
        assert frozen(ledger) == (set() if free else set(range(C)))


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_tidying_changes_no_label(shape: list[int], data: st.DataObject) -> None:
    labels = torch.tensor([data.draw(st.integers(NONE, 2)) for _ in range(torch.Size(shape).numel())]).view(shape)
    short = narrow(tidy(labels))
    assert torch.equal(tidy(labels), labels)
    assert torch.equal(short.expand(shape), labels)
    assert all(n == 1 or not torch.equal(short.narrow(d, 0, 1).expand_as(short), short) for d, n in enumerate(short.shape))


def test_every_rule_is_for_an_operation() -> None:
    assert all(isinstance(target, OpOverload) and callable(rule) for target, rule in RULES.items())
