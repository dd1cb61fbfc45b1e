import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from penjing.errors import DataError
from penjing.graph import capture
from penjing.measure import Measurement, compare, cores, latency, layers, machine, macs, parameters, top1
from penjing.task import NoScore
from penjing.zoo import resnet20


def test_top1_counts_by_hand_and_keeps_every_sample() -> None:
    outputs = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    score = top1(lambda x: outputs[x], [(torch.tensor([0, 1]), torch.tensor([0, 0])), (torch.tensor([2]), torch.tensor([0]))])
    assert score.value == pytest.approx(2 / 3)
    assert score.samples == 3
    assert score.per_sample.tolist() == [1, 0, 1]


def test_top1_takes_numpy_and_per_pixel_outputs() -> None:
    output = np.zeros((2, 3, 4, 4), np.float32)
    output[:, 1] = 1
    target = torch.ones(2, 4, 4, dtype=torch.int64)
    target[0, 0, 0] = 2
    score = top1(lambda _: output, [(torch.zeros(2), target)])
    assert score.value == pytest.approx(31 / 32)
    assert score.per_sample.tolist() == [15 / 16, 1]


def test_top1_leaves_out_what_training_leaves_out() -> None:
    target = torch.tensor([[1, 1, -100, 255], [255, 255, 255, -1], [0, 255, 1, 1]])
    score = top1(lambda _: torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1).expand(3, 3, 4), [(torch.zeros(3), target)])
    assert score.per_sample.tolist() == pytest.approx([1, 2 / 3])  # the second has no position that counts
    assert (score.samples, score.value) == (2, pytest.approx(5 / 6))
    many = F.one_hot(torch.tensor([255, 7]), 300)
    assert top1(lambda _: many, [(torch.zeros(2), torch.tensor([255, 255]))]).value == 0.5  # of so many, 255 is a class
    with pytest.raises(NoScore, match="no target has a class"):
        top1(lambda _: many, [(torch.zeros(2), torch.tensor([-1, -1]))])


@pytest.mark.parametrize("target", [torch.ones(2, 1), torch.zeros(2)])
def test_top1_refuses_a_single_output(target: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"outputs have shape \(2, 1\), and top1 compares two classes or more"):
        top1(lambda x: x, [(torch.ones(2, 1), target)])
    with pytest.raises(DataError, match=r"outputs have shape \(2,\)"):
        top1(lambda x: x, [(torch.ones(2), target)])


def test_top1_refuses_nothing_and_nan() -> None:
    with pytest.raises(DataError, match="no batch"):
        top1(lambda x: x, [])
    with pytest.raises(DataError, match="NaN"):
        top1(lambda x: x * float("nan"), [(torch.ones(1, 2), torch.zeros(1))])


def test_macs_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=4), nn.ConvTranspose2d(8, 4, 2, 2), nn.Flatten()
    )
    found = layers(capture(model, torch.randn(1, 3, 6, 6)))
    assert [x.macs for x in found] == [6 * 6 * 8 * 3 * 9, 4 * 4 * 8 * 2 * 9, 4 * 4 * 8 * 4 * 4]
    assert [x.widths for x in found] == [(3, 8), (8, 8), (8, 4)]


def test_macs_of_resnet20_by_hand() -> None:
    def stage(inputs: int, width: int, side: int) -> int:
        shortcut = side * side * width * inputs if inputs != width else 0
        return side * side * 9 * (inputs * width + 5 * width * width) + shortcut

    expected = 28 * 28 * 9 * 32 + stage(32, 32, 28) + stage(32, 64, 14) + stage(64, 128, 7) + 128 * 10
    assert macs(capture(resnet20(), torch.randn(1, 1, 28, 28))) == expected


def test_parameters_count_shared_ones_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert parameters(model) == 16 + 4 + 4


def test_compare_finds_the_slower_and_keeps_the_spread() -> None:
    found = compare({"slow": lambda _: time.sleep(0.004), "fast": lambda _: None}, torch.zeros(1), seconds=0.05)
    assert found["slow"].value > 4 > found["fast"].value
    assert found["slow"].low <= found["slow"].value <= found["slow"].high
    assert found["slow"].samples >= 5


def test_latency_says_where() -> None:
    m = latency(lambda _, x: x, np.array(0.5), np.zeros(1), seconds=0.01)
    assert (m.unit, m.where) == ("ms", "torch")
    assert str(Measurement.exact(1200, "bytes")) == "1,200 bytes"


def test_networks_in_torch_are_timed_beside_what_takes_arrays() -> None:
    kinds = []
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    runs = {"torch": net, "arrays": lambda x: kinds.append(type(x))}
    found = compare(runs, torch.zeros(1, 1, 8, 8), seconds=0.01)
    assert found["torch"].where == "torch" and found["torch"].value > 0
    assert set(kinds) == {np.ndarray}
    assert net.training and not net[1].num_batches_tracked


def test_machine_names_what_numbers_depend_on() -> None:
    found = machine()
    assert found["cores"] == cores() >= 1
    assert found["torch"] == torch.__version__
    assert {"cpu", "features", "onnxruntime", "openvino"} <= found.keys()
