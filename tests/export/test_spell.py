"""What is spelled out computes the same, and leaves torch nothing to trace again."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter import _fx_passes

import penjing as pj
from penjing.export.spell import SPELLED, spell_out
from penjing.export.windows import WINDOWS
from penjing.graph import capture
from penjing.zoo import ZOO

CASES = {
    "norm 1d": (nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3)), (2, 2, 8)),
    "norm 2d": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False)), (2, 2, 8, 8)),
    "norm 3d": (nn.BatchNorm3d(3), (2, 3, 4, 4, 4)),
    "norm without statistics": (nn.BatchNorm2d(3, track_running_stats=False), (2, 3, 4, 4)),
    "pool 1d": (nn.AdaptiveAvgPool1d(1), (2, 3, 8)),
    "pool 2d": (nn.AdaptiveAvgPool2d(1), (2, 3, 8, 6)),
    "pool 3d": (nn.AdaptiveAvgPool3d(1), (2, 3, 4, 6, 2)),
    "pool of several": (nn.AdaptiveAvgPool2d((2, 1)), (2, 3, 8, 6)),
    "pool of several, 1d": (nn.AdaptiveAvgPool1d(4), (2, 3, 8)),
    "pool of several, 3d": (nn.AdaptiveAvgPool3d((2, 3, 1)), (2, 3, 4, 6, 2)),
    "pool of uneven windows": (nn.AdaptiveAvgPool2d((3, 2)), (2, 3, 8, 6)),
}


@pytest.mark.parametrize("name", CASES)
def test_it_computes_the_same(name: str) -> None:
    net, shape = CASES[name]
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
            assert m.running_var is not None
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)
    x = torch.randn(shape)
    graph = capture(net.eval(), (x,)).module
    spell_out(graph)
    torch.testing.assert_close(graph(x), net(x))
    left = {n.target for n in graph.graph.nodes} & SPELLED.keys() - set(WINDOWS.values())  # of windows most are as they are
    assert bool(left) == (name in ("norm without statistics", "pool of uneven windows"))


def test_windows_that_tile_the_map_are_not_traced_again(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten()).eval(), torch.randn(2, 1, 10, 11)
    with mock.patch.object(_fx_passes, "decompose_with_registry", side_effect=AssertionError("traced again")):
        file = pj.export(net, x, tmp_path / "net.onnx")
    for runtime in ("onnxruntime", "openvino"):
        torch.testing.assert_close(file.on(runtime).load(1, "f32")(x), net(x).detach(), atol=1e-5, rtol=1e-5)


class Narrowed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.narrow(1, -2, 2) + x.narrow(1, -3, 2) + x.narrow(1, 0, 2)


def test_parts_that_are_counted_from_the_end_are_all_there(tmp_path: Path) -> None:
    x = torch.randn(2, 4, 3, 3)
    file = pj.export(Narrowed(), x, tmp_path / "net.onnx")
    torch.testing.assert_close(file.load(1)(x), Narrowed()(x))


@pytest.mark.parametrize("name", ZOO)
def test_a_network_is_not_traced_again_for_its_file(name: str, tmp_path: Path) -> None:
    make, shape = ZOO[name]
    with mock.patch.object(_fx_passes, "decompose_with_registry", side_effect=AssertionError("traced again")):
        pj.export(make().eval(), torch.zeros(1, *shape), tmp_path / "net.onnx")


def test_what_is_not_known_is_left_to_torch(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d((3, 3)), nn.Flatten())
    x = torch.randn(2, 1, 10, 11)
    with mock.patch.object(_fx_passes, "decompose_with_registry", wraps=_fx_passes.decompose_with_registry) as traced:
        file = pj.export(net.eval(), x, tmp_path / "net.onnx")
    assert traced.called
    torch.testing.assert_close(file.load(1)(x), net(x), atol=1e-5, rtol=1e-5)
