"""Networks of one dimension give the same answers in both runtimes, whatever the batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import penjing as pj

ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(2),
    "mean, dims kept": lambda x: x.mean(-1, keepdim=True),
    "mean over all": lambda x: x.mean((1, 2)),
    "maximum": lambda x: x.amax(2),
    "maximum and its place": lambda x: x.max(2).values,
    "sum": lambda x: x.sum(-1),
    "pool": lambda x: nn.functional.adaptive_avg_pool1d(x, 1),
    "over channels": lambda x: x.mean(1),
}


class Ended(nn.Module):
    """A convolution, an activation, something behind it for each channel, and something that takes three dims."""

    def __init__(self, between: str, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.end = nn.Conv1d(8, 48, 3, padding=1, bias=between != "no bias"), end
        self.activation = nn.Identity() if between == "no bias" else nn.ReLU()
        self.norm = nn.BatchNorm1d(48) if between == "norm" else nn.Identity()
        self.scale = nn.Parameter(torch.rand(48, 1) + 0.5) if "scale" in between else 1.0
        self.shift = nn.Parameter(torch.rand(48, 1)) if "shift" in between else 0.0
        for name in ("running_mean", "running_var", "weight"):
            if between == "norm":
                nn.init.uniform_(getattr(self.norm, name), 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.norm(self.activation(self.conv(x))) * self.scale + self.shift)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    ("between", "end"),
    [*((b, "mean") for b in ("", "norm", "shift", "scale and shift", "no bias")), *(("scale", end) for end in ENDS)],
)
def test_a_batch_gives_what_its_samples_give(between: str, end: str, target: str, tmp_path: Path) -> None:
    x = torch.randn(8, 8, 32)
    int8 = pj.quantize(Ended(between, ENDS[end]).eval(), x[:1], [x], target=target)
    file = pj.export(int8, x[:1], tmp_path / "net.onnx", target=target)
    with torch.no_grad():
        expected = int8(x)
    alone = end in ("mean over all", "over channels")  # OpenVINO errs there where a grid with a zero point stands before
    for runtime in [target] if alone else ["openvino", "onnxruntime"]:
        run = file.on(runtime).load(1)
        assert (run(x) - expected).norm() < 0.01 * expected.norm(), runtime
