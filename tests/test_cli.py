import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import penjing as pj
from penjing.cli import compress, demo_budget, demo_settings, demo_task, main
from penjing.cli.app import app
from penjing.files import read_tensors
from penjing.prune.store import load
from penjing.recipe import load_model, load_task, read_recipe
from penjing.task import check_task
from penjing.zoo import resnet20

EXAMPLE = Path(__file__).parent.parent / "examples/own_model.py"
FAST = ["--epochs", "1", "--threads", "1"]
FAST += [
    w for s in ("attempts=1", "samples=4", "probes=1", "generalization=64", "seconds=0.05") for w in ("--set", f"settings.{s}")
]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's example in a folder of its own, trained as the README says."""
    folder = tmp_path_factory.mktemp("mine")
    shutil.copy(EXAMPLE, folder)
    subprocess.run([sys.executable, EXAMPLE.name], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def whole(mine: Path) -> str:
    """Its file, as it is, beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(mine)
        patch.syspath_prepend(str(mine))
        assert penjing("export", "--model", "own_model:build", "--data", "own_model:task", "--out", "whole.onnx") == 0
    return "whole.onnx"


@pytest.fixture
def here(mine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(mine)
    monkeypatch.syspath_prepend(str(mine))
    return mine


def penjing(*words: str) -> int:
    """Run the command line in this process; give its exit code."""
    before, threads = sys.argv, torch.get_num_threads()
    sys.argv = ["penjing", *words]
    try:
        main()
    except SystemExit as e:
        return int(e.code or 0)
    finally:
        sys.argv = before
        torch.set_num_threads(threads)
    return 0


MISTAKEN = """
import numpy as np, torch, penjing as pj, own_model

def task(**changed):
    own = own_model.task()
    return pj.Task(**{"train": own.train, "search": own.search, "confirm": own.confirm, "metric": own.metric} | changed)

def other():
    images = [(torch.zeros(4, 3, 24, 24), torch.zeros(4).long())]
    return task(train=images, search=images, confirm=images)

def bare(): return task(train=[])
def number(): return task(metric=lambda run, batches: 0.5)
def on_outputs(): return task(metric=lambda output, target: (output.argmax(1) == target).float().mean())
def words(): return torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(20, 8))
def short(): return task(metric=lambda run, batches: pj.Score(0.5, 64, np.zeros(3)))
"""

OWN = ["--model", "own_model:build", "--weights", "own.safetensors", "--data", "own_model:task"]


def test_your_own_network_as_in_the_readme(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert penjing("compress", *OWN, *FAST, "--max-drop", "2", "--out", "runs/own") == 0
    told = capsys.readouterr().out
    assert "Holds" in told
    assert "batch 32, openvino" in " ".join(told.split())
    data = json.loads((here / "runs/own/result.json").read_text())
    assert data["verdict"]["holds"]
    assert read_recipe(here / "runs/own/recipe.yaml").budget == pj.Budget(max_drop=0.02)
    assert data["size"]["bytes"][1] < data["size"]["bytes"][0] / 4
    assert penjing("measure", "runs/own/net.onnx", "--data", "own_model:task", "--batch", "1", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    scores = {r["runtime"]: r["value"] for r in rows if r["what"] == "score"}
    assert scores["onnxruntime"] == pytest.approx(data["accuracy"]["after"], abs=0.01)


@pytest.mark.usefixtures("here")
def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert penjing("inspect", *OWN, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(g["name"], g["channels"]) for g in found["groups"]] == [("0.weight", 48), ("3.weight", 96)]
    assert penjing("inspect", *OWN) == 0
    assert "model output" in capsys.readouterr().out
    assert penjing("inspect", "--model", "own_model:build", "--shape", "1,24,24", "--all") == 0
    assert "96 channels of 3.weight\n  cut from 3.weight dim 0, 1 each" in capsys.readouterr().out


UNTRAINED = ["--model", "own_model:build", "--shape", "1,24,24"]


def test_prune(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*UNTRAINED, "--weights", "own.safetensors", "--ratio", "0.5", "--out", "small.safetensors"]
    assert penjing("prune", *words) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("46,659", "error", "small.safetensors"))
    own, x = load_model("own_model:build", here / "own.safetensors"), torch.randn(4, 1, 24, 24)
    back = load(here / "small.safetensors", lambda: load_model("own_model:build"))
    expected = pj.prune(own, x, 0.5)
    with torch.no_grad():
        assert torch.equal(back(x), expected(x))


@pytest.mark.usefixtures("here")
def test_prune_to_a_share_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert penjing("prune", *UNTRAINED, "--macs", "0.3", "--round-to", "1", "--ranking", "global", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    before, after = found["macs"]
    assert 0.25 < after / before <= 0.3
    assert found["parameters"][1] < found["parameters"][0]
    assert found["error"] < 1e-9
    assert (found["refitted"], found["rewritten"], found["out"]) == (False, False, None)
    for multiple, told in (("1", False), ("48", True)):
        assert penjing("prune", *UNTRAINED, "--macs", "0.3", "--round-to", multiple) == 0
        assert ("--round-to 1 comes nearer" in " ".join(capsys.readouterr().out.split())) == told


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_prune_by_what_the_data_says(criterion: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert penjing("prune", *OWN, "--ratio", "0.5", "--criterion", criterion, "--json") == 0
    assert json.loads(capsys.readouterr().out)["error"] < 1e-9


def test_prune_with_a_refit_is_nearer_to_the_original(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.cat([images for images, _ in load_task("own_model:task").search])
    original = load_model("own_model:build", here / "own.safetensors")
    far = {}
    for name, flags in (("cut", []), ("refitted", ["--refit"])):
        assert penjing("prune", *OWN, "--ratio", "0.75", *flags, "--out", f"{name}.safetensors") == 0
        assert ("Before the refit: equal to the original" in " ".join(capsys.readouterr().out.split())) == bool(flags)
        small = load(here / f"{name}.safetensors", lambda: load_model("own_model:build"))
        with torch.no_grad():
            far[name] = float((small(x) - original(x)).square().mean())
    assert far["refitted"] < 0.8 * far["cut"]


def test_what_was_pruned_is_weights_to_every_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [*UNTRAINED, "--weights", "once.safetensors"]
    assert penjing("prune", *UNTRAINED, "--ratio", "0.5", "--out", "once.safetensors") == 0
    assert penjing("prune", *small, "--ratio", "0.5", "--out", "twice.safetensors") == 0
    capsys.readouterr()
    assert penjing("inspect", *small, "--json") == 0
    assert [g["channels"] for g in json.loads(capsys.readouterr().out)["groups"]] == [24, 48]
    twice = load(here / "twice.safetensors", lambda: load_model("own_model:build"))
    assert [twice[0].out_channels, twice[3].out_channels] == [16, 24]  # type: ignore[index]
    assert penjing("export", *OWN, "--weights", "once.safetensors", "--out", "once.onnx") == 0
    assert (here / "once.onnx").stat().st_size < 70_000
    capsys.readouterr()


def test_prune_leaves_whole_what_is_excluded(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert penjing("prune", *UNTRAINED, "--ratio", "0.5", "--exclude", "7.*", "--out", "part.safetensors") == 0
    capsys.readouterr()
    small = load(here / "part.safetensors", lambda: load_model("own_model:build"))
    assert [small[0].out_channels, small[3].out_channels] == [24, 96]  # type: ignore[index]


WRITTEN_IN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 4)
    def forward(self, x):
        return self.b(self.a(x).relu().view(-1, 16, 64).mean(2))
"""


