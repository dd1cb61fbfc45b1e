"""Alone, here; together in tests/train/test_share.py."""

import pytest

from penjing import ranks

LAUNCHES = {
    "alone": ({}, (1, 1)),
    "torchrun": ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, (4, 2)),
    "srun": ({"SLURM_PROCID": "3", "SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_JOB_NAME": "train"}, (2, 3)),
    "a shell in a job": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_JOB_NAME": "bash"}, (1, 1)),
}


@pytest.mark.parametrize("how", LAUNCHES)
def test_what_the_launcher_says(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    said, expected = LAUNCHES[how]
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert ranks.launched() == expected


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
