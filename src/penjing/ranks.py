"""Processes that work on one thing together (torch.distributed): who am I, how many are we, what have the others found.

Where a program runs alone, there is one rank, 0, and everything here is trivial. ``torchrun`` and SLURM's ``srun`` start the
processes; ``join`` brings them together.
"""

import atexit
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor, distributed

from penjing.errors import RecipeError

Item = TypeVar("Item")
PATIENCE = timedelta(days=7)  # one may measure for hours while others wait; the launcher ends all when one has died
_apart = False


def launched() -> tuple[int, int]:
    """Processes on this node, and nodes, as ``torchrun`` or ``srun`` says; (1, 1) where neither did, or it works apart."""
    if _apart:
        return 1, 1
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    # srun alone says how many tasks a step has; a batch script is number 0 as well. A shell that SLURM gave is one task of a
    # job, but not one of many that srun started.
    if "SLURM_STEP_NUM_TASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
        return max(1, int(os.environ["SLURM_STEP_NUM_TASKS"]) // nodes), nodes
    return 1, 1


def join() -> None:
    """Bring the processes that were started together together; nothing where this one was started alone.

    Raises:
        RecipeError: The environment does not say where they meet.
    """
    devices, nodes = launched()
    if devices * nodes > 1 and not _joined():
        if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise RecipeError(
                f"srun started {devices * nodes} processes, which find each other by {' and '.join(missing)}; before srun, "
                'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29500'
            )
        number = int(os.environ["RANK"] if "RANK" in os.environ else os.environ["SLURM_PROCID"])
        # Read later, its defaults would hold the group, whose threads would then outlive it: one exit in twenty aborted.
        import torch.distributed.nn.functional

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, rank=number, world_size=devices * nodes, timeout=PATIENCE)
        atexit.register(_part)  # of programs that do not leave


def leave() -> None:
    """Part, once all are here: the last call of a program of several processes, else one may end while others still talk."""
    if _joined():
        distributed.barrier()
        _part()


def _part() -> None:
    if _joined():
        distributed.destroy_process_group()


def world() -> int:
    """How many processes work together."""
    return distributed.get_world_size() if _joined() and not _apart else 1


def rank() -> int:
    """The number of this process among those it works with, from 0."""
    return distributed.get_rank() if _joined() and not _apart else 0


@contextmanager
def apart() -> Iterator[None]:
    """Work alone for a while, whatever the others do: one process, and nothing is shared."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


@contextmanager
def together() -> Iterator[None]:
    """Within ``apart``: with the others again."""
    global _apart
    before, _apart = _apart, False
    try:
        yield
    finally:
        _apart = before


def told(value: Item) -> Item:
    """What process 0 gives here; all must call this together."""
    if world() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def is_writer() -> bool:
    """Whether this is the process that writes files and talks."""
    return rank() == 0


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        distributed.barrier()


def own(items: Iterable[Item]) -> Iterator[Item]:
    """Every ``world()``-th item, from number ``rank()`` on: the share of this process."""
    return islice(iter(items), rank(), None, world())


def gathered(value: Item) -> list[Item]:
    """What every process has found, by rank; all must call this together."""
    if world() == 1:
        return [value]
    found: list[Item | None] = [None] * world()
    distributed.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def mean(value: float) -> float:
    """The mean over all processes of a number; all must call this together."""
    if world() == 1:
        return value
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return total.item() / world()


def mean_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace gradients by their means over all processes; what no process has a gradient of stays without."""
    if world() == 1:
        return
    there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
    distributed.all_reduce(there, distributed.ReduceOp.MAX)
    shared = [p for p, some in zip(parameters, there.tolist(), strict=True) if some]
    for kind in dict.fromkeys(p.dtype for p in shared):
        mine = [p for p in shared if p.dtype == kind]
        wide = torch.promote_types(kind, torch.float32)
        # In one message: many small ones would take longer.
        whole = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad.to_dense()).flatten().to(wide) for p in mine])
        distributed.all_reduce(whole)
        for p, mean in zip(mine, (whole / world()).split([p.numel() for p in mine]), strict=True):
            p.grad = torch.empty_like(p).copy_(mean.view_as(p))


def alike(tensors: Iterable[Tensor]) -> None:
    """Give the tensors of every process the values that process 0 has; all must call this together."""
    if world() > 1:
        for t in tensors:
            value = t.detach().flatten().clone()
            distributed.broadcast(value.view(torch.uint8), src=0)  # as bytes: not every backend knows every type
            t.detach().copy_(value.view_as(t))


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
