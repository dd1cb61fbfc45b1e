import copy
import csv
import math
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from penjing.data import augmentation
from penjing.distill import Ramp, dist, dkd, hint, imitate, kl, weighted, with_labels
from penjing.errors import DataError, ModelError, PenjingError, RecipeError, TrainingError
from penjing.files import read_tensors
from penjing.measure import top1
from penjing.quant import Scheme, quantize
from penjing.quant.learned import learn_steps, trained_steps, weight_grids
from penjing.task import Batches, Score, Task
from penjing.train import Epoch, Training, fit
from penjing.train.freeze import Freezing
from penjing.train.schedules import cosine
from penjing.train.state import Learner

SETTINGS = Training(precision="32-true", lr=0.1)
ROOT = Path(__file__).parents[2]


def data(n: int = 24) -> tuple[Tensor, Tensor]:
    """Images whose class is the channel that is brightest."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (n,), generator=generator)
    return torch.randn(n, 3, 6, 6, generator=generator) + 2 * F.one_hot(y, 3)[:, :, None, None], y


def batches() -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(part.split(8) for part in data()), strict=True))


def shuffling() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data()), batch_size=8, shuffle=True)


def task(train: Batches | None = None, loss: Callable[[Any, Any], Tensor] = F.cross_entropy) -> Task:
    return Task(
        train=batches() if train is None else train,
        search=[],
        confirm=[],
        metric=lambda _run, _batches: Score(0, 0, None),
        loss=loss,
    )


def network() -> nn.Sequential:
    """With all that could make two runs differ: dropout, running statistics, and weights that have a memory format."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(m == n and torch.equal(v, w) for (m, v), (n, w) in pairs)


class Interrupted(Exception):
    """What stops a run from outside."""


def after(epoch: int) -> Callable[[Epoch], None]:
    def stop(e: Epoch) -> None:
        if e.epoch == epoch:
            raise Interrupted

    return stop


def test_the_loss_goes_down_and_the_argument_is_left_alone() -> None:
    model = network().train()
    model[1].eval()
    before = copy.deepcopy(model)
    seen: list[Epoch] = []
    trained = fit(model, task(), epochs=6, settings=SETTINGS, on_epoch=seen.append)
    assert [e.epoch for e in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1].loss < 0.7 * seen[0].loss
    assert not trained.training
    assert not same(trained, model)
    assert same(model, before)
    assert {n: m.training for n, m in model.named_modules()} == {n: m.training for n, m in before.named_modules()}
    assert all(p.grad is None for p in model.parameters())


def test_what_is_handed_back_is_an_ordinary_model() -> None:
    model = network()
    trained = fit(model, task(), epochs=1, settings=SETTINGS)
    assert type(trained) is type(model)
    assert trained.state_dict().keys() == model.state_dict().keys()
    assert all(v.is_contiguous() and v.device.type == "cpu" for v in trained.state_dict().values())
    assert same(copy.deepcopy(trained), trained)


def test_training_draws_nothing_from_the_global_generator() -> None:
    model, before = network(), torch.get_rng_state()
    fit(model, task(shuffling()), epochs=2, settings=SETTINGS)
    assert torch.equal(torch.get_rng_state(), before)


def test_chance_follows_from_the_seed_alone() -> None:
    a = fit(network(), task(shuffling()), epochs=2, settings=SETTINGS)
    model = network()
    torch.rand(5)
    assert same(a, fit(model, task(shuffling()), epochs=2, settings=SETTINGS))
    other = Training(precision="32-true", lr=0.1, seed=1)
    assert not same(a, fit(network(), task(shuffling()), epochs=2, settings=other))


def test_a_teacher_is_followed_and_left_alone() -> None:
    teacher = fit(network(), task(), epochs=12, settings=SETTINGS).train()
    before = copy.deepcopy(teacher)
    seen: list[Epoch] = []
    noise = [(x, torch.zeros(len(x), dtype=torch.int64)) for x, _ in batches()]  # labels that teach nothing
    pupil = fit(network(), task(noise), epochs=12, teacher=teacher, loss=kl(2.0), settings=SETTINGS, on_epoch=seen.append)
    assert seen[-1].loss < 0.7 * seen[0].loss
    assert same(teacher, before)
    assert teacher.training
    x, _ = data()
    assert (pupil(x).argmax(1) == teacher.eval()(x).argmax(1)).float().mean() > 0.8


def test_teacher_and_loss_come_together() -> None:
    for alone in ({"teacher": network()}, {"loss": kl()}):
        with pytest.raises(RecipeError, match="together"):
            fit(network(), task(), epochs=1, **alone)


@pytest.mark.parametrize("train", [batches, shuffling])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path, train: Callable[[], Batches]) -> None:
    whole: list[Epoch] = []
    expected = fit(network(), task(train()), epochs=4, settings=SETTINGS, on_epoch=whole.append)
    checkpoint = tmp_path / "new" / "run.safetensors"
    with pytest.raises(Interrupted):
        fit(network(), task(train()), epochs=4, settings=SETTINGS, checkpoint=checkpoint, on_epoch=after(2))
    rest: list[Epoch] = []
    found = fit(network(), task(train()), epochs=4, settings=SETTINGS, checkpoint=checkpoint, on_epoch=rest.append)
    assert same(found, expected)
    assert [(e.epoch, e.loss, e.lr) for e in rest] == [(e.epoch, e.loss, e.lr) for e in whole]


