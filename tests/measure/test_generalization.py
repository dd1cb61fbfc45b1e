import json
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from penjing.errors import DataError, RecipeError
from penjing.measure import CORRUPTIONS, generalization, top1
from penjing.task import Batches, Run, Score

Net = Callable[[Tensor], Tensor]


def images_of(classes: int, each: int, batch: int = 50) -> list[tuple[Tensor, Tensor]]:
    """Images whose class is the bright one of their columns."""
    labels = torch.arange(classes).repeat(each)
    noise = 0.05 * torch.randn(len(labels), 1, 8, classes, generator=torch.Generator().manual_seed(0))
    images = noise + torch.eye(classes)[labels][:, None, None, :]
    return list(zip(images.split(batch), labels.split(batch), strict=True))


def columns(x: Tensor) -> Tensor:
    """The classifier of those images: 8 times the mean of each column."""
    return 8 * x.mean((1, 2))


def forgets(label: int) -> Net:
    return lambda x: columns(x) - 20 * nn.functional.one_hot(torch.tensor(label), x.shape[3])


def negative_error(run: Run, batches: Batches) -> Score:
    """A regression's metric: minus the squared error of each sample."""
    each = np.concatenate([-(run(*(x if isinstance(x, tuple) else (x,))) - y).square().flatten(1).mean(1) for x, y in batches])
    return Score(float(each.mean()), len(each), each)


def test_equal_networks_raise_no_warning() -> None:
    found = generalization(columns, columns, images_of(4, 50), top1, allowed=0.0)
    assert found.warnings == found.forgotten == ()
    assert found.flips is not None
    assert (found.flips.flipped, found.flips.worse, found.flips.better) == (0, 0, 0)
    assert found.calibration is not None
    assert found.calibration.before == found.calibration.after
    assert [(x.label, x.samples, x.before, x.after) for x in found.per_class] == [(k, 50, 1.0, 1.0) for k in range(4)]
    assert [(x.name, x.severity) for x in found.corruptions] == [(name, s) for name in CORRUPTIONS for s in (1, 3, 5)]
    assert all(x.before == x.after for x in found.corruptions)
    assert min(x.before for x in found.corruptions) < 1  # they do harm


def test_a_forgotten_class_is_named() -> None:
    found = generalization(columns, forgets(2), images_of(20, 20), top1, allowed=0.005, severities=(1,))
    (warning,) = (w for w in found.warnings if w.startswith("Class"))
    assert warning == "Class 2 falls from 100.0% to 0.0% right on its 20 samples: 100.0 points, where 2.0 is the threshold."
    assert found.per_class[2].before == 1
    assert found.per_class[2].after == 0
    assert found.flips is not None
    assert (found.flips.flipped, found.flips.worse, found.flips.better) == (20 / 400, 20, 0)


def test_a_forgotten_class_is_named_where_no_drop_is_limited_and_the_metric_is_no_accuracy() -> None:
    def halved(run: Run, batches: Batches) -> Score:
        score = top1(run, batches)
        return replace(score, value=score.value / 2, per_sample=score.per_sample / 2)

    found = generalization(columns, forgets(2), images_of(20, 20), halved, allowed=math.inf, severities=())
    assert [w[:7] for w in found.warnings if w.startswith("Class")] == ["Class 2"]


@pytest.mark.parametrize(("wrong", "warned"), [(6, False), (12, True)])
def test_a_class_is_worse_only_when_that_is_no_chance(wrong: int, warned: bool) -> None:
    data = images_of(4, 100, batch=400)
    outputs = columns(data[0][0])
    outputs[torch.arange(wrong) * 4 + 1] = 0  # samples of class 1, which class 0 then gets
    found = generalization(columns, lambda x: outputs if x is data[0][0] else columns(x), data, top1, allowed=0.01)
    # Of 4 classes each is tested at 0.05 / 4; all wrong on one side has p = 2^(1 - n), 0.03 and 0.0005.
    assert any(w.startswith("Class 1 falls") for w in found.warnings) == warned


def test_what_is_allowed_sets_the_threshold_of_a_class() -> None:
    data = images_of(4, 100, batch=400)
    outputs = columns(data[0][0])
    outputs[torch.arange(12) * 4 + 1] = 0

    def after(x: Tensor) -> Tensor:
        return outputs if x is data[0][0] else columns(x)

    def warned(allowed: float) -> bool:
        return any(w.startswith("Class") for w in generalization(columns, after, data, top1, allowed=allowed).warnings)

    assert (warned(0.039), warned(0.041)) == (True, False)  # 12 points are lost; 3 times what is allowed may be