def test_prune_says_that_a_forward_was_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "written_in.py").write_text(WRITTEN_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--model", "written_in:Net", "--shape", "3,8,8", "--ratio", "0.5", "--out", "small.safetensors"]
    assert penjing("prune", *words) == 0
    out, told = capsys.readouterr()
    assert "exported graph" in out
    assert "Warning" not in told
    small = load("small.safetensors", lambda: load_model("written_in:Net"))
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize("flags", [[], ["--int8"]])
def test_export(here: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert penjing("export", *OWN, *flags, "--out", "exported.onnx") == 0
    size = (here / "exported.onnx").stat().st_size
    assert f"{size:,} bytes" in capsys.readouterr().out
    assert (size < 60_000) == bool(flags)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compress", "--model", "no_such:net", "--data", "own_model:task", "--out", "o"], "no module 'no_such'"),
        (["compress", "--model", "own_model:bild", "--data", "own_model:task", "--out", "o"], "did you mean 'build'?"),
        (["compress", *OWN, "--weights", "none.safetensors", "--out", "o"], "none.safetensors"),
        (["compress", *OWN, "--weights", "other.safetensors", "--out", "o"], "the file lacks 0.weight"),
        (["compress", *OWN, "--data", "own_model:build", "--out", "o"], "returns a penjing.Task"),
        (["compress", *OWN], "out is missing; give a new or empty folder"),
        (["compress", "none.yaml"], "cannot read the recipe none.yaml"),
        (["compress", "own_model.py"], "own_model.py, line 6, column 12: this is not YAML"),
        (["compress", *OWN, "--epochs", "-1", "--out", "o"], "epochs is -1"),
        (["compress", *OWN, "--set", "settings.atempts=2", "--out", "o"], "did you mean 'settings.attempts'?"),
        (["compress", *OWN, "--set", "settings.attempts", "--out", "o"], "not of the form key=value"),
        (["compress", *OWN, "--memory", "3ms", "--out", "o"], "0.5x or 2MB"),
        (["compress", *OWN, "--max-drop", "3 miles", "--out", "o"], "'0.5 points' of an accuracy"),
        (["compress", *OWN, "--max-drop", "none", "--out", "o"], "nothing else is limited"),
        (["compress", *OWN, "--latency", "soon", "--out", "o"], "0.25x or 3ms"),
        (["compress", *OWN, "--max-drop", "-1", "--out", "o"], "max_drop"),
        (["compress", *OWN, "--target", "tpu", "--out", "o"], "choose one of"),
        (["compress", *OWN, "--exclude", "nothing.*", "--out", "o"], "fits no parameter"),
        (["prune", *UNTRAINED], "give one of the two"),
        (["prune", *UNTRAINED, "--ratio", "1.5"], "ratio is 1.5"),
        (["prune", *UNTRAINED, "--ratio", "0.5", "--macs", "0.5"], "give one of the two"),
        (["prune", *UNTRAINED, "--macs", "0.0001"], "macs"),
        (["prune", *UNTRAINED, "--ratio", "0.5", "--criterion", "l2norm"], "did you mean 'l2_norm'?"),
        (["prune", *UNTRAINED, "--ratio", "0.5", "--criterion", "taylor"], "no data"),
        (["prune", *UNTRAINED, "--ratio", "0.5", "--ranking", "all"], "ranking is 'all'"),
        (["prune", *UNTRAINED, "--ratio", "0.5", "--exclude", "nothing.*"], "fits no parameter"),
        (["prune", *UNTRAINED, "--ratio", "0.5", "--refit"], "--refit fits layers"),
        (["prune", *UNTRAINED, "--ratio", "0.5", "--refit", "--data", "mistaken:bare"], "task.train is empty"),
        (["prune", "--model", "own_model:build", "--ratio", "0.5"], "give --shape"),
        (["prune", "--model", "own_model:build", "--shape", "1x24", "--ratio", "0.5"], "--shape '1x24' is not understood"),
        (["prune", "--model", "own_model:build", "--shape", "1,0,24", "--ratio", "0.5"], "size below 1"),
        (["prune", "--model", "own_model:build", "--shape", "3,24,24", "--ratio", "0.5"], "inputs of shape"),
        (["inspect", "--model", "own_model:build"], "give --shape"),
        (["prune", "--model", "mistaken:words", "--shape", "5", "--ratio", "0.5"], "floats: Expected tensor"),
        (["inspect", "--model", "mistaken:words", "--shape", "5"], "use --data instead"),
        (["measure", "none.onnx", "--data", "own_model:task"], "is not there"),
        (["report", "."], "holds no finished run"),
        (["frobnicate"], "No such command"),
    ],
)
def test_a_mistake_is_one_clear_line_exit_code_2_and_nothing_written(
    here: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"x": torch.zeros(1)}, here / "other.safetensors")
    (here / "mistaken.py").write_text(MISTAKEN)
    assert penjing(*words) == 2
    out, told = capsys.readouterr()
    assert said in told
    assert "Traceback" not in told + out
    if words[0] != "frobnicate":
        assert len(told.strip().splitlines()) == 1
    assert not (here / "o").exists()