def test_a_run_with_a_teacher_can_be_interrupted(tmp_path: Path) -> None:
    def run(**more: Any) -> nn.Module:
        torch.manual_seed(2)
        teacher = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 36, 3))
        return fit(network(), task(), epochs=3, teacher=teacher, loss=kl(), settings=SETTINGS, **more)

    with pytest.raises(Interrupted):
        run(checkpoint=tmp_path / "c", on_epoch=after(1))
    assert same(run(checkpoint=tmp_path / "c"), run())


def test_a_loader_with_a_generator_of_its_own_can_be_interrupted(tmp_path: Path) -> None:
    def train() -> Batches:
        return DataLoader(TensorDataset(*data()), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3))

    expected = fit(network(), task(train()), epochs=3, settings=SETTINGS)
    with pytest.raises(Interrupted):
        fit(network(), task(train()), epochs=3, settings=SETTINGS, checkpoint=tmp_path / "c", on_epoch=after(1))
    assert same(fit(network(), task(train()), epochs=3, settings=SETTINGS, checkpoint=tmp_path / "c"), expected)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    def unwalkable(_output: Any, _target: Any) -> Tensor:
        raise AssertionError

    expected = fit(network(), task(), epochs=2, settings=SETTINGS, checkpoint=tmp_path / "c")
    content = (tmp_path / "c").read_bytes()
    assert same(fit(network(), task(loss=unwalkable), epochs=2, settings=SETTINGS, checkpoint=tmp_path / "c"), expected)
    assert (tmp_path / "c").read_bytes() == content


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from torch.nn import functional as F
from penjing import files
from penjing.train import fit
from tests.train.test_fit import SETTINGS, network, shuffling, task

def die(*_): os.kill(os.getpid(), signal.SIGKILL)

steps = 0
def loss(output, target):
    global steps
    steps += 1
    if steps == 5 and sys.argv[2] == "batch": die()
    return F.cross_entropy(output, target)

def half_written(tensors, part, metadata):
    Path(part).write_bytes(b"half")
    die()

def told(epoch):
    if epoch.epoch == 2 and sys.argv[2] == "checkpoint": files.save_file = half_written

torch.set_num_threads(1)
fit(network(), task(shuffling(), loss), epochs=4, settings=SETTINGS, checkpoint=Path(sys.argv[1]), on_epoch=told)
"""


def test_a_run_that_is_killed_twice_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """First within the second epoch, then while the checkpoint of the third is written."""
    path = tmp_path / "run.safetensors"
    for when in ("batch", "checkpoint"):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(path), when], cwd=ROOT, capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        assert path.exists()
    told: list[int] = []
    found = fit(
        network(), task(shuffling()), epochs=4, settings=SETTINGS, checkpoint=path, on_epoch=lambda e: told.append(e.epoch)
    )
    assert told == [1, 2, 3, 4]
    assert same(found, fit(network(), task(shuffling()), epochs=4, settings=SETTINGS))


QAT = Training(precision="bf16-mixed", lr=0.5, scale_lr=0.5, freezing=Freezing(start=0.2, end=0.02, momentum=0.1))


def quantized(how: str | None = "lsq+") -> fx.GraphModule:
    model, (x, _) = network().eval(), data()
    module = quantize(model, x[:2], [x], scheme=Scheme(weight_bits=4, value_bits=4))
    return learn_steps(module, how) if how else module


QAT_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from penjing.distill import kl
from penjing.train import fit
from tests.train.test_fit import QAT, network, quantized, shuffling, task

steps = 0
def die(_loss, _lesson):
    global steps
    steps += 1
    if steps == 8: os.kill(os.getpid(), signal.SIGKILL)

loss = kl()
loss.register_forward_pre_hook(die)

torch.set_num_threads(1)
fit(quantized(), task(shuffling()), epochs=4, teacher=network(), loss=loss, settings=QAT, checkpoint=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_quantization_aware_training_that_is_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """With learned steps and offsets, a teacher, weights frozen on the way, and bfloat16."""

    def run(**more: Any) -> nn.Module:
        return fit(quantized(), task(shuffling()), epochs=4, teacher=network(), loss=kl(), settings=QAT, **more)

    path = tmp_path / "run.safetensors"
    killed = subprocess.run([sys.executable, "-c", QAT_KILLED, str(path)], cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    held, about = read_tensors(path)
    assert len(about["history"]) == 2
    assert any(t.any() for name, t in held.items() if name.startswith("freeze.turns."))
    assert same(run(checkpoint=path), run())
    held, _ = read_tensors(path)
    assert any(t.any() for name, t in held.items() if name.startswith("freeze.frozen."))


def test_learned_steps_have_a_rate_of_their_own_and_no_decay() -> None:
    nothing = task(batches()[:1], lambda output, _target: 0 * output.sum())
    settings = Training(precision="32-true", lr=0.1, momentum=0, weight_decay=0.5, warmup=0, clip=0)
    module = quantized()
    steps = {name for name, p in module.named_parameters() if any(p is s for s in trained_steps(module))}
    idle = fit(module, nothing, epochs=1, settings=settings)
    assert all(torch.equal(idle.get_parameter(name), module.get_parameter(name)) for name in steps)
    assert not torch.equal(idle.get_parameter("0.weight"), module.get_parameter("0.weight"))

    def moved(share: float) -> dict[str, Tensor]:
        once = fit(module, task(batches()[:1]), epochs=1, settings=replace(settings, scale_lr=share))
        return {name: p.detach() - module.get_parameter(name).detach() for name, p in once.named_parameters()}

    whole, half, none = moved(1.0), moved(0.5), moved(0.0)
    for name in whole:
        if name in steps:
            torch.testing.assert_close(half[name], whole[name] / 2, rtol=1e-2, atol=1e-7)
            assert not none[name].any()
        else:  # biases are rounded to multiples of the scales
            torch.testing.assert_close(half[name], whole[name], rtol=1e-6, atol=5e-3 if name.endswith("bias") else 1e-6)
    assert all(whole[name].any() for name in steps if name.endswith(".scale"))


def test_zeros_that_rounding_made_are_no_mask_and_those_that_were_cut_are() -> None:
    module = quantized(None)
    name = "4.weight"
    weight, grid = module.get_parameter(name), weight_grids(module)[name]
    codes = grid.now().encode(weight.detach())
    with torch.no_grad():
        weight.copy_(grid.now().decode(codes.masked_fill(codes.abs() < 2, 0)))
    rounded = weight == 0
    assert 0 < rounded.sum() < rounded.numel()
    trained = fit(module, task(), epochs=1, settings=SETTINGS)
    assert (trained.get_parameter(name)[rounded] != 0).any()
    with torch.no_grad():
        weight.mul_(1.01)  # now off its grid
    trained = fit(module, task(), epochs=1, settings=SETTINGS)
    assert not trained.get_parameter(name)[rounded].any()


class Spoiled:
    """Batches of which one is NaN, in one epoch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.bad, self.epoch, self.epochs = (epoch, batch), 0, list[int]()

    def __len__(self) -> int:
        return 3

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i, (x, y) in enumerate(batches()):
            yield (x * torch.nan if (self.epoch + 1, i + 1) == self.bad else x), y


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    kept: list[bytes] = []
    path = tmp_path / "c"
    with pytest.raises(TrainingError, match="epoch 2, batch 3"):
        fit(
            network(),
            task(Spoiled(2, 3)),
            epochs=4,
            settings=SETTINGS,
            checkpoint=path,
            on_epoch=lambda _: kept.append(path.read_bytes()),
        )
    assert kept == [path.read_bytes()]
    resumed = fit(network(), task(Spoiled(0, 0)), epochs=4, settings=SETTINGS, checkpoint=path)
    assert same(resumed, fit(network(), task(), epochs=4, settings=SETTINGS))


