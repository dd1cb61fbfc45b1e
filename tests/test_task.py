from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from penjing.errors import DataError
from penjing.task import Batches, Run, Score, Task, as_tuple, check_metric, check_order, check_task, first_batch

BATCH = (torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))


def top1(run: Run, batches: Batches) -> Score:
    hits = torch.cat([run(*as_tuple(x)).argmax(1) == y for x, y in batches]).double().numpy()
    return Score(float(hits.mean()), len(hits), hits)


def task(**changes: Any) -> Task:
    return Task(**{"train": [BATCH], "search": [BATCH], "confirm": [BATCH], "metric": top1, **changes})


def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 4))


def test_a_sound_task_gives_the_first_inputs_of_search() -> None:
    x = torch.zeros(2, 3, 8, 8)
    (example,) = check_task(task(search=[(x, torch.tensor([0, 1])), BATCH]), model())
    assert example is x


def test_checking_works_with_a_loader() -> None:
    loader = DataLoader(TensorDataset(*BATCH), batch_size=2)
    assert check_task(task(train=loader, search=loader, confirm=loader), model())[0].shape == (2, 3, 8, 8)


def test_checking_works_with_several_inputs() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x + y).flatten(1)

    batches = [([BATCH[0], BATCH[0]], BATCH[1])]  # a DataLoader's default is lists, not tuples
    assert len(check_task(task(train=batches, search=batches, confirm=batches), Sum())) == 2


def test_checking_leaves_the_model_as_it_was() -> None:
    net = model().train()
    net[1].eval()  # a frozen norm in a model that is being trained
    modes = {name: m.training for name, m in net.named_modules()}
    state = {name: value.clone() for name, value in net.state_dict().items()}
    check_task(task(), net)
    assert {name: m.training for name, m in net.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_a_failed_check_leaves_the_model_as_it_was() -> None:
    net = model().train()
    with pytest.raises(DataError):
        check_task(task(confirm=[(torch.zeros(1, 4, 8, 8), BATCH[1])]), net)
    assert net.training


@pytest.mark.parametrize("split", ["train", "search", "confirm"])
@pytest.mark.parametrize(
    "batches",
    [
        [],
        [BATCH[0]],
        [(*BATCH, BATCH[1])],
        [None],
        [({"x": BATCH[0]}, BATCH[1])],
        [(np.zeros((4, 3, 8, 8)), BATCH[1])],
        [(5, BATCH[1])],
        [(None, BATCH[1])],
        [(torch.zeros(4, 1, 8, 8), BATCH[1])],
        [((BATCH[0], BATCH[0]), BATCH[1])],
        None,
    ],
    ids=["empty", "no target", "three", "none", "dict", "numpy", "number", "no input", "channels", "two inputs", "no loader"],
)
def test_a_split_that_does_not_fit_is_named(split: str, batches: Any) -> None:
    with pytest.raises(DataError, match=rf"task\.{split}"):
        check_task(task(**{split: batches}), model())


def test_the_shape_that_the_model_does_not_take_is_named() -> None:
    with pytest.raises(DataError, match=r"\(4, 1, 8, 8\).*expected input"):
        check_task(task(search=[(torch.zeros(4, 1, 8, 8), BATCH[1])]), model())


@pytest.mark.parametrize("error", [AssertionError(), ValueError(""), KeyError("x"), RuntimeError("first\nsecond")])
def test_whatever_the_model_raises_is_a_data_error(error: Exception) -> None:
    class Picky(nn.Module):
        def forward(self, _x: Tensor) -> Tensor:
            raise error

    with pytest.raises(DataError, match=r"task\.train") as caught:
        check_task(task(), Picky())
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


def raising(error: Exception) -> Callable[[Any, Any], Tensor]:
    def loss(_output: Any, _target: Any) -> Tensor:
        raise error

    return loss


@pytest.mark.parametrize(
    "loss",
    [
        lambda output, target: F.cross_entropy(output[:, :2], target),
        raising(AssertionError()),
        lambda output, _target: output.sum() * torch.nan,
        lambda output, _target: output.sum() / 0,
        lambda _output, _target: 1.0,
        lambda _output, _target: None,
        lambda output, target: F.cross_entropy(output, target, reduction="none"),
    ],
    ids=["classes", "empty message", "nan", "infinite", "number", "none", "one a sample"],
)
def test_a_loss_that_does_not_fit_is_named(loss: Callable[[Any, Any], Any]) -> None:
    with pytest.raises(DataError, match=r"task\.loss"):
        check_task(task(loss=loss), model())


def test_a_loss_that_does_not_take_what_the_model_gives_is_told_what_that_is() -> None:
    class Named(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"classes": x.flatten(1)}

    with pytest.raises(DataError, match="the model gives a dict: give a loss that takes it"):
        check_task(task(), Named())


def test_the_first_batch_is_the_first() -> None:
    inputs, target = first_batch([BATCH, (torch.zeros(1), None)], "train")
    assert inputs is BATCH[0]
    assert target is BATCH[1]


def test_a_list_of_inputs_becomes_a_tuple() -> None:
    inputs, _ = first_batch([([BATCH[0], BATCH[0]], None)], "train")
    assert isinstance(inputs, tuple)
    assert as_tuple(inputs) == inputs
    assert as_tuple(BATCH[0]) == (BATCH[0],)


def test_scores_compare_by_value_and_samples() -> None:
    assert Score(0.5, 2, np.array([0, 1])) == Score(0.5, 2, np.array([1, 0]))
    assert Score(0.5, 2, np.array([0, 1])) != Score(0.5, 4, np.array([0, 1]))


def test_what_a_metric_gives_is_in_numbers_of_python() -> None:
    score = Score(np.float32(0.5), np.int64(2), np.zeros(2))  # type: ignore[arg-type]
    assert (type(score.value), type(score.samples)) == (float, int)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda _run, _batches: 0.5, "returns float; .*Score"),
        (lambda output, target: (output.argmax(1) == target).float().mean(), "AttributeError.*argmax.*metric.run, batches."),
        (lambda _run, _batches: Score(0.5, 64, np.zeros(3)), r"per_sample of shape \(3,\).*for 64 samples"),
        (lambda _run, _batches: Score(0.5, 4, np.zeros((4, 1))), r"per_sample of shape \(4, 1\)"),
        (lambda _run, _batches: Score(np.nan, 4, np.zeros(4)), "NaN"),
        (lambda _run, _batches: Score(0.5, 4, np.full(4, np.inf)), "infinity"),
        (raising(ValueError("my own words\nand more")), "ValueError: my own words; "),
        (raising(DataError("ours")), "^ours$"),
    ],
)
def test_a_metric_that_is_none_is_told_how_one_looks(metric: Any, said: str) -> None:
    net = model().train()
    with pytest.raises(DataError, match=said):
        check_metric(task(metric=metric), net)
    assert net.training
    with pytest.raises(DataError, match=said):
        check_metric(task(metric=metric), lambda x: net(x))