@pytest.mark.parametrize("command", sorted(c.name or "" for c in app.registered_commands))
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert penjing(command, "--help") == 0
    assert f"Example: penjing {command}" in capsys.readouterr().out


def test_the_demo_fits_its_data() -> None:
    task = demo_task()
    assert [len(s.data) for s in (task.train, task.search, task.confirm)] == [4000, 1000, 2000]  # type: ignore[attr-defined]
    assert check_task(task, resnet20())[0].shape == (250, 1, 28, 28)
    assert demo_settings().batch == 32


@pytest.mark.parametrize(
    ("features", "share"), [({"avx2"}, "0.25x"), ({"avx512_vnni"}, "0.18x"), ({"avx512_vnni", "amx_int8"}, "0.1x")]
)
def test_the_demo_asks_for_what_the_processor_can_give(features: set[str], share: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "processor", lambda: ("some", frozenset(features)))
    assert (demo_budget().latency, demo_budget().bytes) == (share, "0.082x")


@pytest.mark.parametrize(
    ("name", "said"), [("number", "returns float"), ("on_outputs", "'argmax'"), ("short", "(3,), float64, for 64 samples")]
)
@pytest.mark.parametrize("command", ["measure", "compress", "quantize", "distill"])
def test_a_metric_that_is_none_is_told_how_one_looks(
    here: Path, whole: str, command: str, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mistaken.py").write_text(MISTAKEN)
    own = ["--model", "own_model:build"]
    words = {
        "measure": [whole],
        "compress": [*own, "--out", "o"],
        "quantize": [*own, "--out", "o"],
        "distill": ["--teacher", own[1], "--width", "0.5", "--out", "o"],
    }
    assert penjing(command, *words[command], "--data", f"mistaken:{name}") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert said in told
    assert "penjing.Score(value, samples, per_sample)" in told
    assert not (here / "o").exists()


@pytest.mark.usefixtures("here")
def test_a_file_is_measured_and_quantized_on_as_many_threads_as_asked(
    whole: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: set[int | None] = set()
    load = pj.Artifact.load

    def noted(self: pj.Artifact, threads: int | None = None, precision: str | None = None) -> object:
        asked.add(threads)
        return load(self, threads, precision)

    own = ["--model", "own_model:build", "--data", "own_model:task"]
    monkeypatch.setattr(pj.Artifact, "load", noted)
    assert penjing("measure", whole, "--data", "own_model:task", "--threads", "2", "--batch", "1") == 0
    assert asked == {2}
    asked.clear()
    assert penjing("quantize", *own, "--max-drop", "100", "--no-placements", "--threads", "2", "--out", "int8.onnx") == 0
    assert asked == {2, None}  # how near the file is to torch is no question of threads
    capsys.readouterr()
    assert penjing("measure", whole, "--data", "own_model:task", "--threads", "0") == 2


def test_data_that_a_file_does_not_take_is_told(here: Path, whole: str, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mistaken.py").write_text(MISTAKEN)
    assert penjing("measure", whole, "--data", "mistaken:other") == 2
    told = capsys.readouterr().err
    assert "whole.onnx does not take what task.confirm yields, inputs of shape [(4, 3, 24, 24)]" in told
    assert "Expected: 1" in told
    assert len(told.strip().splitlines()) == 1


GRADED = """
import numpy as np, penjing as pj, own_model

def margin(run, batches):
    each = np.concatenate([run(x).numpy().max(1) for x, _ in batches])
    return pj.Score(each.mean(), len(each), each)

margin.unit = "dB"

def task():
    own = own_model.task()
    return pj.Task(train=own.train, search=own.search, confirm=own.confirm, metric=margin)
"""


def test_a_metric_that_refuses_gradients_scores_a_module(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "graded.py").write_text(GRADED)
    words = ["--model", "own_model:build", "--weights", "own.safetensors", "--data", "graded:task", "--max-drop", "9dB"]
    assert penjing("quantize", *words, "--no-placements", "--out", "graded.onnx", "--json") == 0
    told = json.loads(capsys.readouterr().out)["score"]
    assert (told["samples"], told["change"].split()[1]) == (512, "dB")


class FourAtATime(nn.Module):
    """A loop over the samples, which a graph can only hold for as many as it was read with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(24 * 24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.layer(x[i].flatten()) for i in range(x.shape[0])])


def test_measure_a_file_of_a_fixed_batch(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = FourAtATime().eval()
    pj.export(net, torch.zeros(4, 1, 24, 24), here / "four.onnx")
    assert penjing("measure", "four.onnx", "--data", "own_model:task", "--threads", "1", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    own = import_module("own_model").task()
    wanted = pj.measure.top1(lambda x: net(x).detach(), own.confirm)
    scores = [r["value"] for r in rows if (r["what"], r["samples"]) == ("score", 512)]
    assert scores == pytest.approx(2 * [wanted.value], abs=0.01)  # OpenVINO computes in bfloat16 where it can
    assert {(r["what"], r["unit"]) for r in rows if r["value"] > 0 and "latency" in r["what"]} == {("latency, batch 4", "ms")}
    assert penjing("measure", "four.onnx", "--data", "own_model:task", "--threads", "1", "--batch", "3") == 2
    assert "takes 4 samples at a time" in capsys.readouterr().err


def test_python_dash_m(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "penjing", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "compress" in done.stdout


QUANTIZE = ["--data", "own_model:task", "--max-drop", "2", "--no-placements"]


def test_quantize_a_network_and_the_same_as_onnx(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ["--model", "own_model:build", "--weights", "own.safetensors"]
    assert penjing("quantize", *made, *QUANTIZE, "--out", "int8.onnx", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {t["candidate"] for t in told["tried"]} >= {"fp32", "the runtime's float", "integers"}
    assert told["score"]["after"] >= told["score"]["before"] - 0.03
    assert (here / "int8.onnx").stat().st_size == told["bytes"]
    assert penjing("export", *made, "--data", "own_model:task", "--out", "float.onnx") == 0
    capsys.readouterr()
    assert penjing("quantize", "float.onnx", *QUANTIZE, "--target", "openvino", "--out", "again.onnx") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "integers" in printed
    assert "points), on 512 confirm samples" in printed


UNLABELLED = """
import torch, penjing as pj, own_model

def task():
    own = own_model.task()
    images = torch.cat([x for x, _ in own.train])
    pairs = torch.utils.data.TensorDataset(images)
    loader = torch.utils.data.DataLoader(pairs, batch_size=64, shuffle=True, collate_fn=bare)
    return pj.Task(train=loader, search=own.search, confirm=own.confirm, metric=own.metric)

def bare(rows):
    return torch.stack([x for x, in rows]), None
"""


def test_a_metric_that_is_no_share_is_asked_for_its_drop(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "graded.py").write_text(GRADED)
    assert penjing("quantize", "--model", "own_model:build", "--data", "graded:task", "--out", "never.onnx") == 2
    assert "give '0.3 units' of it, or 0.3dB" in " ".join(capsys.readouterr().err.split())


def test_what_is_not_trained_needs_no_labels_and_is_the_same_twice(here: Path) -> None:
    (here / "unlabelled.py").write_text(UNLABELLED)
    words = ["--model", "own_model:build", "--weights", "own.safetensors", "--data", "unlabelled:task"]
    for name in ("a.onnx", "b.onnx"):
        assert penjing("export", *words, "--int8", "--out", name) == 0
    assert (here / "a.onnx").read_bytes() == (here / "b.onnx").read_bytes()
    assert penjing("quantize", *words, "--max-drop", "5", "--no-placements", "--out", "c.onnx") == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "either an ONNX file or --model"),
        (["absent.onnx"], "absent.onnx"),
        (["own_model.py"], "own_model.py"),
        (["absent.onnx", "--weights", "own.safetensors"], "--weights is for --model"),
        (["--model", "own_model:build", "--weight-bits", "9"], "from 2 to 8"),
        (["--model", "own_model:build", "--max-drop", "1dB"], "the metric is a share, which has no dB"),
        (["--model", "own_model:build", "--max-drop", "some"], "max_drop 'some' is not understood"),
        (["--model", "own_model:build", "--rounding", "up"], "rounding 'up' is not known"),
        (["--model", "own_model:build", "--target", "tpu"], "target 'tpu' is not known"),
    ],
)
def test_mistakes_of_quantize_are_told(words: list[str], told: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert penjing("quantize", *QUANTIZE, *words, "--out", "never.onnx") == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (here / "never.onnx").exists()


DISTILL = ["--data", "own_model:task", "--pretrain-epochs", "2", "--finetune-epochs", "1"]


def test_a_student_is_made_of_the_teacher_that_was_trained_and_its_file_is_named(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the file of a student of a pruned teacher is cut as both plans say."""
    words = ["--data", "own_model:task", "--pretrain-epochs", "1", "--finetune-epochs", "0", "--lr", "0.00001"]
    begun = ["distill", "--teacher", "own_model:build", "--width", "0.5", *words, "--out", "runs/new"]
    assert penjing(*begun, "--teacher-epochs", "3") == 0
    assert "runs/new/distilled.safetensors" in capsys.readouterr().out
    whole, _ = read_tensors(here / "runs/new/teacher.safetensors")
    small = load(here / "runs/new/distilled.safetensors", lambda: load_model("own_model:build"))
    name, weight = next((n, p) for n, p in small.named_parameters() if p.ndim == 4)
    ours = weight.detach().flatten(1)
    apart = torch.cdist(ours, whole[name].flatten(1)).min(1).values
    assert apart.max() < 0.01 * ours.norm(dim=1).mean()
    pruned = ["--model", "own_model:build", "--weights", "own.safetensors", "--data", "own_model:task"]
    assert penjing("prune", *pruned, "--ratio", "0.5", "--out", "half.safetensors") == 0
    other = ["distill", "--teacher", "own_model:build", "--weights", "half.safetensors", "--width", "0.5", *words]
    assert penjing(*other, "--out", "runs/quarter") == 0
    load(here / "runs/quarter/distilled.safetensors", lambda: load_model("own_model:build"))
    given = ["distill", "--teacher", "own_model:build", "--student", "own_model:build", *words, "--out", "runs/given"]
    capsys.readouterr()
    assert penjing(*given) == 0
    assert "runs/given/pretrained.safetensors" in capsys.readouterr().out


def test_a_network_teaches_one_of_half_its_width(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", "--teacher", "own_model:build", "--weights", "own.safetensors", "--width", "0.5", *DISTILL]
    assert penjing(*words, "--out", "runs/half") == 0
    told = capsys.readouterr().out
    assert "of the teacher's" in told
    small = load(here / "runs/half/distilled.safetensors", lambda: load_model("own_model:build"))
    assert [tuple(p.shape[:2]) for p in small.parameters() if p.ndim == 4] == [(24, 1), (48, 24)]
    steps = json.loads((here / "runs/half/distill.json").read_text())
    assert pj.measure.top1(small, load_task("own_model:task").confirm).value == pytest.approx(steps[2]["score"])
    assert steps[2]["score"] > 0.5  # a third by chance
    assert penjing(*words, "--out", "runs/half", "--json") == 0
    assert json.loads(capsys.readouterr().out) == steps
    assert penjing(*words, "--out", "runs/half", "--seed", "1") == 2
    assert "belongs to another run" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--student"),
        (["--student", "own_model:build", "--width", "0.5"], "--student"),
        (["--width", "1.5"], "student.width is 1.5"),
        (["--student", "own_model:build", "--fresh"], "--fresh is for a student that is made from its teacher"),
        (["--student", "own_model:build", "--loss", "kll"], "did you mean 'kl'"),
        (["--student", "own_model:build", "--loss", "kl:heat=2"], "temperature"),
        (["--student", "own_model:build", "--loss", "kl:temperature=0"], "temperature is 0"),
        (["--student", "own_model:build", "--loss", "kl:temperature"], "kl:temperature=2"),
        (["--student", "own_model:build", "--devices", "0"], "--devices is 0"),
        (["--student", "own_model:build", "--nodes", "2"], "MASTER_ADDR"),
    ],
)
def test_mistakes_in_distilling(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert penjing("distill", "--teacher", "own_model:build", *words, *DISTILL, "--out", "runs/wrong") == 2
    assert said in capsys.readouterr().err.replace("\n", "")


@pytest.mark.usefixtures("here")
def test_a_loss_that_is_not_known_is_told_before_a_student_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "distill",
        "--teacher",
        "own_model:build",
        "--student",
        "no_such:net",
        "--loss",
        "kk",
        *DISTILL,
        "--out",
        "runs/wrong",
    ]
    assert penjing(*words) == 2
    assert "loss 'kk' is not known" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_distil_as_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "distill", "--teacher", "own_model:build", "--weights", "own.safetensors", "--student", "own_model:build",
        *DISTILL, "--lr", "0.005", "--json",
    ]  # fmt: skip
    assert penjing(*words, "--out", "runs/alone") == 0
    alone = capsys.readouterr().out
    run = [sys.executable, "-m", "penjing", *words, "--devices", "2", "--out", "runs/together"]
    done = subprocess.run(run, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # Told once, not once a process.
    scores = [[e["loss"] for step in json.loads(told) for e in step["epochs"]] for told in (alone, done.stdout)]
    assert scores[1] == pytest.approx(scores[0], rel=0.02)  # in bfloat16
    assert len(scores[0]) == 3


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("older", "warned"), [(False, True), (True, False)])
def test_a_file_whose_sums_overflow_here_is_told(
    older: bool, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 8-bit weights, made on another processor; weights of 7 bits are right everywhere."""
    monkeypatch.setattr("penjing.quant.targets.overflows", lambda: older)
    made = ["--model", "own_model:build", "--weights", "own.safetensors", "--data", "own_model:task"]
    assert penjing("export", *made, "--int8", "--out", "made.onnx") == 0
    assert ("weights have 7 bits" in capsys.readouterr().out) == older
    monkeypatch.setattr("penjing.cli.files.overflows", lambda: True)
    assert penjing("measure", "made.onnx", "--data", "own_model:task", "--threads", "1", "--batch", "1") == 0
    assert ("has no VNNI" in " ".join(capsys.readouterr().err.split())) == warned
