import copy
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from penjing.distill import hint, kl
from penjing.errors import DataError, ModelError, RecipeError, TrainingError
from penjing.task import Task
from penjing.train import Lessons, Taught, Training, fit, teach
from tests.train.test_fit import SETTINGS, accuracy, batches, network, same, shuffling, task

ROOT = Path(__file__).parents[2]
LESSONS = Lessons(
    teacher_epochs=3, pretrain_epochs=2, finetune_epochs=2, teacher=SETTINGS, pretrain=replace(SETTINGS, seed=1),
    finetune=Training(precision="32-true", lr=0.01), loss=kl(2.0),
)  # fmt: skip


def own() -> Task:
    return replace(task(shuffling()), search=batches(), confirm=batches(), metric=accuracy)


def pupil() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 3))


def run(out: Path, lessons: Lessons = LESSONS, **more: Any) -> Taught:
    return teach(network(), pupil(), own(), out, lessons=lessons, **more)


def test_the_three_steps_are_three_trainings(tmp_path: Path) -> None:
    found = run(tmp_path / "a")
    big = fit(network(), own(), epochs=3, settings=LESSONS.teacher)
    small = fit(pupil(), own(), epochs=2, teacher=big, loss=kl(2.0), settings=LESSONS.pretrain)
    assert same(found.teacher, big)
    assert same(found.student, fit(small, own(), epochs=2, settings=LESSONS.finetune))
    assert [(s.name, len(s.epochs), s.was_there) for s in found.steps] == [
        ("teacher", 3, False), ("pretrained", 2, False), ("student", 2, False),
    ]  # fmt: skip
    assert found.steps[0].score.value == accuracy(big, batches()).value
    told = json.loads((tmp_path / "a" / "distill.json").read_text())
    assert [row["file"] for row in told] == ["teacher.safetensors", "pretrained.safetensors", "student.safetensors"]
    assert told[2]["score"] == found.steps[2].score.value
    assert (tmp_path / "a" / "logs" / "pretrained" / "log.csv").is_file()


def test_a_step_whose_file_is_there_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(tmp_path)
    (tmp_path / "student.safetensors").unlink()
    (tmp_path / "student-checkpoint.safetensors").unlink()
    trained: list[int] = []
    original = fit

    def counted(*args: Any, **more: Any) -> nn.Module:
        trained.append(more["epochs"])
        return original(*args, **more)

    monkeypatch.setattr(sys.modules["penjing.train.teach"], "fit", counted)
    said: list[str] = []
    found = run(tmp_path, say=said.append)
    assert trained == [2]
    assert same(found.student, expected.student)
    assert [s.was_there for s in found.steps] == [True, True, False]
    assert found.steps[0].epochs == expected.steps[0].epochs
    assert ["is there" in words for words in said] == [True, True, False]


def test_a_teacher_that_is_trained_is_left_alone(tmp_path: Path) -> None:
    found = run(tmp_path, replace(LESSONS, teacher_epochs=0, finetune_epochs=0))
    assert same(found.teacher, network().eval())
    assert [len(s.epochs) for s in found.steps] == [0, 2, 0]
    assert not (tmp_path / "teacher.safetensors").exists()


def test_the_target_data_are_for_the_last_step_alone(tmp_path: Path) -> None:
    class Counted(list[Any]):
        walks = 0

        def __iter__(self) -> Any:
            self.walks += 1
            return super().__iter__()

    first, second = Counted(batches()), Counted(batches())
    source, target = replace(own(), train=first), replace(own(), train=second)
    teach(network(), pupil(), source, tmp_path, target=target, lessons=LESSONS)
    assert first.walks >= 5
    assert 2 <= second.walks <= 7  # of some only the first batch is taken


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from penjing.train import fit as _  # loads the module
from tests.train import test_teach

def progress(label, total):
    from contextlib import contextmanager
    @contextmanager
    def counted():
        def advance(note):
            global steps
            steps += 1
            if steps == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
        yield advance
    return counted()

