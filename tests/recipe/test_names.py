from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from penjing.errors import ModelError, PenjingError, RecipeError
from penjing.export import export
from penjing.recipe import found, load_model, load_task, load_weights

MODULE = """
import torch
from torch import nn
import penjing as pj

def build():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))

def broken():
    raise ValueError("no disk")

def number():
    return 3

def task():
    batches = [(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))]
    return pj.Task(train=batches, search=batches, confirm=batches, metric=pj.measure.top1)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_names_lead_to_objects(mine: str) -> None:
    assert isinstance(load_model(f"{mine}:build"), nn.Sequential)
    assert not load_model(f"{mine}:build").training
    assert len(list(load_task(f"{mine}:task").train)) == 1


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("build", "not of the form"),
        ("nowhere_at_all:build", "no module 'nowhere_at_all'"),
        ("{}:bild", "has no 'bild'; did you mean 'build'[?]$"),
        ("{}:network", "has no 'network'; it has broken, build, number, task$"),
        ("{}:broken", "ValueError: no disk"),
        ("{}:number", "gives int"),
        ("{}:task", "gives Task"),
    ],
)
def test_names_that_lead_nowhere_are_told(mine: str, where: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_model(where.format(mine))


@pytest.mark.usefixtures("mine")
def test_a_module_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    (tmp_path / "spoilt.py").write_text("import penjing\n1 / 0\n")
    with pytest.raises(RecipeError, match="importing spoilt fails with ZeroDivisionError"):
        found("spoilt:build", "--model")


def test_a_task_must_be_a_task(mine: str) -> None:
    with pytest.raises(RecipeError, match=r"gives Sequential; give a function that returns a penjing\.Task"):
        load_task(f"{mine}:build")


def test_weights_are_loaded_and_16_bit_ones_widened(mine: str, tmp_path: Path) -> None:
    state = {k: torch.full_like(v, 3) for k, v in load_model(f"{mine}:build").state_dict().items()}
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "w.safetensors")
    model = load_model(f"{mine}:build", tmp_path / "w.safetensors")
    assert model[0].weight.dtype == torch.float32
    assert (model[0].weight == 3).all()


def test_weights_that_do_not_fit_are_told_by_name(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = dict(nn.Sequential(nn.Conv2d(1, 8, 3)).state_dict()) | {"2.weight": torch.zeros(1)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError) as e:
        load_weights(model, tmp_path / "w.safetensors")
    assert "the file lacks 1.weight, 1.bias, 1.running_mean and 2 more" in str(e.value)
    assert "the model lacks 2.weight" in str(e.value)
    assert "0.weight is (8, 1, 3, 3) in the file and (4, 1, 3, 3) in the model" in str(e.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_weights_that_are_not_there_or_not_tensors(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_text("no")
    for path in (tmp_path / "w.safetensors", tmp_path / "none.safetensors"):
        with pytest.raises(PenjingError, match="cannot read tensors"):
            load_weights(nn.Linear(1, 1), path)


def test_an_onnx_file_is_a_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval(), torch.randn(3, 1, 6, 6)
    file = export(net, (x,), tmp_path / "net.onnx", target="onnxruntime").path
    with torch.no_grad():
        torch.testing.assert_close(load_model(str(file))(x), net(x))
    with pytest.raises(RecipeError, match="has its own"):
        load_model(str(file), tmp_path / "weights.safetensors")
    with pytest.raises(PenjingError, match=r"nowhere\.onnx"):
        load_model(str(tmp_path / "nowhere.onnx"))


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("acme/nets.py:Mobile", r"did you mean acme\.nets:Mobile\?"),
        ("nets.py:Mobile", r"did you mean nets:Mobile\?"),
        ("whole.pt", r"a file that torch saved; .*torch\.load\('whole\.pt', weights_only=False\)"),
    ],
)
def test_files_in_the_place_of_names_are_told_how_to_be_named(where: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_model(where)


def test_the_option_that_was_given_is_named() -> None:
    with pytest.raises(RecipeError, match=r"^--student 'nowhere:net'"):
        load_model("nowhere:net", what="--student")
    with pytest.raises(RecipeError, match=r"^--target-data 'nowhere:task'"):
        load_task("nowhere:task", what="--target-data")
