import json

import pytest
import torch
from torch import Tensor, nn

from penjing.measure import Inspection, inspect
from penjing.prune import prune
from penjing.zoo import ZOO, resnet20
from tests.nets import CUTTABLE, IMAGE, TwoNames, conv, head, net, pooled
from tests.oracle import inputs

X = inputs(IMAGE, 1)


@pytest.fixture(scope="module")
def residual() -> Inspection:
    return inspect(resnet20(), torch.randn(1, 1, 28, 28))


def test_the_summary_tells_what_can_be_cut_and_what_cannot(residual: Inspection) -> None:
    lines = str(residual).splitlines()
    assert lines[0].startswith("1,084,010 parameters, 123,860,736 multiply-accumulates a sample, 22 layers, any batch size")
    assert lines[2].startswith("12 groups of channels can be cut; ")
    words = [line.split() for line in lines[3:9]]
    assert [w[0] for w in words] == ["32", "3", "3", "64", "3", "128"]  # 3 x 32 are three blocks' inner convolutions
    assert sum("summed" in w for w in words) == 3
    assert lines[10] == "3 dimensions of weights must stay"
    assert sorted(line.split()[2:4] for line in lines[11:]) == [["model", "input:"], ["model", "output:"]]


def test_it_is_plain_text(residual: Inspection) -> None:
    assert str(residual).isascii()
    assert "\x1b" not in str(residual)
    assert all(line == line.rstrip() for line in str(residual).splitlines())


def test_one_line_a_reason_with_the_layers_it_froze() -> None:
    def wiring(m: nn.Module, x: Tensor) -> Tensor:
        y = m.c(torch.relu(m.b(torch.relu(m.a(x)))))  # type: ignore[operator]
        out: Tensor = m.head(pooled(y.cumsum(1)))  # type: ignore[operator]
        return out

    found = inspect(net(wiring, a=conv(3, 16), b=conv(16, 16), c=conv(16, 8), head=head(8))(), X)
    (why,) = [why for why in found.reasons if "cumsum" in why]
    assert found.reasons[why] == ("c",)
    (line,) = [line for line in str(found).splitlines() if "cumsum" in line]
    assert (line.split()[:2], line.split()[-1]) == (["1", "layer"], "c")
    assert {g.name for g in found.groups} == {"a.weight", "b.weight"}


def test_blocks_are_told() -> None:
    found = inspect(CUTTABLE["grouped"](), X)
    blocks = {g.name: g.equal for g in found.groups}
    for name, count in blocks.items():
        assert (f"in {count} blocks" in str(found)) == (count > 1), name
    assert max(blocks.values()) == 4
    assert {g["name"]: g["blocks"] for g in found.to_json()["groups"]} == blocks


def test_the_share_that_can_be_cut_by_hand() -> None:
    found = inspect(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)), X)
    assert found.parameters == 8 * 27 + 8 + 5 * 288 + 5
    assert found.cuttable == 8 * 27 + 8 + 5 * 288  # all but the bias of the classes
    assert f"{found.cuttable / found.parameters:.1%} of the parameters" in str(found)


def test_what_can_be_cut_is_what_cutting_takes_from() -> None:
    """Cut to the least, at most what was said to belong to the groups is gone; and most of it is."""
    for make, shape in ZOO.values():
        model, x = make(), torch.randn(1, *shape)
        found = inspect(model, x)
        small = prune(model, x, 0.95, round_to=1)
        gone = found.parameters - sum(p.numel() for p in small.parameters())
        assert 0.85 * found.cuttable < gone < found.cuttable


def test_a_shared_weight_counts_once() -> None:
    found = inspect(TwoNames(), inputs(IMAGE, 1))
    assert 0 < found.cuttable < found.parameters == sum(p.numel() for p in TwoNames().parameters())


def test_nothing_to_cut_is_said() -> None:
    found = inspect(nn.Conv2d(3, 4, 1), X)
    assert (found.cuttable, found.groups) == (0, ())
    assert "0 groups of channels can be cut; 0.0% of the parameters" in str(found)


def test_depthwise_kernels_are_no_groups_of_one_channel() -> None:
    """The one input of a depthwise kernel cannot go, whatever the labels say of it."""
    found = inspect(nn.Sequential(conv(3, 8), conv(8, 8, groups=8), nn.Flatten(), nn.Linear(8 * 64, 5)), X)
    assert [g.channels for g in found.groups] == [8]


class Wide(nn.Module):
    """A hundred and fifty groups of fifty widths."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.ModuleList(nn.Linear(4, 2 + i % 50) for i in range(150))
        self.leave = nn.ModuleList(nn.Linear(2 + i % 50, 4) for i in range(150))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([b(torch.relu(a(x))) for a, b in zip(self.enter, self.leave, strict=True)]).sum(0)


def test_a_large_network_is_told_in_a_few_lines_and_whole_on_request() -> None:
    found = inspect(Wide(), torch.randn(2, 4))
    assert len(found.groups) == 150
    lines = str(found).splitlines()
    assert len(lines) < 30
    assert max(map(len, lines)) < 140
    assert "34 lines more, all of them in listing()" in str(found)
    listing = found.listing().splitlines()
    assert sum(line.split()[1] == "channels" for line in listing) == 150
    assert len(found.to_json()["groups"]) == 150


def test_the_listing_names_every_place(residual: Inspection) -> None:
    listing = residual.listing().splitlines()
    assert sum(line.startswith("  cut from") for line in listing) == sum(len(g.axes) for g in residual.groups)
    assert sum(line.startswith("fixed: ") for line in listing) == len(residual.channels.fixed)


def test_json_is_json(residual: Inspection) -> None:
    value = json.loads(json.dumps(residual.to_json()))
    assert (value["parameters"], value["macs"], value["dynamic"]) == (1_084_010, 123_860_736, True)
    assert value["groups"][0]["channels"] == residual.groups[0].channels
    assert {f["reason"] for f in value["fixed"]} == set(value["reasons"]) == {"model input", "model output"}
    assert len(value["layers"]) == 22
