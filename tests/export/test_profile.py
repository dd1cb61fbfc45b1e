from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from penjing.export import RUNTIMES, Artifact, Profile, Spent, export
from penjing.export.profiles import call_for, calm, named
from penjing.measure import Measurement
from penjing.quant import quantize


class Net(nn.Module):
    """A layer of its own name, a residual block, and a head: runtimes fuse the addition and rename what they fuse."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        y = torch.relu(y + self.second(torch.relu(self.first(y))))
        out: Tensor = self.head(y.mean((2, 3)))
        return out


@pytest.fixture(scope="module", params=[(r, p) for r in RUNTIMES for p in ("int8", "float")], ids=" ".join)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    runtime, precision = request.param
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 3, 24, 24)
    module = quantize(model, x, [x], target=runtime) if precision == "int8" else model
    return export(module, x, tmp_path_factory.mktemp("files") / "net.onnx", target=runtime)


def test_every_layer_of_the_network_is_found_under_its_name(artifact: Artifact) -> None:
    profile = artifact.profile(torch.randn(2, 3, 24, 24), threads=1, seconds=0.02)
    assert set(profile.layers) == {"stem", "first", "second", "head"}
    assert all(k.ms > 0 for k in profile.kernels if k.weighted)
    assert profile.wall.unit == "ms" and profile.wall.value > 0
    assert sum(profile.layers.values()) + sum(profile.rest.values()) == pytest.approx(sum(k.ms for k in profile.kernels))


def test_a_profile_sums_kernels_of_one_layer_and_of_one_operation() -> None:
    kernels = (
        Spent("a", "Conv", True, 1.0),
        Spent("x", "Add", False, 0.25),
        Spent("a", "Conv", True, 2.0),
        Spent("y", "Pool", False, 0.5),
        Spent("z", "Pool", False, 0.5),
    )
    profile = Profile(Measurement(5.0, "ms", 5.0, 5.0, 1, "here"), kernels)
    assert profile.layers == {"a": 3.0}
    assert list(profile.rest.items()) == [("Pool", 1.0), ("Add", 0.25)]


def test_kernels_called_by_a_value_are_named_after_the_layer_it_comes_from(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["b"], name="act"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="two"),
        helper.make_node("Add", ["c", "b"], ["d"], name="sum"),
        helper.make_node("Relu", ["d"], ["e"], name="end"),
    ]
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [])), path)
    found = named(path, [Spent("b", "Conv", True, 1.0), Spent("e", "Conv", True, 2.0), Spent("sum", "Add", False, 3.0)])
    assert [k.layer for k in found] == ["one", "two", "sum"]
    (only,) = named(path, [Spent("nowhere", "Conv", True, 1.0)])
    assert only.layer == "nowhere"


def test_disturbed_calls_do_not_count() -> None:
    assert calm([1.0, 1.0, 1.0, 7.0]) * 10.0 == pytest.approx(4.0)  # 10 a call on average, 4 in a calm one
    assert len(call_for(lambda: None, 0.0)) == 10