def test_a_loader_is_told_the_epoch() -> None:
    loader = Spoiled(0, 0)
    fit(network(), task(loader), epochs=3, settings=SETTINGS)
    assert loader.epochs == [0, 1, 2]


def test_a_checkpoint_of_another_run_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "c"
    fit(network(), task(), epochs=1, settings=SETTINGS, checkpoint=path)
    content = path.read_bytes()
    fewer = network()
    fewer[0].requires_grad_(False)
    others = [
        (network(), 2, SETTINGS),
        (network(), 1, Training(precision="32-true", lr=0.2)),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 3)), 1, SETTINGS),
        (nn.Sequential(*network()[:-1], nn.Linear(8, 4)), 1, SETTINGS),
        (fewer, 1, SETTINGS),
    ]
    for model, epochs, settings in others:
        with pytest.raises(TrainingError, match="another run"):
            fit(model, task(), epochs=epochs, settings=settings, checkpoint=path)
        assert path.read_bytes() == content


def test_a_checkpoint_that_trains_fewer_is_refused(tmp_path: Path) -> None:
    fewer = network()
    fewer[0].requires_grad_(False)
    fit(fewer, task(), epochs=1, settings=SETTINGS, checkpoint=tmp_path / "c")
    with pytest.raises(TrainingError, match="another run"):
        fit(network(), task(), epochs=1, settings=SETTINGS, checkpoint=tmp_path / "c")


def test_something_else_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"hello")
    with pytest.raises(PenjingError, match="cannot read"):
        fit(network(), task(), epochs=1, settings=SETTINGS, checkpoint=tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"hello"


class Unsized:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(batches())


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*data(), strict=True)


def test_a_loader_without_a_length_is_counted() -> None:
    sized = DataLoader(TensorDataset(*data()), batch_size=8)
    for unsized, counted in ((Unsized(), batches()), (DataLoader(Stream(), batch_size=8), sized)):
        found, expected = (fit(network(), task(train), epochs=2, settings=SETTINGS) for train in (unsized, counted))
        assert same(found, expected)


@pytest.mark.parametrize(
    "train", [[], iter([]), DataLoader(TensorDataset(*data(0)), batch_size=8)], ids=["list", "iterator", "loader"]
)
def test_no_batches_are_refused(train: Any) -> None:
    with pytest.raises(DataError, match=r"task\.train is empty"):
        fit(network(), task(train), epochs=1, settings=SETTINGS)


def test_networks_of_every_rank_are_trained() -> None:
    layers: list[type[nn.Module]] = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
    for rank, layer in enumerate(layers, start=1):
        model = nn.Sequential(layer(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2**rank, 3))
        train = [(torch.randn(6, 2, *[4] * rank), torch.tensor([0, 1, 2] * 2))]
        assert not same(fit(model, task(train), epochs=1, settings=SETTINGS), model)


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"sum": self.a(x) + self.b(y)}

    train = [([torch.randn(5, 3), torch.randn(5, 2)], {"zero": torch.zeros(5, 4)})]
    seen: list[Epoch] = []
    squared = task(train, lambda output, target: F.mse_loss(output["sum"], target["zero"]))
    fit(Two(), squared, epochs=20, settings=SETTINGS, on_epoch=seen.append)
    assert seen[-1].loss < 0.5 * seen[0].loss


