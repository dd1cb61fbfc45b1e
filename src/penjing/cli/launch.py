"""Several processes for one command: `--devices` and `--nodes`."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from penjing import ranks
from penjing.cli.app import errors
from penjing.errors import PenjingError, RecipeError
from penjing.files import write_json
from penjing.measure import cores

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where the launcher looks for what a process says of its end
MISTAKE, SIGNALED = 2, 128  # exit codes: of a user's mistake, and what a signal's number is added to

Devices = Annotated[int, typer.Option(help="Processes on this machine that work together, one a GPU or a share of the cores.")]
Nodes = Annotated[int, typer.Option(help="Machines; run the same command on each, with MASTER_ADDR, MASTER_PORT, NODE_RANK.")]


def together(devices: int, nodes: int) -> None:
    """Go on as one of ``devices * nodes`` processes: start this command again under ``torchrun``, unless it was already.

    Raises:
        RecipeError: A number is below 1, or several nodes are asked for and the environment does not say which is which.
        PenjingError: What a process raised that was started.
    """
    if devices < 1 or nodes < 1:
        raise RecipeError(f"--devices is {devices} and --nodes {nodes}; give at least 1 of each")
    if ranks.launched() != (1, 1):
        ranks.join()
        return
    if devices * nodes > 1:
        _launch([*_torchrun(devices, nodes), *_again()])


def left_to_launcher(message: str) -> bool:
    """Whether the launcher says what stopped this process: once, for all that it stopped alike."""
    if (path := os.environ.get(ERROR_FILE)) is None:
        return False
    write_json(Path(path), {"message": message, "timestamp": int(time.time())})  # as torch's launcher reads it
    return True


def _launch(words: Sequence[str]) -> NoReturn:
    """Run processes until they end, and end as the first one that failed."""
    from torch.distributed import run  # which not every torch has
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # the launcher would tell each of them at length
    try:
        run.main(words)
    except SignalException as e:
        sys.exit(SIGNALED + e.sigval)
    except ChildFailedError as e:
        _, failure = e.get_first_failure()
        if failure.exitcode == MISTAKE:
            raise PenjingError(failure.message) from None
        if failure.exitcode > 0:  # it has told itself
            sys.exit(failure.exitcode)
        errors.print(f"penjing: {failure.message}", markup=False)
        sys.exit(SIGNALED - failure.exitcode)
    finally:
        logging.disable(logging.NOTSET)
    sys.exit()


def _torchrun(devices: int, nodes: int) -> list[str]:
    threads = max(1, cores() // devices)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns that it looked for unused weights and found none
    where = ["--nproc-per-node", str(devices), "--nnodes", str(nodes)]
    if nodes == 1:
        return [*where, "--standalone"]
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if missing:
        raise RecipeError(
            f"--nodes {nodes} needs {', '.join(missing)} in the environment, the same address and port on every machine and "
            "a number of its own, from 0; or start the command with torchrun or srun"
        )
    env = os.environ
    return [*where, "--node-rank", env["NODE_RANK"], "--master-addr", env["MASTER_ADDR"], "--master-port", env["MASTER_PORT"]]


def _again() -> list[str]:
    return ["-m", "penjing", *sys.argv[1:]]
