import importlib
import json
import math
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import penjing as pj
from penjing.errors import BudgetError, DataError, ModelError, RecipeError
from penjing.export import RUNTIMES, Agreement, left_in_float
from penjing.files import read_tensors
from penjing.plan import ChannelPlan
from penjing.progress import silent
from penjing.result import load_result
from penjing.run import candidates, training
from penjing.run.job import Job
from penjing.run.training import Start
from penjing.search import Budget
from penjing.task import Batches, Run, Score

telling = importlib.import_module("penjing.run.tell")
SETTINGS = pj.Settings(
    epochs=2,
    attempts=1,
    probes=1,
    calibration=32,
    report_batches=(1, 8),
    seconds=0.01,
    samples=4,
    generalization=32,
    threads=1,
    batch=8,  # of one sample, the widths of so small a network would cost no time that can be told from noise
)


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
    told = {"train": batches(0), "search": batches(1), "confirm": batches(2, 4), "metric": pj.measure.top1} | changed
    return pj.Task(**told)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def given() -> nn.Module:
    return network().train()


@pytest.fixture(scope="module")
def finished(given: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> pj.Result:
    out = tmp_path_factory.mktemp("run") / "out"
    return pj.compress(given, task(), budget=Budget(max_drop=0.4), out=out, settings=SETTINGS)


def test_a_run_leaves_all_that_it_promises(finished: pj.Result) -> None:
    there = {p.name for p in finished.folder.iterdir()}
    assert there == {
        *("net.onnx", "plan.json", "weights.safetensors", "result.json", "report.html", "run.json", "lock.json", "stages")
    }
    assert finished.holds
    assert finished.data["verdict"]["sentence"].startswith("Holds")
    assert (finished.data["classes"], finished.data["unchanged"]) == (True, False)
    assert finished.data["untrained"] == (not finished.data["training"])  # as fast as can be without, perhaps
    assert json.loads((finished.folder / "result.json").read_text()) == finished.data
    assert finished.data["verdict"]["sentence"] in (finished.folder / "report.html").read_text()


def test_what_is_told_of_the_file_is_true_of_the_file(finished: pj.Result) -> None:
    data = finished.data
    assert data["size"]["bytes"][1] == (finished.folder / "net.onnx").stat().st_size
    score = pj.measure.top1(finished.artifact.load(1), batches(2, 4))
    assert score.value == data["accuracy"]["after"]
    assert {(r["runtime"], r["batch"], r["net"]) for r in data["latency"]} == {
        (r, b, n) for r in RUNTIMES for b in (1, 8) for n in ("original fp32", "original default", "compressed")
    }
    assert all(a["argmax"] >= 0.98 for a in data["agreement"].values())
    floats = {r: [k.layer for k in left_in_float(finished.artifact.on(r).kernels())] for r in RUNTIMES}
    assert data["left_in_float"] == floats
    assert [row["precision"] for row in data["layers"]] == [
        k["precision"] for k in data["kernels"]["onnxruntime"] if k["weighted"]
    ]


def test_measurements_are_those_of_the_result(finished: pj.Result) -> None:
    before, after = (finished.measurements[net] for net in ("original fp32", "compressed"))
    assert after["bytes"].value == (finished.folder / "net.onnx").stat().st_size < before["bytes"].value
    assert before["top1"].samples == 64
    row = next(r for r in finished.data["latency"] if (r["runtime"], r["batch"], r["net"]) == ("openvino", 8, "compressed"))
    assert after["latency, batch 8, openvino"].value == row["median"]
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


def test_other_processes_make_what_is_trained_again_from_the_folder(given: nn.Module, finished: pj.Result) -> None:
    job = Job(given, task(), Budget(max_drop=0.4), "onnxruntime", finished.folder, SETTINGS, silent)
    key = finished.data["chosen"]
    floats = tuple((job.kept(key) or {})["floats"])  # layers that integers slow down here
    sent = pickle.loads(pickle.dumps(Start(given, key, floats)))
    assert sent == Start(None, key, floats)
    x = batches(3)[0][0]
    assert torch.equal(Start(None, key).here(job)(x), pj.load(finished.folder / "weights.safetensors", network)(x))
    file = pj.export(sent.here(job), x[:1], finished.folder.parent / "again.onnx", target="onnxruntime")
    assert file.path.read_bytes() == (finished.folder / "stages" / f"{key}.onnx").read_bytes()
    assert Start(None).here(job) is given


def test_the_lines_of_code_in_the_report_load_the_file(finished: pj.Result) -> None:
    done = subprocess.run([sys.executable, "-c", finished.data["load"]], cwd=finished.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("[0]", "[1]")


def test_asking_again_gives_what_is_there_and_another_budget_goes_on(finished: pj.Result) -> None:
    made = (finished.folder / "result.json").stat().st_mtime_ns
    again = pj.compress(network(), task(), budget=Budget(max_drop=0.4), out=finished.folder, settings=SETTINGS)
    assert again.data == finished.data
    assert (finished.folder / "result.json").stat().st_mtime_ns == made


def test_more_images_to_confirm_on_are_looked_at_with_what_is_there(tmp_path: Path, finished: pj.Result) -> None:
    shutil.copytree(finished.folder, tmp_path / "out")
    more = task(confirm=batches(2, 4) + batches(3, 4))
    again = pj.compress(network(), more, budget=Budget(max_drop=0.4), out=tmp_path / "out", settings=SETTINGS)
    assert [r.data["accuracy"]["samples"] for r in (finished, again)] == [64, 128]
    assert again.data["candidates"] == finished.data["candidates"]


def test_the_model_is_left_alone(given: nn.Module, finished: pj.Result) -> None:
    assert finished.holds
    assert given.training
    before = network().state_dict()
    assert all(torch.equal(v, before[k]) for k, v in given.state_dict().items())


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
    assert {a["argmax"] for a in result.data["agreement"].values()} == {None}
    assert "argmax" not in result.data["load"]


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


def test_a_budget_that_nothing_meets_names_the_nearest_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"nearest has bytes of .* kB where at most 0\.1 kB was asked"):
        pj.compress(network(), task(), budget=Budget(bytes=100), out=tmp_path / "out", settings=SETTINGS)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"run.json", "lock.json", "stages"}
    assert not list((tmp_path / "out").rglob("*training*"))


