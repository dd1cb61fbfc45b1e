"""Several processes for one command: `--devices` and `--nodes`."""

import os
import sys
from typing import Annotated

import typer

from penjing import ranks
from penjing.errors import RecipeError
from penjing.measure import cores

Devices = Annotated[int, typer.Option(help="Processes on this machine that work together, one a GPU or a share of the cores.")]
Nodes = Annotated[int, typer.Option(help="Machines; run the same command on each, with MASTER_ADDR, MASTER_PORT, NODE_RANK.")]


def together(devices: int, nodes: int) -> None:
    """Go on as one of ``devices * nodes`` processes: start this command again under ``torchrun``, unless it was already.

    Raises:
        RecipeError: A number is below 1, or several nodes are asked for and the environment does not say which is which.
    """
    if devices < 1 or nodes < 1:
        raise RecipeError(f"--devices is {devices} and --nodes {nodes}; give at least 1 of each")
    if ranks.launched() != (1, 1):
        ranks.join()
        return
    if devices * nodes > 1:
        os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *_torchrun(devices, nodes), *_again()])


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