def test_forgotten_samples_are_the_most_surely_wrong_in_walking_order() -> None:
    data = images_of(4, 25, batch=7)
    surely = torch.linspace(1, 5, 100)  # how sure the second network is of class 0
    place = {x[i].sum().item(): 7 * k + i for k, (x, _) in enumerate(data) for i in range(len(x))}

    def after(x: Tensor) -> Tensor:
        outputs = torch.zeros(len(x), 4)
        outputs[:, 0] = torch.tensor([surely[place.get(image.sum().item(), 0)] for image in x])
        return outputs

    found = generalization(columns, after, data, top1, allowed=0.01, severities=())
    expected = [i for i in range(99, -1, -1) if i % 4][:12]
    assert [x.index for x in found.forgotten] == expected
    assert [(x.label, x.now) for x in found.forgotten] == [(i % 4, 0) for i in expected]
    assert found.forgotten[0].confidence == pytest.approx(np.exp(5) / (np.exp(5) + 3), rel=1e-5)
    assert found.corruptions == ()


def test_confidence_that_means_less_is_told() -> None:
    def unsure(x: Tensor) -> Tensor:
        return columns(x) / 8

    found = generalization(columns, unsure, images_of(4, 50), top1, allowed=0.01)
    assert found.calibration is not None
    sure = torch.cat([columns(x).softmax(1).amax(1) for x, _ in images_of(4, 50)])
    assert found.calibration.before == pytest.approx(1 - sure.mean().item(), abs=1e-6)
    assert [w.split(" grows")[0] for w in found.warnings] == ["The expected calibration error"]


def test_outputs_that_are_shares_are_taken_as_they_are() -> None:
    def softmax(x: Tensor) -> Tensor:
        return columns(x).softmax(1)

    found = generalization(columns, softmax, images_of(4, 25), top1, allowed=0.01, severities=())
    assert found.calibration is not None
    assert found.calibration.before == pytest.approx(found.calibration.after, abs=1e-6)


def test_flips_are_told_even_where_accuracy_stays() -> None:
    data = [(torch.randn(100, 1, 4, 4), torch.full((100,), 2))]  # both are always wrong, each in its own way
    found = generalization(
        lambda x: torch.eye(3)[0].expand(len(x), 3), lambda x: torch.eye(3)[1].expand(len(x), 3), data, top1, allowed=0.0
    )
    assert found.warnings == (
        "100.0% of the predictions changed, where 10% is the threshold: 0 samples became wrong and 0 right.",
    )


def test_a_network_that_breaks_on_corrupted_images_is_told() -> None:
    def brittle(x: Tensor) -> Tensor:
        low_contrast = x.std((1, 2, 3)) < 0.22  # clean ones have about 0.43
        return torch.where(low_contrast[:, None], -1.0, 1.0) * columns(x)

    found = generalization(columns, brittle, images_of(4, 100), top1, allowed=0.01, severities=(5,))
    (warning,) = found.warnings
    assert warning.startswith("Corrupted images lose ")
    assert "clean ones 0:" in warning
    lost = np.mean([x.before - x.after for x in found.corruptions])
    assert f"lose {lost:.3g} of the metric" in warning
    assert generalization(columns, brittle, images_of(4, 100), top1, allowed=0.5, severities=(5,)).warnings == ()


def test_both_networks_see_the_same_corrupted_images_with_one_walk_and_few_runs() -> None:
    walks, seen = [], ([], [])

    class Once:
        def __iter__(self):
            walks.append(1)
            return iter(images_of(3, 20, batch=20))

    def net(which: int) -> Net:
        return lambda x: (seen[which].append(x.clone()), columns(x))[1]

    generalization(net(0), net(1), Once(), top1, allowed=0.01, severities=(2, 4))
    assert len(walks) == 1
    assert len(seen[0]) == len(seen[1]) == 3 * (1 + 2 * len(CORRUPTIONS))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_whole_batches_are_kept_while_samples_last() -> None:
    data = images_of(3, 20, batch=20)
    assert generalization(columns, columns, data, top1, allowed=0.0, severities=(), samples=45).samples == 40
    assert generalization(columns, columns, data, top1, allowed=0.0, severities=(), samples=5).samples == 20


