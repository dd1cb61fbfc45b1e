"""Alone, here; together in tests/train/test_share.py."""

import os

import pytest

from penjing import ranks
from penjing.errors import RecipeError
from penjing.train.state import make_fabric

BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_JOB_NAME": "train"}  # a script's own variables
STEP = {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "3"}
LAUNCHES = {
    "alone": ({}, (1, 1)),
    "torchrun": ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, (4, 2)),
    "srun": ({**BATCH, **STEP, "SLURM_PROCID": "3"}, (2, 3)),
    "srun on a part of a job": ({**BATCH, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}, (2, 1)),
    "fewer tasks than nodes": ({**BATCH, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "3"}, (1, 3)),
    "a script without srun": (BATCH, (1, 1)),
    "a script that says no tasks": ({"SLURM_PROCID": "0", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}, (1, 1)),
    "a shell in a job": ({**BATCH, **STEP, "SLURM_JOB_NAME": "bash"}, (1, 1)),
}


def launch(said: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_"))]:
        monkeypatch.delenv(name)
    for name, value in said.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("how", LAUNCHES)
def test_what_the_launcher_says(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said, expected = LAUNCHES[how]
    launch(said, monkeypatch)
    assert ranks.launched() == expected


def test_processes_that_do_not_know_where_to_meet_say_what_to_export(monkeypatch: pytest.MonkeyPatch) -> None:
    launch({**BATCH, **STEP}, monkeypatch)
    with pytest.raises(
        RecipeError, match=r"srun started 6 processes, .* by MASTER_ADDR and MASTER_PORT; .* export MASTER_ADDR="
    ):
        ranks.join()


def test_a_script_of_a_job_of_several_tasks_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(BATCH, monkeypatch)
    ranks.join()
    assert ranks.world() == make_fabric("32-true").world_size == 1


def test_apart_nobody_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with ranks.apart():
        assert ranks.launched() == (1, 1)
        with ranks.together():
            assert ranks.launched() == (2, 1)
        assert ranks.launched() == (1, 1)
    assert ranks.launched() == (2, 1)


def test_alone_everything_is_ones_own() -> None:
    ranks.join()
    assert (ranks.rank(), ranks.world(), ranks.is_writer()) == (0, 1, True)
    assert list(ranks.own(range(5))) == [0, 1, 2, 3, 4]
    assert ranks.gathered("found") == ["found"]
    assert ranks.mean(0.5) == 0.5
    assert ranks.told("found") == "found"
    ranks.wait()
    ranks.leave()