def exactness(run: object, split: object) -> pj.Score:
    """Share of samples whose output is that of the network to the last digits: no integer will do."""
    exact = network().eval()
    with torch.no_grad():
        same = [(torch.as_tensor(run(x)) - exact(x)).abs().amax(1) < 1e-4 for x, _ in split]  # type: ignore[operator,attr-defined]
    each = torch.cat(same).double().numpy()
    return pj.Score(float(each.mean()), len(each), each)


def test_where_nothing_keeps_the_accuracy_the_original_comes_back_and_says_so(tmp_path: Path) -> None:
    own = replace(task(), metric=exactness)
    budget = Budget(max_drop=0.1)
    result = pj.compress(network(), own, budget=budget, out=tmp_path / "out", settings=replace(SETTINGS, control=False))
    assert result.holds
    assert result.data["verdict"]["sentence"].startswith("Nothing faster was found within the budget, so this is the original")
    assert "nearest was" in result.data["verdict"]["advice"]
    assert result.data["accuracy"]["drop"] == 0
    assert result.plan.keep == {}
    assert result.data["unchanged"]
    x = batches(2)[0][0]
    with torch.no_grad():
        assert torch.allclose(result.artifact.load(1)(x), network().eval()(x), atol=1e-4)
    assert {c["status"] for c in result.data["candidates"]} <= {"original", "chosen", "too inaccurate", "over the limit"}


def test_without_training_nothing_is_trained(tmp_path: Path) -> None:
    result = pj.compress(
        network(), task(), budget=Budget(max_drop=0.4), out=tmp_path / "out", settings=replace(SETTINGS, epochs=0)
    )
    assert not list((tmp_path / "out").rglob("*training*"))
    assert result.data["control"] is None
    assert not result.data["untrained"]  # it was not asked for
    assert {c["kind"] for c in result.data["candidates"]} <= {"original", "float", "untrained"}