def test_frozen_weights_stay_and_only_weights_decay() -> None:
    """With a loss that is always 0, decay is all that happens: a factor of 1 - lr * decay at every step."""
    model = network()
    model[8].requires_grad_(False)
    settings = Training(precision="32-true", lr=0.1, momentum=0, weight_decay=0.5, warmup=0)
    nothing = task(batches()[:1], lambda output, _target: 0 * output.sum())
    trained = fit(model, nothing, epochs=1, settings=settings)
    torch.testing.assert_close(trained[0].weight, model[0].weight * (1 - 0.1 * 0.5))
    assert torch.equal(trained[0].bias, model[0].bias)
    assert torch.equal(trained[1].weight, model[1].weight)
    assert torch.equal(trained[8].weight, model[8].weight)
    assert not trained[8].weight.requires_grad


def test_frozen_norms_keep_their_statistics() -> None:
    model = network()
    model[1].eval().requires_grad_(False)
    trained = fit(model, watched(), epochs=2, settings=replace(SETTINGS, watch=True))  # the metric changes modes in between
    assert torch.equal(trained[1].running_mean, model[1].running_mean)
    assert not torch.equal(trained[0].weight, model[0].weight)
    model[1].bias.requires_grad_(True)
    trained = fit(model, task(), epochs=1, settings=SETTINGS)
    assert not torch.equal(trained[1].running_mean, model[1].running_mean)  # control: not frozen, though in eval mode


@pytest.mark.parametrize(("clip", "expected"), [(0.5, 0.5), (0.0, 1000 * math.sqrt(3))])
def test_the_whole_gradient_is_clipped(clip: float, expected: float) -> None:
    model = nn.Linear(3, 1, bias=False)
    settings = Training(precision="32-true", lr=1, momentum=0, weight_decay=0, warmup=0, clip=clip)
    train = task([(torch.ones(1, 3), None)], lambda output, _target: 1000 * output.sum())
    moved = fit(model, train, epochs=1, settings=settings).weight - model.weight
    assert moved.norm().item() == pytest.approx(expected, rel=1e-4)


def test_progress_counts_every_step_once(tmp_path: Path) -> None:
    notes: list[str] = []
    totals: list[int] = []

    @contextmanager
    def counted(_label: str, total: int) -> Iterator[Callable[[str], None]]:
        totals.append(total)
        yield notes.append

    with pytest.raises(Interrupted):
        fit(network(), task(), epochs=3, settings=SETTINGS, checkpoint=tmp_path / "c", on_epoch=after(2), progress=counted)
    assert (len(notes), totals) == (6, [9])
    notes.clear()
    fit(network(), task(), epochs=3, settings=SETTINGS, checkpoint=tmp_path / "c", progress=counted)
    assert (len(notes), totals) == (9, [9, 9])
    assert "epoch 3/3" in notes[-1]


def test_the_rate_that_is_told_is_that_of_the_schedule() -> None:
    seen: list[Epoch] = []
    fit(network(), task(), epochs=4, settings=SETTINGS, on_epoch=seen.append)
    assert [e.lr for e in seen] == [0.1 * cosine(step, 12, 0.1) for step in (2, 5, 8, 11)]


