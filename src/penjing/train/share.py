"""The part of a training that falls to one of several processes: of every batch, of the statistics, of the metric.

Each process takes its slice of every batch, so that many processes see what one would see with the same loader.
"""

import copy
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from penjing import ranks
from penjing.errors import DataError, ModelError
from penjing.task import Batches, Run


def bounds(samples: int, rank: int, world: int) -> tuple[int, int, float]:
    """Which samples of a batch are a rank's, from and to, and the weight of their mean in the mean over the ranks.

    A batch that is smaller than the number of ranks is taken whole by every one.
    """
    if samples < world:
        return 0, samples, 1.0
    low, high = samples * rank // world, samples * (rank + 1) // world
    return low, high, (high - low) * world / samples


def part(value: Any, rank: int, world: int) -> tuple[Any, float]:
    """This rank's samples of a batch (any tree of tensors, batched along dimension 0, or lists by sample) and their weight."""
    samples = _samples(value)
    low, high, weight = bounds(samples, rank, world)

    def mine(leaf: Any) -> Any:
        return leaf[low:high] if _batched(leaf, samples) or by_sample(leaf, samples) else leaf

    return tree_map(mine, value, is_leaf=lambda node: node is not value and by_sample(node, samples)), weight


class Shared:
    """Batches of ``train`` as one process sees them: ``(batch, weight, whole)``, ``whole`` where every process has all of it.

    A ``DataLoader`` over a data set with numbered samples loads this process's samples alone; of anything else the whole
    batch is loaded and cut.

    Raises:
        DataError: The loader cuts its batches for several processes already.
    """

    def __init__(self, train: Batches) -> None:
        self.rank, self.world = ranks.rank(), ranks.world()
        self.train, self.sampler = with_new_workers(train), None
        if isinstance(getattr(train, "sampler", None), DistributedSampler):
            raise DataError(
                "task.train has a DistributedSampler, and fit shares every batch between the processes itself; give the loader "
                "without it, with the batch size of all processes together"
            )
        if self.world > 1 and _is_numbered(train):
            self.sampler = _PartSampler(train.batch_sampler, self.rank, self.world)
            self.train = _same_loader(train, self.sampler)

    def __iter__(self) -> Iterator[tuple[Any, float, bool]]:
        if self.sampler is not None:
            self.sampler.shares.clear()
            for batch in self.train:
                yield batch, *self.sampler.shares.popleft()
        elif self.world > 1:
            for batch in self.train:
                yield *part(batch, self.rank, self.world), _samples(batch) < self.world
        else:
            for batch in self.train:
                yield batch, 1.0, False


def _is_numbered(train: Batches) -> TypeGuard["DataLoader[Any]"]:
    """Whether samples can be asked for by their numbers; of a stream they cannot, whatever sampler torch gives its loader.

    Nor of a loader that does something of its own to the batches.
    """
    if not isinstance(train, DataLoader) or type(train).__iter__ is not DataLoader.__iter__:
        return False
    return train.batch_sampler is not None and not isinstance(train.dataset, IterableDataset)


class _PartSampler:
    """The rank's part of every batch of indices; keeps what ``Shared`` says of each in the order in which they come."""

    def __init__(self, whole: Any, rank: int, world: int) -> None:
        self.whole, self.rank, self.world = whole, rank, world
        self.shares: deque[tuple[float, bool]] = deque()

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[list[Any]]:
        for indices in self.whole:
            low, high, weight = bounds(len(indices), self.rank, self.world)
            self.shares.append((weight, len(indices) < self.world))
            yield indices[low:high]


def _same_loader(loader: "DataLoader[Any]", sampler: Any) -> "DataLoader[Any]":
    kept = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator")
    more = {name: getattr(loader, name) for name in (*kept, "prefetch_factor")}
    return DataLoader(loader.dataset, batch_sampler=sampler, **more)