def test_limits_without_a_drop_give_the_most_accurate_network_within_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts: list[ChannelPlan] = []

    def counted(model: nn.Module, plan: ChannelPlan, example: Any) -> nn.Module:
        cuts.append(plan)
        return pj.prune_channels(model, plan, example)

    monkeypatch.setattr(candidates, "prune_channels", counted)
    budget = Budget(max_drop=None, bytes="0.5x", macs="0.6x", memory="0.9x")
    result = pj.compress(network(), task(), budget=budget, out=tmp_path / "out", settings=SETTINGS)
    was, now = (dict(zip(result.data["size"], pair, strict=True)) for pair in zip(*result.data["size"].values(), strict=True))
    assert now["bytes"] <= 0.51 * was["bytes"]
    assert now["macs"] <= 0.61 * was["macs"]
    assert now["memory"] <= 0.92 * was["memory"]
    assert result.data["budget"]["max_drop"] is None
    tried = [c for c in result.data["candidates"] if c["kind"] in ("untrained", "trained")]
    assert len(cuts) == 1 < len(tried)  # the same cut, once without training and once with it
    assert len({c["macs"] for c in tried}) == 1


@pytest.mark.slow
def test_killed_between_a_cut_network_and_its_plan_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget, how = Budget(max_drop=None, macs="0.6x"), replace(SETTINGS, epochs=0, control=False)
    with monkeypatch.context() as patch:
        keep = Job.keep

        def killed(job: Job, name: str, value: Any) -> None:
            if name.endswith("-plan"):
                raise KeyboardInterrupt
            keep(job, name, value)

        patch.setattr(Job, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            pj.compress(network(), task(), budget=budget, out=tmp_path / "out", settings=how)
    assert list((tmp_path / "out/stages").glob("cut-*.safetensors"))
    assert pj.compress(network(), task(), budget=budget, out=tmp_path / "out", settings=how).plan.keep


@pytest.mark.slow
def test_a_network_that_was_trained_and_not_cut_is_the_one_that_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "WORSE", math.inf)  # it is as fast as the original, give or take a busy moment
    whole = replace(
        SETTINGS, exclude=("*",), control=False, drop_blocks=False, epochs=20, labels=1.0, training=pj.Training(lr=0.1)
    )
    net = pj.compress(network(), task(), budget=Budget(max_drop=None, bytes=1e6), out=tmp_path / "out", settings=whole)
    chosen = net.measurements
    tensors, _ = read_tensors(net.folder / "weights.safetensors")
    assert net.data["chosen"].startswith("trained")
    assert net.plan.keep == {}
    assert not torch.equal(tensors["3.weight"], network().state_dict()["3.weight"])
    small = network().eval()
    small.load_state_dict(tensors)
    x = torch.cat([x for x, _ in batches(2, 4)])
    with torch.no_grad():
        expected = small(x)
    assert (net.artifact.load(1)(x) - expected).norm() / expected.norm() < 0.1
    assert chosen["compressed"]["top1"].value == net.data["accuracy"]["after"]


