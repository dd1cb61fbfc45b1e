from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import BudgetError
from penjing.export import Runner
from penjing.measure import Measurement
from penjing.quant import Quantizer, Scheme, target_named
from penjing.search import MixSettings, fastest_mix
from penjing.search.mix import BOLD

SETTINGS = MixSettings(threads=1, seconds=0.05, placements=False)


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 4, 3)
    )
    return model.eval(), torch.randn(4, 3, 48, 48)


def nearness(model: nn.Module, x: Tensor) -> Callable[[Runner], float]:
    """Signal over noise in dB, as a metric."""
    with torch.no_grad():
        exact = model(x)
    return lambda run: float(10 * torch.log10(exact.square().sum() / (run(x) - exact).square().sum()))


def quantizer(model: nn.Module, x: Tensor, weight_bits: int = 8) -> Quantizer:
    return Quantizer(model, x[:1], [x], target=target_named("onnxruntime"), scheme=Scheme(weight_bits=weight_bits))


def test_integers_are_taken_where_they_hold(tmp_path: Path) -> None:
    model, x = network()
    path = tmp_path / "net.onnx"
    mix = fastest_mix(quantizer(model, x), model, x[:1], path, evaluate=nearness(model, x), least=20.0, settings=SETTINGS)
    assert mix.chosen.score >= 20
    assert mix.chosen.artifact.path == path
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    timed = {t.name: t.latency.value for t in mix.tried if t.latency}
    assert timed[mix.chosen.name] == min(timed.values())
    assert mix.sensitivity == {}


def test_few_layers_go_back_to_float_where_integers_lose_too_much(tmp_path: Path) -> None:
    model, x = network()
    few = quantizer(model, x, weight_bits=2)  # the middle layer alone has 2 bits: the edges have 8
    mix = fastest_mix(few, model, x[:1], tmp_path / "n.onnx", evaluate=nearness(model, x), least=20.0, settings=SETTINGS)
    mixed = [t for t in mix.tried if t.floats and t.score >= 20]
    assert mixed
    assert mixed[-1].floats == ("conv2d_1",)
    integers = next(t for t in mix.tried if t.name == "integers")
    assert integers.score < 20
    assert integers.latency is None
    assert next(iter(mix.sensitivity)) == "conv2d_1"
    assert mix.chosen.score >= 20


def test_what_others_chose_to_leave_in_float_is_tried_too(tmp_path: Path) -> None:
    model, x = network()
    few = quantizer(model, x, weight_bits=2)
    mix = fastest_mix(
        few, model, x[:1], tmp_path / "n.onnx", evaluate=nearness(model, x), least=20.0, floats=["conv2d_1"], settings=SETTINGS
    )
    assert [t.floats for t in mix.tried if t.floats] == [("conv2d_1",)]
    assert mix.sensitivity == {}  # it holds: no need to look further
    assert next(t for t in mix.tried if t.floats).latency is not None


def test_what_cannot_be_reached_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    model, x = network()
    with pytest.raises(BudgetError, match="fp32"):
        fastest_mix(quantizer(model, x), model, x[:1], tmp_path / "n.onnx", evaluate=lambda _: 0.1, least=0.2)
    assert list(tmp_path.iterdir()) == []


def test_a_drop_is_from_what_the_file_scores_in_fp32(tmp_path: Path) -> None:
    model, x = network()
    exact = nearness(model, x)
    scores: list[float] = []

    def evaluate(run: Runner) -> float:
        scores.append(exact(run))
        return scores[-1]

    mix = fastest_mix(quantizer(model, x), model, x[:1], tmp_path / "n.onnx", evaluate=evaluate, drop=0.0, settings=SETTINGS)
    assert mix.chosen.score >= scores[0]
    fine = fastest_mix(
        quantizer(model, x), model, x[:1], tmp_path / "m.onnx", evaluate=exact, least=20.0, drop=1e9, settings=SETTINGS
    )
    assert 20 <= fine.chosen.score < scores[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "n.onnx"]