steps = 0
torch.set_num_threads(1)
test_teach.run(Path(sys.argv[1]), progress=progress)
"""


def test_a_run_that_is_killed_in_two_steps_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    for at in (13, 8):  # of 9 + 6 + 6 batches: in the second step; then, its first epoch taken up, in the third
        words = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(at)]
        killed = subprocess.run(words, cwd=ROOT, capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "killed" / "pretrained.safetensors").is_file()
    assert not (tmp_path / "killed" / "student.safetensors").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert same(run(tmp_path / "killed").student, run(tmp_path / "whole").student)
    torch.set_num_threads(threads)


def test_what_belongs_to_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    content = (tmp_path / "student.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=r"pretrained\.safetensors belongs to another run"):
        run(tmp_path, replace(LESSONS, loss=kl(3.0)))
    assert (tmp_path / "student.safetensors").read_bytes() == content


def test_mistakes_show_before_anything_is_trained(tmp_path: Path) -> None:
    four = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 4))
    with pytest.raises(ModelError, match="outputs of shape"):
        teach(network(), four, own(), tmp_path / "a", lessons=replace(LESSONS, teacher_epochs=0))
    with pytest.raises(ModelError, match="no module 'nowhere'"):
        run(tmp_path / "b", replace(LESSONS, teacher_epochs=0, loss=hint("nowhere", "4")))
    with pytest.raises(DataError, match="empty"):
        teach(network(), pupil(), replace(own(), train=[]), tmp_path / "c", lessons=LESSONS)
    with pytest.raises(RecipeError, match="teacher_epochs"):
        Lessons(teacher_epochs=-1)
    with pytest.raises(RecipeError, match="no epochs"):
        Lessons(pretrain_epochs=0, finetune_epochs=0)


def test_a_student_that_is_drawn_anew_goes_on_with_what_is_there(tmp_path: Path) -> None:
    expected = run(tmp_path)
    (tmp_path / "student.safetensors").unlink()
    torch.manual_seed(99)
    other = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 3))
    assert same(teach(network(), other, own(), tmp_path, lessons=LESSONS).student, expected.student)


def test_a_student_can_be_made_of_the_trained_teacher(tmp_path: Path) -> None:
    made: list[nn.Module] = []

    def of(big: nn.Module) -> nn.Module:
        made.append(copy.deepcopy(big))
        return pupil()

    found = teach(network(), of, own(), tmp_path / "a", lessons=LESSONS)
    assert [same(net, network()) for net in made] == [True, False]
    assert same(made[1], found.teacher)
    again = teach(network(), of, own(), tmp_path / "a", lessons=LESSONS)
    assert same(again.student, found.student) and same(made[3], found.teacher)
    assert len(made) == 4
    teach(found.teacher, of, own(), tmp_path / "b", lessons=replace(LESSONS, teacher_epochs=0))
    assert len(made) == 5


def test_other_data_are_another_run(tmp_path: Path) -> None:
    run(tmp_path)
    images, labels = [(x + 1, y) for x, y in batches()], [(x, 1 - y.clamp(max=1)) for x, y in batches()]
    for changed in ({"search": images}, {"train": images}, {"train": labels}):
        other = replace(own(), **changed)  # type: ignore[arg-type]
        with pytest.raises(TrainingError, match="belongs to another run"):
            teach(network(), pupil(), other, tmp_path, lessons=LESSONS)
        with pytest.raises(TrainingError, match="belongs to another run"):
            run(tmp_path, target=other)


def test_the_arguments_are_left_alone(tmp_path: Path) -> None:
    nets = network().train(), pupil().train()
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets]
    for _ in range(2):  # the second time from the files
        teach(*nets, own(), tmp_path, lessons=LESSONS)
        assert all(net.training for net in nets)
        assert all(torch.equal(v, b[k]) for net, b in zip(nets, before, strict=True) for k, v in net.state_dict().items())
