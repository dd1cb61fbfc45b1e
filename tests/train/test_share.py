"""One network on two processes: the same as on one, batch by batch."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from penjing.errors import DataError, ModelError
from penjing.train.portion import Portion
from penjing.train.share import Shared, bounds, part, share_statistics

ROOT = Path(__file__).parents[2]


@given(st.integers(0, 40), st.integers(1, 8))
def test_the_parts_make_up_the_batch(samples: int, world: int) -> None:
    parts = [bounds(samples, rank, world) for rank in range(world)]
    if samples < world:
        assert parts == [(0, samples, 1.0)] * world
        return
    assert [low for low, _, _ in parts[1:]] == [high for _, high, _ in parts[:-1]]
    assert (parts[0][0], parts[-1][1]) == (0, samples)
    # The mean over ranks of weighted means of parts is the mean over the batch.
    assert sum(weight for _, _, weight in parts) == pytest.approx(world)
    assert all(weight == pytest.approx((high - low) * world / samples) for low, high, weight in parts)


def test_a_part_is_cut_from_every_tensor_that_is_batched() -> None:
    x, whole = torch.arange(10).reshape(5, 2), torch.arange(3)
    mine, weight = part(((x, {"y": x + 1}), whole), 1, 2)
    assert torch.equal(mine[0][0], x[2:])
    assert torch.equal(mine[0][1]["y"], x[2:] + 1)
    assert mine[1] is whole
    assert weight == pytest.approx(6 / 5)


@pytest.mark.parametrize(
    "target",
    [
        [torch.zeros(n, 4) for n in (1, 8, 0, 3, 8, 2, 1, 5)],
        [{"boxes": torch.zeros(3, 4), "name": str(n)} for n in range(8)],
        tuple("abcdefgh"),
    ],
)
def test_a_part_is_cut_from_lists_of_something_of_each_sample(target: Any) -> None:
    (x, mine), _ = part((torch.zeros(8, 2), target), 1, 2)
    assert (len(x), len(mine)) == (4, 4)
    assert all(a is b for a, b in zip(mine, target[4:], strict=True))
    (_, (y, both)), _ = part((torch.zeros(2, 2), (torch.arange(2), {"mask": torch.arange(2)})), 1, 2)
    assert y.tolist() == both["mask"].tolist() == [1]  # control: a tuple as long as the batch, of tensors that are batched


def test_a_norm_that_is_shared_already_is_refused() -> None:
    with pytest.raises(ModelError, match="SyncBatchNorm"):
        share_statistics(nn.Sequential(nn.SyncBatchNorm(3)))


def test_a_loader_that_is_shared_already_is_refused() -> None:
    data = TensorDataset(torch.zeros(8, 1))
    sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=2, rank=0)
    with pytest.raises(DataError, match="DistributedSampler"):
        Shared(DataLoader(data, batch_size=2, sampler=sampler))


TRAINED = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from torch import nn
import penjing as pj
from penjing import ranks
from penjing.data import augmentation
from tests.train.test_fit import SETTINGS, batches, network, shuffling, task

def top1(run, batches):
    right = torch.cat([run(x).argmax(1) == y for x, y in batches])
    return pj.Score(right.float().mean().item(), len(right), right.numpy())

def run(kind, out):
    net, teacher = network(), network()
    net[3].p = 0.0  # which chances dropout draws depends on the process
    train = {"loader": shuffling, "list": batches, "odd": lambda: [(x[:7], y[:7]) for x, y in batches()]}[kind]()
    loss = pj.distill.weighted((1.0, pj.distill.kl()), (0.1, pj.distill.hint("4", "4")))
    settings = replace(SETTINGS, accumulate=2 if kind == "list" else 1, ema=0.5, watch=True, optimizer="adamw", lr=0.01)
    told = []
    own = replace(task(train), search=batches(), metric=top1)
    net = pj.fit(net, own, epochs=3, teacher=teacher, loss=loss, settings=settings, on_epoch=told.append,
        checkpoint=out / kind, logs=out / (kind + "-logs"))
    return [[e.loss, e.metric] for e in told], float(sum(p.detach().double().abs().sum() for p in net.parameters()))

torch.set_num_threads(1)
out = Path(sys.argv[1])
found = {kind: run(kind, out) for kind in ("loader", "list", "odd")}
images = [x for x, _ in batches()] + [torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(9))]
module = pj.quantize(network(), images[0][:1], images)
grids = {name: b.double().sum().item() for name, b in module.named_buffers()}
noise = pj.quant.sensitivity(module, [(x,) for x in images])
found["quantized"] = [{n: grids[n] for n in sorted(grids)}, {n: noise[n] for n in sorted(noise)}]
found["ranks"] = ranks.gathered(ranks.rank()), [list(ranks.own(range(5)))]

# A loss on features alone: what comes behind them is not even decayed.
net, told = network(), []
net[3].p = 0.0
head = [p.detach().clone() for p in net[-1].parameters()]
net = pj.fit(net, task(), epochs=2, teacher=network(), loss=pj.distill.hint("2", "2"), settings=SETTINGS, on_epoch=told.append)
found["features"] = [e.loss for e in told], all(torch.equal(a, b) for a, b in zip(head, net[-1].parameters()))

uneven = [(torch.randn(n, 6), torch.zeros(n).long()) for n in (4, 1)]
try:
    pj.fit(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), task(uneven), epochs=1, settings=SETTINGS)
except pj.errors.DataError as e:
    found["single"] = str(e)

if ranks.is_writer():
    (out / "found.json").write_text(json.dumps(found))
ranks.leave()
left = [name for name in Path("/proc/self/task").glob("*/comm") if "gloo" in name.read_text()]
assert not left  # threads that outlive the group abort the process as it ends, now and then
"""


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """With a shuffled loader, a list, and batches of odd size; norms, a learned projector, a mean, a metric; features alone."""
    found: list[dict[str, Any]] = []
    script = tmp_path / "run.py"
    script.write_text(TRAINED)
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name, how in (("one", []), ("two", together)):
        out = tmp_path / name
        out.mkdir()
        told = subprocess.run([sys.executable, *how, script, out], cwd=ROOT, env=env, capture_output=True, check=False)
        assert told.returncode == 0, told.stderr.decode()[-6000:]
        found.append(json.loads((out / "found.json").read_text()))
        assert sorted(p.name for p in out.iterdir()) == sorted(
            ["found.json", "loader", "list", "odd", "loader-logs", "list-logs", "odd-logs"]
        )
    one, two = found
    for kind in ("loader", "list", "odd"):
        (losses, weights), (others, sums) = one[kind], two[kind]
        assert others == [pytest.approx(epoch, rel=1e-4) for epoch in losses]
        assert sums == pytest.approx(weights, rel=1e-4)
        assert losses[0][0] != pytest.approx(losses[-1][0], rel=1e-2)  # control: something was learned
    for first, second in zip(one["quantized"], two["quantized"], strict=True):
        assert first == pytest.approx(second, rel=1e-5)
    assert one["ranks"] == [[0], [[0, 1, 2, 3, 4]]]
    assert two["ranks"] == [[0, 1], [[0, 2, 4]]]
    assert two["features"][0] == pytest.approx(one["features"][0], rel=1e-4)
    assert one["features"][1] and two["features"][1]
    assert "batch 2 of task.train has a single sample" in one["single"] == two["single"]


