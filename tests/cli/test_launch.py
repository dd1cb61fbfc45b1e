"""Several processes for one command, and commands that are stopped."""

from pathlib import Path
from typing import NoReturn

import pytest
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from penjing import cli
from penjing.cli.launch import ERROR_FILE, left_to_launcher
from tests.test_cli import penjing


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the launcher sets where nobody did."""
    for name in ("OMP_NUM_THREADS", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, "1")


@pytest.mark.parametrize(
    ("exitcode", "code", "said"),
    [(2, 2, "penjing: the folder is full\n"), (3, 3, ""), (-9, 137, "penjing: Signal 9 (SIGKILL) received by PID 99\n")],
)
def test_what_stops_one_of_several_processes_is_said_once_and_ends_the_command(
    exitcode: int, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(words: list[str]) -> NoReturn:
        assert words[:2] == ["--nproc-per-node", "2"]
        file = tmp_path / "error.json"
        if exitcode == 2:
            with monkeypatch.context() as process:
                process.setenv(ERROR_FILE, str(file))
                assert left_to_launcher("the folder is full")
        raise ChildFailedError("penjing", {1: ProcessFailure(1, 99, exitcode, str(file))})

    monkeypatch.setattr(run, "main", failing)
    assert penjing("compress", "--devices", "2") == code
    assert capsys.readouterr() == ("", said)
    assert not left_to_launcher("alone")


def test_several_processes_that_are_stopped_end_as_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_words: list[str]) -> NoReturn:
        raise SignalException("stopped", 2)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "main", stopped)
    assert penjing("compress", "--devices", "2") == cli.INTERRUPTED


@pytest.mark.parametrize(("command", "goes_on"), [("compress", True), ("demo", True), ("distill", True), ("prune", False)])
def test_only_what_goes_on_is_said_to(
    command: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> NoReturn:
        raise SystemExit(cli.INTERRUPTED)

    monkeypatch.setattr(cli, "app", stopped)
    assert penjing(command) == cli.INTERRUPTED
    assert capsys.readouterr().err == f"penjing: stopped{'; the same command goes on from here' if goes_on else ''}\n"
