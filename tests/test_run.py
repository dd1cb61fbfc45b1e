import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import penjing as pj
from penjing.errors import BudgetError, DataError, ModelError, RecipeError
from penjing.export import RUNTIMES
from penjing.files import read_tensors
from penjing.result import load_result
from penjing.search import Budget

SETTINGS = pj.Settings(ratios=(0.0, 0.5), epochs=1, calibration=32, report_batches=(1, 4), seconds=0.01, threads=1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 2),
    )


def batches(seed: int, count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Which half of the image is the brighter?"""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count, 16), generator=g)
    images = torch.randn(count, 16, 1, 8, 8, generator=g)
    images[..., :4] += labels[:, :, None, None, None]
    return list(zip(images, labels, strict=True))


def task(**changed: object) -> pj.Task:
    splits = {"train": batches(0), "search": batches(1), "confirm": batches(2, 4)} | changed
    return pj.Task(metric=pj.measure.top1, **splits)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pj.Result:
    out = tmp_path_factory.mktemp("run") / "out"
    return pj.compress(network(), task(), budget=Budget(max_drop=0.5), out=out, settings=SETTINGS)


def test_a_run_leaves_all_that_it_promises(finished: pj.Result) -> None:
    there = {p.name for p in finished.folder.iterdir()}
    assert there == {"net.onnx", "plan.json", "weights.safetensors", "result.json", "report.html", "run.json", "stages"}
    assert finished.holds
    assert finished.data["verdict"]["sentence"].startswith("Holds")
    assert json.loads((finished.folder / "result.json").read_text()) == finished.data
    assert finished.data["verdict"]["sentence"] in (finished.folder / "report.html").read_text()


def test_what_is_told_of_the_file_is_true_of_the_file(finished: pj.Result) -> None:
    data = finished.data
    assert data["size"]["bytes"][1] == (finished.folder / "net.onnx").stat().st_size
    score = pj.measure.top1(finished.artifact.load(1), batches(2, 4))
    assert score.value == data["accuracy"]["after"]
    assert {(r["runtime"], r["batch"], r["net"]) for r in data["latency"]} == {
        (r, b, n) for r in RUNTIMES for b in (1, 4) for n in ("original fp32", "original default", "compressed")
    }
    assert all(a["argmax"] >= 0.98 for a in data["agreement"].values())
    assert data["left_in_float"] == {"onnxruntime": [], "openvino": []}


def test_measurements_are_those_of_the_result(finished: pj.Result) -> None:
    before, after = (finished.measurements[net] for net in ("original fp32", "compressed"))
    assert after["bytes"].value == (finished.folder / "net.onnx").stat().st_size < before["bytes"].value
    assert before["top1"].samples == 64
    row = next(r for r in finished.data["latency"] if (r["runtime"], r["batch"], r["net"]) == ("openvino", 4, "compressed"))
    assert after["latency, batch 4, openvino"].value == row["median"]
    assert after.keys() == before.keys()


def test_plan_and_weights_rebuild_the_network(finished: pj.Result) -> None:
    small = pj.prune_channels(network(), finished.plan, torch.randn(1, 1, 8, 8))
    tensors, _ = read_tensors(finished.folder / "weights.safetensors")
    small.load_state_dict(tensors)
    small.eval()
    x = torch.cat([x for x, _ in batches(2, 4)])
    with torch.no_grad():
        expected = small(x)
    found = finished.artifact.load(1)(x)
    assert (found - expected).norm() / expected.norm() < 0.1  # int8 is all that lies between the two
    assert sum(p.numel() for p in small.parameters()) == finished.data["size"]["parameters"][1]


def test_the_lines_of_code_in_the_report_load_the_file(finished: pj.Result) -> None:
    done = subprocess.run([sys.executable, "-c", finished.data["load"]], cwd=finished.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("[0]", "[1]")


def test_asking_again_gives_what_is_there_and_another_budget_goes_on(finished: pj.Result) -> None:
    made = (finished.folder / "result.json").stat().st_mtime_ns
    again = pj.compress(network(), task(), budget=Budget(max_drop=0.5), out=finished.folder, settings=SETTINGS)
    assert again.data == finished.data
    assert (finished.folder / "result.json").stat().st_mtime_ns == made


def test_the_model_is_left_alone(tmp_path: Path) -> None:
    model = network().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pj.compress(model, task(), budget=Budget(max_drop=0.9), out=tmp_path / "out", settings=replace(SETTINGS, ratios=(0.5,)))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_regression_without_labels(tmp_path: Path) -> None:
    """Nothing assumes classes: a small denoiser, its metric the user's own."""
    net = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 3, padding=1))

    def closeness(run: object, split: object) -> pj.Score:
        errors = [((run(x) - t) ** 2).mean((1, 2, 3)) for x, t in split]  # type: ignore[operator,attr-defined]
        each = -torch.cat([e.detach() for e in errors]).numpy().astype(np.float64)
        return pj.Score(float(each.mean()), len(each), each)

    clean = [(x, x) for x, _ in batches(0)]
    own = pj.Task(train=clean, search=clean, confirm=clean, metric=closeness, loss=nn.functional.mse_loss)
    result = pj.compress(net, own, budget=Budget(max_drop=0.9), out=tmp_path / "out", settings=replace(SETTINGS, labels=0.0))
    assert result.data["accuracy"]["metric"] == "closeness"
    assert result.artifact.load(1)(clean[0][0]).shape == (16, 1, 8, 8)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"train": []}, DataError, r"task\.train is empty"),
        ({"confirm": []}, DataError, r"task\.confirm is empty"),
        ({"search": [(torch.zeros(2, 3, 8, 8), torch.zeros(2))]}, DataError, r"task\.search yields.*\(2, 3, 8, 8\)"),
        ({"train": [torch.zeros(2, 1, 8, 8)]}, DataError, "not an .inputs, target. pair"),
        ({"train": [(torch.zeros(2, 1, 8, 8), torch.tensor([0, 7]))]}, DataError, r"task\.loss"),
    ],
)
def test_data_that_does_not_fit_writes_nothing(tmp_path: Path, changed: dict[str, object], error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        pj.compress(network(), task(**changed), out=tmp_path / "out", settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_nan_weights_write_nothing(tmp_path: Path) -> None:
    model = network()
    model[3].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"1 of 9216 values of 3\.weight"):
        pj.compress(model, task(), out=tmp_path / "out", settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_nothing_meets_names_the_nearest_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"bytes at most 0\.1 kB was asked, .* can be met"):
        pj.compress(network(), task(), budget=Budget(bytes=100), out=tmp_path / "out", settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_an_accuracy_that_nothing_keeps_loses_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter([1.0, 0.5])

    def metric(_run: object, _split: object) -> pj.Score:
        value = next(given, 0.5)
        return pj.Score(value, 2, np.array([value, value]))

    own = replace(task(), metric=metric)
    settings = replace(SETTINGS, ratios=(0.5,))
    with pytest.raises(BudgetError, match=r"loses 50\.00.*kept in .*stages"):
        pj.compress(network(), own, budget=Budget(max_drop=0.1), out=tmp_path / "out", settings=settings)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"run.json", "stages"}
    given = iter([1.0, 0.5])
    monkeypatch.setattr(sys.modules["penjing.train.fit"]._Loop, "_epoch", lambda *_: pytest.fail("it trained again"))
    assert pj.compress(network(), own, budget=Budget(max_drop=0.6), out=tmp_path / "out", settings=settings).holds


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, finished: pj.Result) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="holds something else"):
        pj.compress(network(), task(), out=tmp_path, settings=SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(RecipeError, match="another model, other data or other settings"):
        pj.compress(network(), task(), out=finished.folder, settings=replace(SETTINGS, epochs=2))
    with pytest.raises(RecipeError, match="other data"):
        pj.compress(network(), task(search=batches(7)), out=finished.folder, settings=SETTINGS)
    file = tmp_path / "thesis.txt"
    with pytest.raises(RecipeError, match="is a file"):
        pj.compress(network(), task(), out=file, settings=SETTINGS)


KILLED = """
import sys, pathlib
sys.path.insert(0, {here!r})
import torch, test_run
torch.set_num_threads(1)
test_run.pj.compress(test_run.network(), test_run.task(train=test_run.batches(0, 40)), budget=test_run.Budget(max_drop=0.9),
    out=pathlib.Path({out!r}), settings=test_run.replace(test_run.SETTINGS, epochs=6))
"""


def test_killed_in_training_it_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    scripts = {name: KILLED.format(here=str(Path(__file__).parent), out=str(tmp_path / name)) for name in ("killed", "whole")}
    checkpoint = tmp_path / "killed/stages/ratio-0.5.safetensors"
    process = subprocess.Popen([sys.executable, "-c", scripts["killed"]])
    for _ in range(1200):
        if checkpoint.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists(), "the run ended before it could be killed"
    assert not any(
        (tmp_path / "killed" / n).exists() for n in ("net.onnx", "result.json", "report.html", "weights.safetensors")
    )
    for script in scripts.values():
        subprocess.run([sys.executable, "-c", script], check=True)
    one, other = (read_tensors(tmp_path / name / "weights.safetensors")[0] for name in scripts)
    assert all(torch.equal(one[k], other[k]) for k in other)
    assert not list((tmp_path / "killed").rglob(".*.part"))
    assert load_result(tmp_path / "killed").holds


def test_an_unfinished_folder_has_no_result(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds no finished run"):
        load_result(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"ratios": ()}, {"ratios": (0.5, 0.2)}, {"ratios": (0.5, 1.0)}, {"epochs": 0}, {"labels": 2.0}, {"batch": 0}]
)
def test_settings_are_checked_at_the_door(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        pj.Settings(**wrong)  # type: ignore[arg-type]