def test_a_stream_is_loaded_whole_and_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(torch.arange(20.0).split(1))

    monkeypatch.setattr("penjing.ranks.world", lambda: 2)
    monkeypatch.setattr("penjing.ranks.rank", lambda: 1)
    found = list(Shared(DataLoader(Stream(), batch_size=8)))
    assert [(x.flatten().tolist(), weight, whole) for x, weight, whole in found] == [
        ([4, 5, 6, 7], 1.0, False), ([12, 13, 14, 15], 1.0, False), ([18, 19], 1.0, False),
    ]  # fmt: skip


class Doubled(DataLoader[Any]):
    """With a walk of its own."""

    def __iter__(self) -> Any:
        return (2 * x for (x,) in super().__iter__())


@pytest.mark.parametrize(("loader", "factor"), [(DataLoader, 1), (Doubled, 2)])
def test_a_loader_gives_its_own_batches_and_says_which_every_process_has(
    loader: Any, factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penjing.ranks.world", lambda: 2)
    monkeypatch.setattr("penjing.ranks.rank", lambda: 1)
    shared = Shared(loader(TensorDataset(torch.arange(5.0)), batch_size=4))
    found = [((x if factor == 2 else x[0]).tolist(), weight, whole) for x, weight, whole in shared]
    assert found == [([2.0 * factor, 3.0 * factor], 1.0, False), ([4.0 * factor], 1.0, True)]


class Noise(Dataset[Any]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, _index: int) -> Any:
        return torch.rand(()), random.random(), np.random.random()


@pytest.fixture
def own_children() -> Iterator[None]:
    """Loaders with workers leave a handler of children that end; on pytest's stack for signals it may end the process."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("own_children")
@pytest.mark.parametrize("wrapped", [lambda train: train, lambda train: Portion(train, 1)])
def test_workers_that_stay_draw_at_every_walk_what_the_seed_says(wrapped: Callable[[Any], Any]) -> None:
    loader = DataLoader(Noise(), batch_size=2, num_workers=1, persistent_workers=True)
    shared, found = Shared(wrapped(loader)), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append([x.tolist() for batch, *_ in shared for x in batch])
    assert found[0] == found[1] != found[2]
    assert loader.persistent_workers


def test_a_norm_with_a_forward_of_its_own_is_refused() -> None:
    class Clipped(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).clamp(0, 1)

    with pytest.raises(ModelError, match="a Clipped, a batch norm with a forward of its own"):
        share_statistics(nn.Sequential(Clipped(3)))


THROUGH_API = """
import sys
import penjing as pj
from penjing import ranks
from tests.train.test_fit import SETTINGS, batches, network, task
from dataclasses import replace

def top1(run, batches):
    return pj.measure.top1(run, batches)

own = replace(task(), search=batches(), confirm=batches(), metric=top1)
lessons = pj.Lessons(pretrain_epochs=1, finetune_epochs=1, pretrain=SETTINGS, finetune=SETTINGS)
pj.teach(network(), network(), own, sys.argv[1], lessons=lessons)
if ranks.is_writer():
    print(ranks.world())
ranks.leave()
"""


@pytest.mark.slow
def test_programs_of_ones_own_teach_together(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(THROUGH_API)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, tmp_path / "out"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=False)
    assert told.returncode == 0, told.stderr.decode()[-6000:]
    assert told.stdout.decode().split()[-1] == "2"