def with_new_workers(train: Batches) -> Batches:
    """A ``DataLoader`` whose workers stay from walk to walk as one whose workers are new, and seeded anew, at every walk."""
    if not isinstance(train, DataLoader) or not train.persistent_workers:
        return train
    anew = copy.copy(train)
    vars(anew).update(persistent_workers=False, _iterator=None)  # which torch lets nobody set
    return anew


def shared_run(model: Run) -> Run:
    """``model`` as a callable that every process calls with the whole batch: each computes its samples, all get all outputs.

    So any metric is the same number on all ranks, and the same as on one.
    """
    world, rank = ranks.world(), ranks.rank()
    if world == 1:
        return model

    def run(*inputs: Any) -> Any:
        samples = _samples(inputs)
        if samples < world:
            return model(*inputs)
        mine, _ = part(inputs, rank, world)
        found = ranks.gathered(tree_map(lambda t: t.detach().cpu() if isinstance(t, Tensor) else t, model(*mine)))
        flat = [tree_flatten(output) for output in found]
        leaves = [torch.cat(parts) if isinstance(parts[0], Tensor) and parts[0].ndim else parts[0]
                  for parts in zip(*(leaves for leaves, _ in flat), strict=True)]  # fmt: skip
        return tree_unflatten(leaves, flat[0][1])

    return run


def share_statistics(model: nn.Module) -> None:
    """Let batch norms in train mode take their statistics over the samples of all processes, on any device.

    torch's ``SyncBatchNorm`` does so on CUDA alone.

    Raises:
        ModelError: A norm is not one of torch's own.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if isinstance(module, nn.SyncBatchNorm):
            raise ModelError(f"{name} is a SyncBatchNorm; give the network with BatchNorm, which is shared as needed")
        if type(module).forward is not nn.modules.batchnorm._BatchNorm.forward:
            raise ModelError(
                f"{name} is a {type(module).__name__}, a batch norm with a forward of its own, whose statistics cannot be "
                "shared between processes; train it on one, or put what it does besides into a module of its own"
            )
        module.forward = _SharedNorm(module)  # type: ignore[assignment, method-assign]


class _Sum(torch.autograd.Function):
    """The sum over all processes; every process's gradient is the sum of all of theirs."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _sum(x: Tensor) -> Tensor:
    found: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return found


def _summed(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


class _SharedNorm:
    """The forward of a batch norm whose batch lies on several processes, but where this one works apart."""

    def __init__(self, norm: Any) -> None:
        self.norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        norm = self.norm
        if ranks.world() == 1 or not (norm.training or norm.running_mean is None):
            return nn.modules.batchnorm._BatchNorm.forward(norm, x)
        dims, values = [0, *range(2, x.ndim)], x.float()
        count = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float32)
        sums = _sum(torch.cat([values.sum(dims), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        shape = [1, -1, *[1] * (x.ndim - 2)]
        centered = values - mean.view(shape)
        variance = _sum(centered.square().sum(dims)) / total
        if norm.track_running_stats:
            self._follow(mean.detach(), variance.detach(), total)
        y = centered * torch.rsqrt(variance + norm.eps).view(shape)
        if norm.affine:
            y = y * norm.weight.view(shape) + norm.bias.view(shape)
        whole: Tensor = y.to(x.dtype)
        return whole

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        norm = self.norm
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
        norm.running_var.lerp_((variance * total / (total - 1)).to(norm.running_var.dtype), share)


def own_statistics(model: nn.Module) -> None:
    """Undo ``share_statistics``."""
    for module in model.modules():
        if isinstance(vars(module).get("forward"), _SharedNorm):
            del module.forward


def by_sample(value: Any, samples: int) -> bool:
    """Whether something in a batch is a list that holds something of each sample, and not tensors that are batched."""
    if type(value) not in (list, tuple) or len(value) != samples:
        return False
    tensors = [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return not tensors or not all(_batched(t, samples) for t in tensors)


def _batched(value: Any, samples: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == samples


def _samples(value: Any) -> int:
    """The size of the first batched tensor of a tree."""
    return next((t.shape[0] for t in tree_flatten(value)[0] if isinstance(t, Tensor) and t.ndim), 0)