@pytest.mark.parametrize(
    "setting",
    [
        {"lr": -1},
        {"lr": math.nan},
        {"momentum": 1},
        {"weight_decay": -0.1},
        {"warmup": 1},
        {"clip": -1},
        {"precision": "nonsense"},
        {"scale_lr": -1},
        {"accumulate": 0},
        {"ema": 1},
        {"ema": 0.999, "precision": "bf16-true"},
        {"cutmix": 1.1},
        {"smoothing": 1},
        {"patience": -1},
        {"optimizer": "nonsense"},
        {"schedule": "nonsense"},
        {"keep": "nonsense"},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_named(setting: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(setting))):
        Training(**setting)


@pytest.mark.parametrize("epochs", [0, -1])
def test_no_epochs_are_refused(epochs: int) -> None:
    with pytest.raises(RecipeError, match="epochs is"):
        fit(network(), task(), epochs=epochs)


def test_the_default_precision_trains() -> None:
    seen: list[Epoch] = []
    trained = fit(network(), task(), epochs=4, settings=Training(lr=0.1), on_epoch=seen.append)
    assert seen[-1].loss < seen[0].loss
    assert {v.dtype for v in trained.state_dict().values()} == {torch.float32, torch.int64}


def test_batches_that_can_be_walked_once_are_refused() -> None:
    """Else the epoch would be over before it began, with a loss of 0."""
    with pytest.raises(DataError, match=r"task\.train"):
        fit(network(), task(iter(batches())), epochs=1, settings=SETTINGS)


def test_batches_that_are_accumulated_are_one_large_batch() -> None:
    """With a network whose samples do not meet, four batches of six are one of 24, and a last group may be smaller."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = data(24)
    settings = replace(SETTINGS, precision="64-true", schedule="constant", warmup=0.0)
    small = [(x[i : i + 6].double(), y[i : i + 6]) for i in range(0, 24, 6)]
    large = [(x.double(), y)]
    found = fit(model.double(), task(small), epochs=2, settings=replace(settings, accumulate=4))
    expected = fit(model, task(large), epochs=2, settings=settings)
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    uneven = [(x[:12].double(), y[:12]), (x[12:].double(), y[12:])]
    threes = fit(model, task([*small[:2], *small[2:]]), epochs=1, settings=replace(settings, accumulate=2))
    pairs = fit(model, task(uneven), epochs=1, settings=settings)
    for a, b in zip(threes.parameters(), pairs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_mean_of_the_weights_is_handed_back() -> None:
    """Written out: after step n the mean moves by 1 - min(decay, (1 + n) / (10 + n)); the first step is taken whole."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False)
    train = [(torch.randn(4, 2), torch.randn(4, 1)) for _ in range(5)]
    own = task(train, F.mse_loss)
    after_each: list[Tensor] = []
    for steps in range(1, 6):
        plain = replace(SETTINGS, schedule="constant", warmup=0.0, momentum=0.0)
        after_each.append(fit(model, task(train[:steps], F.mse_loss), epochs=1, settings=plain).weight.detach())
    mean = after_each[0]
    for n, weight in enumerate(after_each[1:], start=1):
        share = min(0.2, (1 + n) / (10 + n))
        mean = share * mean + (1 - share) * weight
    found = fit(model, own, epochs=1, settings=replace(SETTINGS, schedule="constant", warmup=0.0, momentum=0.0, ema=0.2))
    torch.testing.assert_close(found.weight.detach(), mean)


def accuracy(run: Callable[[Tensor], Tensor], split: Batches) -> Score:
    right = torch.cat([run(x).argmax(1) == y for x, y in split])
    return Score(right.float().mean().item(), len(right), right.numpy())


def watched(train: Batches | None = None) -> Task:
    return replace(task(train), search=batches(), metric=accuracy)


EVERYTHING = replace(
    SETTINGS, optimizer="adamw", lr=0.01, schedule="one_cycle", ema=0.9, mixup=0.3, cutmix=0.5, smoothing=0.1, accumulate=2,
    keep="best", precision="bf16-mixed",
)  # fmt: skip


def test_all_settings_together_can_be_interrupted(tmp_path: Path) -> None:
    """AdamW's moments, the mean of the weights, the best epoch, a learned projector, and all chances go on."""

    def run(**more: Any) -> nn.Module:
        torch.manual_seed(5)
        loss = weighted((Ramp(1, 0), kl()), (0.3, hint("4", "4")), (0.2, with_labels(F.cross_entropy)))
        flip = augmentation(["flip", "erase"], (6, 6))
        return fit(
            network(), watched(shuffling()), epochs=4, teacher=network(), loss=loss, settings=EVERYTHING, augment=flip, **more
        )

    expected = run()
    with pytest.raises(Interrupted):
        run(checkpoint=tmp_path / "c", on_epoch=after(2))
    told: list[Epoch] = []
    assert same(run(checkpoint=tmp_path / "c", on_epoch=told.append), expected)
    assert all(e.metric is not None for e in told)


class Remembering(nn.Module):
    """Adds a mean of all it has seen, which its state dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 0.1 * (x.detach().mean((0, 2, 3))[:, None, None] - self.seen)
        return x + self.seen


class Counting(Remembering):
    """With a state that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"count": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_buffers_that_the_state_dict_leaves_out_go_on_too(tmp_path: Path) -> None:
    def run(**more: Any) -> nn.Module:
        settings = replace(SETTINGS, ema=0.9, keep="best")
        net = nn.Sequential(Remembering(), network())
        return fit(net, watched(shuffling()), epochs=4, settings=settings, **more)

    expected = run()
    with pytest.raises(Interrupted):
        run(checkpoint=tmp_path / "c", on_epoch=after(2))
    found = run(checkpoint=tmp_path / "c")
    assert same(found, expected)
    assert torch.equal(found[0].seen, expected[0].seen) and expected[0].seen.any()


def test_a_state_that_is_no_tensor_is_trained_but_not_with_a_checkpoint(tmp_path: Path) -> None:
    net = nn.Sequential(Counting(), network())
    fit(net, watched(), epochs=2, settings=replace(SETTINGS, keep="best"))
    with pytest.raises(ModelError, match=r"0._extra_state in the state of Sequential is dict"):
        fit(net, task(), epochs=2, settings=SETTINGS, checkpoint=tmp_path / "c")
    fit(network(), task(), epochs=1, settings=SETTINGS, teacher=net, loss=kl())


def test_the_best_epoch_is_kept_and_patience_ends() -> None:
    values = iter([0.0, 0.1, 0.5, 0.4, 0.3, 0.9, 0.9])  # the first before anything is trained

    def metric(_run: Any, _split: Any) -> Score:
        return Score(next(values), 1, np.ones(1))

    own = replace(task(), metric=metric, search=batches())
    told: list[Epoch] = []
    fit(network(), own, epochs=6, settings=replace(SETTINGS, keep="best", patience=2), on_epoch=told.append)
    assert [e.metric for e in told] == [0.1, 0.5, 0.4, 0.3]
    nets: list[dict[str, Tensor]] = []

    def looking(run: Any, split: Any) -> Score:
        del split
        nets.append({"y": run(data()[0])})
        return Score([0.0, 0.1, 0.5, 0.4][len(nets) - 1], 1, np.ones(1))

    found = fit(network(), replace(task(), metric=looking, search=batches()), epochs=3, settings=replace(SETTINGS, keep="best"))
    torch.testing.assert_close(found(data()[0]), nets[2]["y"])
    assert not torch.allclose(nets[2]["y"], nets[3]["y"])


def test_a_loss_that_explodes_stops() -> None:
    def loss(output: Tensor, _target: Any) -> Tensor:
        return -(output**2).sum() * 1e3

    with pytest.raises(TrainingError, match="exploded"):
        fit(network(), task(loss=loss), epochs=50, settings=replace(SETTINGS, lr=1.0, clip=0.0))


def test_augmentation_is_seen_by_teacher_and_student_alike() -> None:
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}

    class Looking(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name, self.head = name, nn.Linear(3 * 36, 3)

        def forward(self, x: Tensor) -> Tensor:
            seen[self.name].append(x.detach().clone())
            return self.head(x.flatten(1))

    settings = replace(SETTINGS, mixup=0.4)
    teacher, student = Looking("teacher"), Looking("student")
    fit(student, task(), epochs=1, teacher=teacher, loss=kl(), settings=settings, augment=lambda x: x + torch.rand(()))
    steps = [[x for x in values if len(x) == 8][1:] for values in seen.values()]  # the first is the rehearsal's
    assert len(steps[0]) == len(steps[1]) == 3
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))
    assert all(not torch.allclose(a, x) for a, (x, _) in zip(steps[0], batches(), strict=True))