def test_a_regression_has_the_corruption_table_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    data = [((x, torch.ones(len(x), 1, 24, 24)), x) for x in torch.rand(40, 1, 24, 24, generator=generator).split(20)]
    found = generalization(lambda x, y: x * y, lambda x, y: x * y + 0.1, data, negative_error, allowed=0.1, severities=(1, 5))
    assert len(found.corruptions) == 2 * len(CORRUPTIONS)
    assert all(x.before < 0 for x in found.corruptions)
    assert found.to_json() | {"corruptions": 0} == {
        "samples": 40, "per_class": [], "flips": None, "calibration": None, "corruptions": 0, "warnings": [], "forgotten": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "target", "output"),
    [
        (torch.rand(10, 1, 4, 4), torch.zeros(10), torch.zeros(10, 3)),  # targets that are no integers
        (torch.rand(10, 1, 4, 4), torch.zeros(10, 4, 4).long(), torch.zeros(10, 3, 4, 4)),  # labels of pixels
        (torch.rand(10, 1, 4, 4), torch.full((10,), 3), torch.zeros(10, 3)),  # a label beyond the outputs
        (torch.rand(10, 1, 4, 4), torch.zeros(10).long(), torch.zeros(10, 1)),  # one output
    ],
    ids=["floats", "pixels", "beyond", "single"],
)
def test_what_is_no_classification_has_no_classes(inputs: Tensor, target: Tensor, output: Tensor) -> None:
    nothing = Score(0.0, 10, np.zeros(10))
    found = generalization(lambda _: output, lambda _: output, [(inputs, target)], lambda _run, _batches: nothing, allowed=0.0)
    assert (found.per_class, found.flips, found.calibration, found.forgotten) == ((), None, None, ())
    assert len(found.corruptions) == 3 * len(CORRUPTIONS)


def test_inputs_that_are_no_images_skip_the_corruptions_and_say_so() -> None:
    net = nn.Linear(5, 3)
    found = generalization(net, net, [(torch.randn(30, 5), torch.arange(30) % 3)], top1, allowed=0.0)
    assert found.corruptions == ()
    assert len(found.per_class) == 3
    (warning,) = found.warnings
    assert "no float images" in warning
    assert "(30, 5)" in warning


def test_numpy_outputs_do() -> None:
    found = generalization(columns, lambda x: forgets(0)(x).numpy(), images_of(3, 40), top1, allowed=0.01)
    assert found.per_class[0].after == 0


def test_it_is_json_as_the_report_wants_it() -> None:
    found = generalization(columns, forgets(1), images_of(3, 40), top1, allowed=0.01, severities=(5,))
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert list(data) == ["samples", "per_class", "flips", "calibration", "corruptions", "warnings", "forgotten"]
    assert data["per_class"][1] == {"class": 1, "samples": 40, "before": 1.0, "after": 0.0}
    assert set(data["flips"]) == {"flipped", "worse", "better"}
    assert set(data["calibration"]) == {"before", "after"}
    assert set(data["corruptions"][0]) == {"name", "severity", "before", "after"}
    assert set(data["forgotten"][0]) == {"index", "label", "now", "confidence"}
    assert len(data["forgotten"]) == 12


def test_progress_counts_every_run_and_seeds_decide() -> None:
    steps: list[str] = []

    @contextmanager
    def watched(label: str, total: int):
        assert (label, total) == ("generalization", 1 + 2 * len(CORRUPTIONS))
        yield steps.append

    a = generalization(columns, forgets(0), images_of(3, 40), top1, allowed=0.1, severities=(1, 5), seed=3, progress=watched)
    assert len(steps) == 1 + 2 * len(CORRUPTIONS)
    assert a == generalization(columns, forgets(0), images_of(3, 40), top1, allowed=0.1, severities=(1, 5), seed=3)


def test_mistakes_are_told() -> None:
    with pytest.raises(DataError, match="no batch"):
        generalization(columns, columns, [], top1, allowed=0.0)
    with pytest.raises(RecipeError, match="severity is 7"):
        generalization(columns, columns, images_of(3, 4), top1, allowed=0.0, severities=(7,))


def picky(run: Run, batches: Batches) -> Score:
    """A metric that needs every class."""
    if len(torch.cat([y for _, y in batches]).unique()) < 4:
        raise ValueError("Only some classes present")
    return top1(run, batches)


def test_a_metric_that_needs_every_class_gets_all_samples_where_these_are_sorted() -> None:
    x, y = (torch.cat(parts) for parts in zip(*images_of(4, 50), strict=True))
    order = y.argsort()
    batches = list(zip(x[order].split(50), y[order].split(50), strict=True))
    assert generalization(columns, columns, batches, picky, allowed=0.0, samples=100).samples == 200
    with pytest.raises(DataError, match=r"task\.metric fails with ValueError: Only some classes present"):
        generalization(columns, columns, batches[:2], picky, allowed=0.0, samples=100)