def test_a_metric_sees_what_a_file_would_give() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x.flatten(1)[:, :4] * nn.Parameter(torch.ones(()))}

    def accuracy(run: Run, batches: Batches) -> Score:
        hits = np.concatenate([run(x).numpy().argmax(1) == y.numpy() for x, y in batches])  # refused where gradients flow
        return Score(hits.mean(), len(hits), hits)

    check_metric(task(metric=accuracy), Named())


def test_a_metric_that_one_batch_is_too_small_for_gets_them_all() -> None:
    sizes = []

    def auc(run: Run, batches: Batches) -> Score:
        sizes.append(len(list(batches)))
        labels = torch.cat([y for _, y in batches])
        if len(labels.unique()) < 4:
            raise ValueError("only one class")
        return top1(run, batches)

    check_metric(task(metric=auc, search=[(BATCH[0], torch.zeros(4).long()), BATCH]), model())
    assert sizes == [1, 2]


@pytest.mark.parametrize("split", ["train", "search", "confirm"])
def test_what_can_be_walked_only_once_is_refused(split: str) -> None:
    with pytest.raises(DataError, match=rf"task\.{split} is a generator.*only once; give a list or a DataLoader"):
        check_task(task(**{split: (b for b in [BATCH])}), model())


@pytest.mark.parametrize("split", ["search", "confirm"])
def test_samples_in_another_order_at_every_walk_are_refused(split: str) -> None:
    data = TensorDataset(torch.arange(64.0).view(64, 1), torch.zeros(64, dtype=torch.long))
    with pytest.raises(DataError, match=rf"task\.{split} yields other samples .*shuffle=False"):
        check_order(task(**{split: DataLoader(data, batch_size=16, shuffle=True)}))
    check_order(task(**{split: DataLoader(data, batch_size=16)}, train=DataLoader(data, batch_size=16, shuffle=True)))


def test_nan_in_the_samples_is_not_taken_for_another_order() -> None:
    check_order(task(search=[(torch.full((2, 3), torch.nan), None)]))


def test_numbers_are_not_taken_for_probabilities_of_classes() -> None:
    x = torch.rand(4, 3, 8, 8)
    batch = [(x, torch.rand(4, 3, 8, 8))]
    with pytest.raises(DataError, match=r"cross-entropy.*mse_loss"):
        check_task(task(train=batch, search=batch, confirm=batch), nn.Identity())
    check_task(task(train=batch, search=batch, confirm=batch, loss=F.mse_loss), nn.Identity())
    soft = [(x, torch.rand(4, 3, 8, 8).softmax(1))]
    check_task(task(train=soft, search=soft, confirm=soft), nn.Identity())