@pytest.mark.parametrize(
    ("train", "settings", "asked"),
    [
        (batches, SETTINGS, 3),  # a list: once a batch, however many epochs
        (shuffling, SETTINGS, 9),
        (batches, replace(SETTINGS, mixup=0.1), 9),
    ],
)
def test_a_teacher_is_asked_once_of_what_never_changes(
    train: Callable[[], Batches], settings: Training, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    original = Learner.taught

    def counting(self: Learner, inputs: tuple[Tensor, ...]) -> Any:
        nonlocal count
        count += 1
        return original(self, inputs)

    monkeypatch.setattr(Learner, "taught", counting)
    found = fit(network(), task(train()), epochs=3, teacher=network(), loss=kl(), settings=settings)
    assert count == asked
    monkeypatch.setattr("penjing.train.recall.LIMIT", 0)
    assert same(found, fit(network(), task(train()), epochs=3, teacher=network(), loss=kl(), settings=settings))


def test_logs_hold_every_epoch_once(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    with pytest.raises(Interrupted):
        fit(network(), watched(), epochs=4, settings=replace(SETTINGS, watch=True), checkpoint=tmp_path / "c", logs=logs,
            on_epoch=after(2))  # fmt: skip
    told: list[Epoch] = []
    fit(network(), watched(), epochs=4, settings=replace(SETTINGS, watch=True), checkpoint=tmp_path / "c", logs=logs,
        on_epoch=told.append)  # fmt: skip
    with (logs / "log.csv").open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [int(r["epoch"]) for r in rows] == [1, 2, 3, 4]
    assert [(float(r["loss"]), float(r["metric"])) for r in rows] == [(e.loss, e.metric) for e in told]
    assert list(logs.glob("events.out.tfevents*"))


def test_a_teacher_of_other_classes_and_a_module_that_is_not_there_are_named() -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 4))
    with pytest.raises(ModelError, match=r"\(8, 3\).*\(8, 4\)"):
        fit(network(), task(), epochs=1, teacher=other, loss=kl())
    with pytest.raises(ModelError, match="no module 'head'"):
        fit(network(), task(), epochs=1, teacher=network(), loss=hint("head", "4"))


def test_a_checkpoint_of_another_loss_is_refused(tmp_path: Path) -> None:
    def run(loss: Any) -> None:
        fit(network(), task(), epochs=1, teacher=network(), loss=loss, settings=SETTINGS, checkpoint=tmp_path / "c")

    run(kl(2.0))
    with pytest.raises(TrainingError, match="another run, with other loss"):
        run(kl(3.0))


def test_a_teacher_of_several_outputs_per_position_is_followed() -> None:
    """No classes, no labels: maps and numbers in a dict."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.number = nn.Conv2d(3, 2, 3, padding=1), nn.Linear(3 * 36, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"map": self.map(x), "number": self.number(x.flatten(1))}

    torch.manual_seed(0)
    teacher, student, seen = Both(), Both(), list[Epoch]()
    loss = weighted((1.0, imitate()), (0.5, hint("map", "map")))
    unlabeled = task([(x, None) for x, _ in batches()])
    fit(student, unlabeled, epochs=20, teacher=teacher, loss=loss, settings=SETTINGS, on_epoch=seen.append)
    assert seen[-1].loss < 0.1 * seen[0].loss


@pytest.mark.parametrize("loss", [dkd(), imitate(), dist(), kl()])
def test_losses_that_look_at_labels_take_batches_of_any_size(loss: Any) -> None:
    assert fit(network(), task(), epochs=1, teacher=network(), loss=loss, settings=SETTINGS)


class Said(nn.Module):
    """A network whose output has a name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.net(x)}


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("net", [network, Said])
def test_the_metric_sees_what_a_file_would_answer(net: Callable[[], nn.Module], precision: str) -> None:
    kinds: list[Any] = []

    def metric(run: Any, held: Batches) -> Score:
        kinds.append({run(x).dtype for x, _ in held})
        return top1(run, held)

    whole = replace(task(loss=lambda y, t: F.cross_entropy(y["y"] if isinstance(y, dict) else y, t)), search=batches())
    settings = Training(precision=precision, lr=0.1, keep="best")
    trained = fit(net(), replace(whole, metric=metric), epochs=2, settings=settings)
    assert kinds == 3 * [{torch.float64 if precision == "64-true" else torch.float32}]  # once before, to try it
    assert {p.dtype for p in trained.parameters()} == {torch.float32}  # as it came