@pytest.mark.slow
def test_numbers_that_json_does_not_know_can_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Infinite ends, of a metric that gives one number in all; NaN, of outputs that are; numpy's own."""

    def overall(run: Run, batches: Batches) -> Score:
        found = pj.measure.top1(run, batches)
        return Score(found.value, 1, np.array([found.value]))

    asked = replace(SETTINGS, epochs=0, generalization=0)
    nowhere = Agreement(math.nan, math.nan, math.nan, 0.0, 16)
    monkeypatch.setattr(telling, "agreements", lambda runs, *_: dict.fromkeys(runs, nowhere))
    net = pj.compress(
        network(),
        replace(task(), metric=overall),
        budget=Budget(max_drop=None, bytes=np.int64(30_000)),
        out=tmp_path / "o",
        settings=asked,
    )
    assert net.data["accuracy"]["high"] is None
    assert (net.data["budget"]["bytes"], net.data["agreement"]["openvino"]["cosine"]) == (30_000, None)
    assert "one value in all tells nothing of its chance" in (net.folder / "report.html").read_text()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, finished: pj.Result) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="holds something else"):
        pj.compress(network(), task(), out=tmp_path, settings=SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    faster = replace(SETTINGS, epochs=3, training=replace(SETTINGS.training, lr=0.5))
    with pytest.raises(
        RecipeError, match=r"a run with settings\.epochs 2 .now 3., settings\.training\.lr 0\.02 .now 0\.5.; choose"
    ):
        pj.compress(network(), task(), out=finished.folder, settings=faster)
    with pytest.raises(RecipeError, match="a run with other data; choose"):
        pj.compress(network(), task(search=batches(7)), out=finished.folder, settings=SETTINGS)
    with pytest.raises(RecipeError, match=r"a run with another model, target onnxruntime\S* .now openvino\S*.; choose"):
        pj.compress(network()[:4].append(network()[4:]), task(), target="openvino", out=finished.folder, settings=SETTINGS)
    file = tmp_path / "thesis.txt"
    with pytest.raises(RecipeError, match="is a file"):
        pj.compress(network(), task(), out=file, settings=SETTINGS)
    file.rename(tmp_path / ".run.json.x7.part")  # as a kill at the very first write leaves it
    assert Job(network(), task(), Budget(), "onnxruntime", tmp_path, SETTINGS, silent).new


KILLED = """
import sys, pathlib, torch
sys.path.insert(0, {here!r})
import test_run
torch.set_num_threads(1)
test_run.long_run(pathlib.Path({out!r}))
"""


def long_run(out: Path) -> pj.Result:
    settings = replace(SETTINGS, epochs=6, probes=0, control=False)
    return pj.compress(network(), task(train=batches(0, 40)), budget=Budget(max_drop=0.4), out=out, settings=settings)


@pytest.mark.slow
def test_killed_in_training_it_goes_on_to_the_same_file(tmp_path: Path) -> None:
    script = KILLED.format(here=str(Path(__file__).parent), out=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", script])
    for _ in range(2400):
        if list(tmp_path.glob("killed/stages/*-training.safetensors")) or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("killed/stages/*-training.safetensors")), "the run ended before it could be killed"
    assert not any(
        (tmp_path / "killed" / n).exists() for n in ("net.onnx", "result.json", "report.html", "weights.safetensors")
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    killed, whole = (long_run(tmp_path / name) for name in ("killed", "whole"))
    torch.set_num_threads(threads)
    one, other = (read_tensors(r.folder / "weights.safetensors")[0] for r in (killed, whole))
    assert all(torch.equal(one[k], other[k]) for k in other)
    assert killed.artifact.digest == whole.artifact.digest
    assert not list((tmp_path / "killed").rglob(".*.part"))


def test_an_unfinished_or_damaged_folder_has_no_result(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds no finished run"):
        load_result(tmp_path)
    (tmp_path / "result.json").write_text('{"files": {"inputs": [[1, 3]]}}', encoding="utf-8")
    with pytest.raises(RecipeError, match="holds no finished run"):
        load_result(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": -1}, {"minutes": float("nan")}, {"labels": 2.0}, {"batch": 0}, {"attempts": 0}, {"probes": -1}, {"samples": 3},
     {"temperature": 0}, {"report_batches": ()}, {"seconds": 0}, {"threads": -2}, {"round_to": 0}, {"seed": -1}],
)  # fmt: skip
def test_settings_are_checked_at_the_door(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        pj.Settings(**wrong)  # type: ignore[arg-type]


def test_a_drop_of_all_there_is_was_meant_otherwise(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"max_drop is 1 of the metric and the original scores .*--max-drop 0\.5 on the command line"
    ):
        pj.compress(network(), task(), budget=Budget(max_drop=1), out=tmp_path / "out", settings=SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_refused_run_leaves_what_was_there_before(tmp_path: Path, finished: pj.Result) -> None:
    shutil.copytree(finished.folder, tmp_path / "out")
    (tmp_path / "out/stages/original.json").unlink()
    with pytest.raises(RecipeError, match="max_drop is 1"):
        pj.compress(network(), task(), budget=Budget(max_drop=1), out=tmp_path / "out", settings=SETTINGS)
    assert (tmp_path / "out/stages/log.json").is_file()


class Shifted(nn.Module):
    """Networks of the same class and weights that compute different things."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.inner, self.shift = network(), shift

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(x) + torch.tensor([self.shift, 0.0])


QUICK = replace(SETTINGS, epochs=0, probes=0, generalization=0, report_batches=(8,), drop_blocks=False)


def test_a_folder_answers_for_no_other_network_and_no_other_labels(tmp_path: Path) -> None:
    def run(shift: float, **changed: Any) -> pj.Result:
        own = task(**changed)
        return pj.compress(Shifted(shift), own, budget=Budget(max_drop=0.4), out=tmp_path / "out", settings=QUICK)

    first = run(0.0)
    with pytest.raises(RecipeError, match="holds a run with another model"):
        run(2.0)
    again = run(0.0, confirm=[(x, 1 - y) for x, y in batches(2, 4)])
    assert again.data["accuracy"]["before"] == pytest.approx(1 - first.data["accuracy"]["before"])


def test_limits_that_cannot_be_met_leave_the_result_of_others(tmp_path: Path, finished: pj.Result) -> None:
    shutil.copytree(finished.folder, tmp_path / "out")
    with pytest.raises(BudgetError, match="the nearest has bytes of"):
        pj.compress(network(), task(), budget=Budget(bytes=100), out=tmp_path / "out", settings=SETTINGS)
    assert load_result(tmp_path / "out").data == finished.data


@pytest.mark.slow
def test_tables_that_err_refuse_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is infeasible is measured: prices from a busy moment are ten times too high."""
    choose = importlib.import_module("penjing.run.choose")
    own = choose.allocate

    def dear(tables: Any, ceilings: Any, **more: Any) -> Any:
        return own(tables, {r: v / 10 for r, v in ceilings.items()}, **more)

    monkeypatch.setattr(choose, "allocate", dear)
    monkeypatch.setattr(choose, "rivals", lambda tables, ceilings, **more: {"least sum": dear(tables, ceilings, **more)})
    whole = pj.export(network().eval(), batches(0)[0][0][:1], tmp_path / "whole.onnx").path.stat().st_size
    result = pj.compress(network(), task(), budget=Budget(max_drop=None, bytes="0.5x"), out=tmp_path / "out", settings=QUICK)
    assert result.data["size"]["bytes"][1] <= 0.5 * whole


@pytest.mark.slow
def test_a_loss_that_takes_no_probabilities_is_trained_with_what_it_takes(tmp_path: Path) -> None:
    loss = nn.CrossEntropyLoss(ignore_index=255)
    own = replace(task(), loss=loss)
    settings = replace(QUICK, epochs=1)
    with pytest.warns(UserWarning, match="does not take probabilities of classes"):
        result = pj.compress(network(), own, budget=Budget(max_drop=None, macs=0.5), out=tmp_path / "out", settings=settings)
    assert result.data["training"]


@pytest.mark.slow
def test_a_candidate_that_the_metric_gives_no_number_for_is_left(tmp_path: Path) -> None:
    def undefined(run: Run, split: Batches) -> Score:
        score = exactness(run, split)
        return score if score.value == 1 else Score(math.nan, score.samples, score.per_sample)

    result = pj.compress(
        network(), replace(task(), metric=undefined), budget=Budget(max_drop=0.1), out=tmp_path / "out", settings=QUICK
    )
    assert result.data["unchanged"]
    assert "the metric gives no number" in [c["note"] for c in result.data["candidates"]]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("settings", [{"epochs": 0}, {"epochs": 1, "labels": 0.0}])
def test_without_training_or_with_the_original_alone_no_labels_are_needed(settings: dict[str, Any], tmp_path: Path) -> None:
    own = task(train=[(x, None) for x, _ in batches(0)])
    result = pj.compress(
        network(), own, budget=Budget(max_drop=None, macs=0.5), out=tmp_path, settings=replace(QUICK, **settings)
    )
    assert bool(result.data["training"]) == bool(settings["epochs"])


def test_without_labels_the_search_split_tells_whether_outputs_are_classes(tmp_path: Path) -> None:
    """Values of logits and their temperature are two things: ``temperature`` must count where there are classes."""

    def loss(settings: pj.Settings, **changed: Any) -> str:
        net = network()
        job = Job(net, task(**changed), Budget(), "onnxruntime", tmp_path / "out", settings, silent)
        found = repr(training._loss(job))
        assert net.training and not net[1].num_batches_tracked
        return found

    bare = [(x, None) for x, _ in batches(0)]
    without = replace(QUICK, epochs=1, labels=0.0, temperature=3.0)
    assert "kl" in loss(without, train=bare).lower() and "3.0" in loss(without, train=bare)
    near = [(x, torch.zeros(16, 2)) for x, _ in batches(1)]
    assert "mse" in loss(without, train=bare, search=near, confirm=near, metric=_nearness).lower()
    assert "Imitate" in loss(replace(QUICK, epochs=1))


@pytest.mark.slow
def test_a_candidate_that_gives_no_numbers_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the metric of the package, whose complaint is no reason to stop either."""
    made = candidates.Maker.artifact

    class Nothing:
        def __init__(self, artifact: pj.Artifact) -> None:
            self.artifact = artifact

        def load(self, *given: Any) -> Any:
            run = self.artifact.load(*given)
            return lambda *inputs: run(*inputs) * math.nan

        def __getattr__(self, name: str) -> Any:
            return getattr(self.artifact, name)

    monkeypatch.setattr(candidates.Maker, "artifact", lambda *given: Nothing(made(*given)))
    result = pj.compress(network(), task(), budget=Budget(max_drop=0.1), out=tmp_path / "out", settings=QUICK)
    assert len(result.data["candidates"]) == 3


@pytest.mark.slow
def test_training_under_another_budget_is_not_told_as_this_ones(tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=2, attempts=1)
    told = []
    for share in (0.9, 0.6):
        budget = Budget(max_drop=None, macs=share)
        told.append(pj.compress(network(), task(), budget=budget, out=tmp_path / "out", settings=settings).data)
    for data in told:
        epochs = [(row["key"], row["epoch"]) for row in data["training"]]
        assert len(epochs) == len(set(epochs)) > 0
    one, other = ({row["key"] for row in data["training"]} for data in told)
    assert one.isdisjoint(other)
    assert all(any(c["minutes"] for c in data["candidates"]) for data in told)


class Looped(nn.Module):
    """Reads its samples one by one, as many as it was read with."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.inner(x[i : i + 1]) for i in range(x.shape[0])])


def test_a_network_of_a_fixed_batch_is_judged_at_no_other(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"takes 1 samples at a time, and settings\.batch is 8; give 1"):
        pj.compress(Looped(), task(), out=tmp_path / "out", settings=QUICK)


def _nearness(run: Run, split: Batches) -> Score:
    each = torch.cat([-((run(x) - y) ** 2).mean(1) for x, y in split]).detach().double().numpy()
    return Score(float(each.mean()), len(each), each)


def test_all_chance_follows_from_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(training, "fit", lambda net, _task, **more: told.append(more["settings"].seed) or net)
    loader = torch.utils.data.DataLoader(batches(0, 8), batch_size=None, shuffle=True)  # type: ignore[arg-type]
    firsts = []
    for seed in (0, 0, 7):
        settings = replace(QUICK, epochs=1, seed=seed, training=pj.Training(seed=20))
        job = Job(network(), task(train=loader), Budget(), "onnxruntime", tmp_path / "out", settings, silent)
        crew: Any = SimpleNamespace(job=job)
        training._trained(crew, Start(network()), training.Course("key", "name", 4))
        firsts.append(job.calibration[0])
    assert told == [20, 20, 27]
    assert torch.equal(firsts[0], firsts[1]) and not torch.equal(firsts[0], firsts[2])


def test_what_a_folder_is_known_by_is_the_same_in_every_process_and_another_for_other_things(tmp_path: Path) -> None:
    def known(net: nn.Module, **changed: Any) -> tuple[str, str]:
        job = Job(net, task(**changed), Budget(), "onnxruntime", tmp_path / "out", QUICK, silent)
        return job.identity, job.judges

    class Kept(nn.Module):
        def __init__(self, mean: float) -> None:
            super().__init__()
            self.inner = network()
            self.register_buffer("mean", torch.tensor(mean), persistent=False)

        def forward(self, x: torch.Tensor) -> Any:
            return self.inner(x - self.mean)

    assert known(Kept(0.0)) == known(Kept(0.0)) != known(Kept(1.0))
    plain = [(x, y.numpy()) for x, y in batches(2, 4)]
    other = [(x, y.copy()) for x, y in plain]
    other[-1][1][-1] = 1 - other[-1][1][-1]
    assert known(network(), confirm=plain) == known(network(), confirm=plain) != known(network(), confirm=other)


def test_a_second_process_is_refused_before_it_writes_anything(tmp_path: Path) -> None:
    first, second = (Job(network(), task(), Budget(), t, tmp_path / "out", QUICK, silent) for t in ("onnxruntime", "openvino"))
    with first.claimed():
        mark = (tmp_path / "out/run.json").read_text()
        with pytest.raises(RecipeError, match="another process is at work"), second.claimed():
            pass
        assert (tmp_path / "out/run.json").read_text() == mark
    with pytest.raises(RecipeError, match="holds a run with target"), second.claimed():
        pass