class Told:
    """Tells the times it is given, by the candidates' names."""

    def __init__(self, times: dict[str, float]) -> None:
        self.times = times

    def __call__(self, contenders: dict[str, Any], _moment: str = "") -> dict[str, Measurement]:
        return {n: Measurement(self.times.get(n, 2.0), "ms", 0.0, 3.0, 9, "nowhere") for n in contenders}


@pytest.mark.parametrize(
    ("least", "times", "chosen"),
    [
        (0.0, {"integers": 1.0, BOLD: 0.8}, BOLD),  # the metric allows the noise
        (0.0, {"integers": 1.0, BOLD: 0.99}, "integers"),  # it saves nothing
        (10.0, {"integers": 1.0, BOLD: 0.8}, "integers"),  # it costs too much
    ],
)
def test_integers_where_they_are_noisy_are_taken_where_they_hold_and_save_time(
    least: float, times: dict[str, float], chosen: str, tmp_path: Path
) -> None:
    model, x = network()
    x = x * torch.tensor([1.0, 1.0, 1000.0]).view(1, 3, 1, 1)
    with torch.no_grad():
        model[0].weight[:, 2] /= 2000
    found = quantizer(model, x)
    assert list(found.noisy) == ["conv2d"]
    mix = fastest_mix(
        found, model, x[:1], tmp_path / "n.onnx", evaluate=nearness(model, x), least=least, settings=SETTINGS,
        timer=Told(times),  # type: ignore[arg-type]
    )  # fmt: skip
    assert mix.chosen.name == chosen
    assert list(found.noisy) == ["conv2d"]
    left = {k.layer for k in mix.kernels() if k.weighted and k.precision == "f32"}
    assert len(left) == (chosen == "integers")


class Looks:
    """Tells another time of one placement at every look."""

    def __init__(self, name: str, times: list[float]) -> None:
        self.name, self.times = name, times

    def __call__(self, contenders: dict[str, Any], moment: str = "") -> dict[str, Measurement]:
        time = self.times[1 if moment.endswith(" again") else 2 if moment.endswith(" once more") else 0]
        plain = {"fp32": 9.0, "the runtime's float": 9.0}
        return {n: Measurement(time if n == self.name else plain.get(n, 1.0), "ms", 0.0, 9.0, 9, "nowhere") for n in contenders}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("times", "taken"),
    [([0.9, 1.1, 1.1], False), ([0.9, 1.1, 0.95], True), ([0.97, 0.98, 0.97], True), ([0.99, 0.5, 0.5], False)],
)
def test_another_placement_is_taken_where_most_of_three_looks_say_so(times: list[float], taken: bool, tmp_path: Path) -> None:
    model, x = network()
    name = "the first layer in float"
    mix = fastest_mix(
        quantizer(model, x), model, x[:1], tmp_path / "n.onnx", evaluate=lambda _: 0.0, least=0.0,
        settings=MixSettings(threads=1, seconds=0.05), timer=Looks(name, times),  # type: ignore[arg-type]
    )  # fmt: skip
    assert mix.placement == (name if taken else "default")


class Misled:
    """Tells at the first look that integers are a little faster, and at the second that they are not."""

    def __init__(self, later: float) -> None:
        self.later, self.moments = later, list[str]()

    def __call__(self, contenders: dict[str, Any], moment: str = "") -> dict[str, Measurement]:
        self.moments.append(moment)
        share = self.later if "again" in moment else 0.8
        return {n: Measurement(share if n == "integers" else 1.0, "ms", 0.0, 2.0, 9, "nowhere") for n in contenders}


@pytest.mark.parametrize(("later", "chosen"), [(1.2, False), (0.8, True)])
def test_integers_that_were_a_little_faster_once_are_looked_at_again(later: float, chosen: bool, tmp_path: Path) -> None:
    model, x = network()
    timer = Misled(later)
    mix = fastest_mix(
        quantizer(model, x), model, x[:1], tmp_path / "n.onnx", evaluate=lambda _: 0.0, least=0.0, settings=SETTINGS,
        timer=timer,  # type: ignore[arg-type]
    )  # fmt: skip
    assert (mix.chosen.name == "integers") is chosen
    assert timer.moments == [" forms", " forms again"]