def test_what_cannot_be_mixed_is_not_mixed_and_says_so() -> None:
    x, y = data()
    seen: list[Any] = []

    def loss(output: Tensor, target: Any) -> Tensor:
        seen.append(target["y"])
        return F.cross_entropy(output, target["y"])

    settings = replace(SETTINGS, mixup=0.5)
    with pytest.warns(UserWarning, match="samples are not mixed, since the targets are neither floats nor class numbers"):
        plain = fit(network(), task([(x, {"y": y})], loss), epochs=1, settings=settings)
    assert torch.equal(seen[-1], y)
    assert same(plain, fit(network(), task([(x, {"y": y})], loss), epochs=1, settings=SETTINGS))
    for boxes in ([{"boxes": torch.rand(3, 4)} for _ in y], [torch.rand(int(n), 4) for n in y]):
        with pytest.warns(UserWarning, match="samples are not mixed, since the targets are neither"):
            fit(network(), task([(x, boxes)], lambda output, _: output.square().mean()), epochs=1, settings=settings)
    ones = F.one_hot(y, 3).float()
    fit(network(), task([(x, {"y": ones})], loss), epochs=1, settings=settings)
    assert ((seen[-1] > 0) & (seen[-1] < 1)).any()  # mixed with the images


@pytest.mark.parametrize("change", [{"mixup": 0.5}, {"cutmix": 1.0}, {"smoothing": 0.1}], ids=str)
@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 50.0, 50.0])),
        lambda output, target: F.cross_entropy(output, target, torch.tensor([1.0, 50.0, 50.0])),
    ],
)
def test_labels_are_not_mixed_where_the_loss_of_probabilities_is_another(change: dict[str, float], loss: Any) -> None:
    own = task(batches()[:1], loss)
    with pytest.warns(UserWarning, match="the loss is .* of class numbers, and .* of the same as probabilities of classes"):
        found = fit(network(), own, epochs=1, settings=replace(SETTINGS, **change))
    assert same(found, fit(network(), own, epochs=1, settings=SETTINGS))
    for like in (nn.CrossEntropyLoss(label_smoothing=0.2), nn.CrossEntropyLoss(reduction="sum")):
        own = task(batches()[:1], like)
        found = fit(network(), own, epochs=1, settings=replace(SETTINGS, **change))
        assert not same(found, fit(network(), own, epochs=1, settings=SETTINGS))


def test_mistakes_that_torch_tells_in_its_own_words_are_told_in_ours() -> None:
    with pytest.raises(ModelError, match="no parameter of Sequential is trained"):
        fit(network().requires_grad_(False), task(), epochs=1, settings=SETTINGS)
    with pytest.raises(RecipeError, match=r"training\.cutmix cuts boxes, and inputs of shape \(4, 6\) have no places"):
        vectors = [(torch.randn(4, 6), torch.zeros(4).long())]
        fit(nn.Linear(6, 3), task(vectors), epochs=1, settings=replace(SETTINGS, cutmix=0.5))
    with pytest.raises(DataError, match=r"batch 2 of task\.train has a single sample"):
        uneven = [(torch.randn(n, 6), torch.zeros(n).long()) for n in (4, 1)]
        fit(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), task(uneven), epochs=1, settings=SETTINGS)
    with pytest.raises(DataError, match=r"task\.train is int"):
        fit(network(), task(3), epochs=1, settings=SETTINGS)  # type: ignore[arg-type]


def test_the_mean_of_the_weights_leaves_whole_numbers_alone() -> None:
    class Ordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()
            self.register_buffer("order", torch.tensor([2, 1, 0]))
            self.register_buffer("table", torch.arange(256))  # of so many some are cut off by any mean that is not exact

        def forward(self, x: Tensor) -> Any:
            return self.inner(x[:, self.order])

    net = fit(Ordered(), task(), epochs=6, settings=replace(SETTINGS, ema=0.9))
    assert net.order.tolist() == [2, 1, 0]
    assert net.table.tolist() == list(range(256))
    small = quantize(network().eval(), data()[0][:1], [data()[0]])
    trained = fit(small, task(), epochs=3, settings=replace(SETTINGS, lr=1e-6, ema=0.999))
    points = {n: t for n, t in small.state_dict().items() if not t.is_floating_point() and "num_batches" not in n}
    assert points
    assert any(t.any() for t in points.values())
    assert all(torch.equal(t, trained.state_dict()[n]) for n, t in points.items())


def test_features_are_compared_in_whole_half_precision() -> None:
    net = fit(network(), task(), epochs=1, teacher=network(), loss=hint("4", "4"), settings=Training(precision="bf16-true"))
    assert all(p.isfinite().all() for p in net.parameters())


class _OwnGenerator(torch.utils.data.Sampler[int]):
    """An order from a generator that only the sampler knows."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(24, generator=self.generator).tolist())

    def __len__(self) -> int:
        return 24


def test_a_run_goes_on_as_it_was_whatever_shuffles(tmp_path: Path) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(*data()), batch_size=8, sampler=_OwnGenerator())

    whole = fit(network(), task(loader()), epochs=3, settings=SETTINGS)
    place = tmp_path / "state"
    with pytest.raises(Interrupted):
        fit(network(), task(loader()), epochs=3, settings=SETTINGS, checkpoint=str(place), on_epoch=after(2))
    again = fit(network(), task(loader()), epochs=3, settings=SETTINGS, checkpoint=place)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_checkpoint_of_other_batches_or_another_teacher_is_refused(tmp_path: Path) -> None:
    place, other = tmp_path / "state", network()
    with torch.no_grad():
        other[0].weight.add_(1)
    with pytest.raises(Interrupted):
        fit(
            network(), task(), epochs=3, settings=SETTINGS, teacher=network(), loss=kl(), checkpoint=place,
            on_epoch=after(1),
        )  # fmt: skip
    with pytest.raises(TrainingError, match="other teacher"):
        fit(network(), task(), epochs=3, settings=SETTINGS, teacher=other, loss=kl(), checkpoint=place)
    halved = [(x[:4], y[:4]) for x, y in batches()] + [(x[4:], y[4:]) for x, y in batches()]
    with pytest.raises(TrainingError, match="other batches"):
        fit(network(), task(halved), epochs=3, settings=SETTINGS, teacher=network(), loss=kl(), checkpoint=place)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: ((x * 9).byte(), y), "network and loss do not take the first batch of task.train"),
        (lambda x, y: (x.double(), y), "network and loss do not take the first batch of task.train"),
        (lambda x, y: (x[0], y), "network and loss do not take the first batch of task.train"),
        (lambda x, y: (x, F.one_hot(y, 3)), "network and loss do not take the first batch of task.train"),
        (lambda x, y: (x, y + 3), "network and loss do not take the first batch of task.train"),
        (lambda x, y: (x, y, y), "a tuple of 3, not an .inputs, target. pair"),
        (lambda x, y: {"x": x, "y": y}, "a dict of 2, not an .inputs, target. pair"),
    ],
)
def test_what_network_and_loss_do_not_take_is_told_at_the_door(change: Callable[..., Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        fit(network(), task([change(*b) for b in batches()]), epochs=1, settings=SETTINGS)


def test_networks_that_cannot_be_trained_are_told_so() -> None:
    with pytest.raises(DataError, match=r"half precision: call model\.float\(\)"):
        fit(network().half(), task(), epochs=1, settings=SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(network().eval(), data()[0][:2])
    with pytest.raises(ModelError, match="scripted or traced"):
        fit(traced, task(), epochs=1, settings=SETTINGS)


def test_what_only_the_training_sees_is_trained() -> None:
    """Augmentation that makes floats, outputs of training alone, losses of mixed labels alone."""
    whole = [((x * 20).byte(), y) for x, y in batches()]
    fit(network(), task(whole), epochs=1, settings=SETTINGS, augment=lambda x: x.float() / 255)

    class Two(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Any:
            self.calls += 1
            y = self.inner(x)
            return (y, y) if self.training else y

    net = Two()
    fit(net, task(loss=lambda o, t: F.cross_entropy(o[0] + o[1], t)), epochs=1, settings=SETTINGS)
    assert net.calls == 0
    own = task(loss=lambda o, t: -(t * o.log_softmax(1)).sum(1).mean())
    fit(network(), own, epochs=1, settings=replace(SETTINGS, smoothing=0.1))


class Noisy(list[Any]):
    """A list whose walks are new every time."""

    def __iter__(self) -> Iterator[Any]:
        return ((x + 0.1 * torch.randn_like(x), y) for x, y in super().__iter__())


class Walked:
    """The same walks, without being a list."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def __len__(self) -> int:
        return len(self.of)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.of)


def test_what_the_teacher_said_is_remembered_of_the_same_images_and_not_spoiled() -> None:
    def losses(train: Any, loss: Any) -> list[float]:
        told: list[Epoch] = []
        settings = replace(SETTINGS, lr=0.01)
        fit(network(), task(train), epochs=3, settings=settings, teacher=network(), loss=loss, on_epoch=told.append)
        return [e.loss for e in told]

    def spoiling(lesson: Any) -> Tensor:
        said = lesson.taught
        said /= 2
        return (lesson.output - said).square().mean()

    assert losses(Noisy(batches()), kl()) == losses(Walked(Noisy(batches())), kl())
    assert losses(batches(), spoiling) == losses(Walked(batches()), spoiling)


def test_an_epoch_whose_metric_is_no_number_is_never_the_best() -> None:
    def nowhere(_run: Any, _split: Any) -> Score:
        return Score(math.nan, 1, np.zeros(1))

    own = replace(task(), search=batches(), metric=nowhere)
    last = fit(network(), own, epochs=3, settings=SETTINGS)
    assert same(fit(network(), own, epochs=3, settings=replace(SETTINGS, keep="best")), last)


def test_any_seed_and_what_a_teacher_does_not_take() -> None:
    fit(network(), task(), epochs=1, settings=replace(SETTINGS, seed=1_700_000_000_000))
    with pytest.raises(DataError, match="do not take the first batch"):
        fit(network(), task([(x[:, :2], y) for x, y in batches()]), epochs=1, settings=SETTINGS, teacher=network(), loss=kl())
    with pytest.raises(RecipeError, match=r"kl\.temperature is 'abc'"):
        kl("abc")  # type: ignore[arg-type]


def test_a_metric_that_is_watched_is_tried_before_anything_is_trained() -> None:
    def broken(_run: Any, _batches: Any) -> Any:
        return 0.5

    trained: list[Any] = []
    with pytest.raises(DataError, match=r"task\.metric returns float"):
        fit(network(), replace(task(), search=batches(), metric=broken), epochs=1, settings=replace(SETTINGS, watch=True),
            on_epoch=trained.append)  # fmt: skip
    assert not trained
    fit(network(), replace(task(), search=batches(), metric=broken), epochs=1, settings=SETTINGS)  # which does not look at it
