"""The page on extending: its blocks run as printed, in order, and what they add is what gets used."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import penjing as pj
from penjing.cli import app
from penjing.errors import NotEquivalent, RecipeError
from penjing.export import RUNTIMES
from penjing.graph.meeting import elementwise
from penjing.graph.rules import RULES
from tests.oracle import randomized

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
TABLES: tuple[Any, ...] = (
    pj.score.CRITERIA,
    RULES,
    pj.quant.OBSERVERS,
    pj.distill.LOSSES,
    RUNTIMES,
    pj.quant.TARGETS,
)


def blocks(page: str) -> Iterator[str]:
    """Every block of Python, with as many empty lines before it as the page has, so that errors name the page's lines."""
    for found in re.finditer(r"^(?:```python|<!-- setup)\n(.*?)^(?:```|-->)$", page, re.DOTALL | re.MULTILINE):
        yield "\n" * page[: found.start(1)].count("\n") + found[1]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the names of the page stand for after its last block; its additions are put in again for the tests."""
    names: dict[str, Any] = {"__name__": "extending"}
    before = [dict(table) for table in TABLES]
    with contextlib.chdir(tmp_path_factory.mktemp("page")):
        *additions, removal = blocks(PAGE.read_text(encoding="utf-8"))
        for block in additions:
            exec(compile(block, str(PAGE), "exec"), names)
        added = [{k: v for k, v in table.items() if k not in old} for table, old in zip(TABLES, before, strict=True)]
        exec(compile(removal, str(PAGE), "exec"), names)
        names["removed"] = [dict(table) for table in TABLES] == before
        for table, new in zip(TABLES, added, strict=True):
            table.update(new)
        names["added"] = added
        try:
            yield names
        finally:
            for table, old in zip(TABLES, before, strict=True):
                table.clear()
                table.update(old)


def test_everything_is_added_and_taken_out_again(page: dict[str, Any]) -> None:
    assert [len(new) for new in page["added"]] == [1, 1, 1, 1, 1, 1]
    assert page["removed"]


def test_the_criterion_decides_which_channels_stay(page: dict[str, Any]) -> None:
    weights = dict(page["model"].named_parameters())
    name = "stage1.0.conv1.weight"
    # Channels of this group are made by one layer and read by the next; computed another way than on the page.
    made, read = weights[name].detach().numpy(), weights["stage1.0.conv2.weight"].detach().numpy()
    largest = np.maximum(np.abs(made).max((1, 2, 3)), np.abs(read).max((0, 2, 3)))
    best = tuple(sorted(np.argsort(-largest, kind="stable")[:16].tolist()))
    assert page["plan"].keep[name][0] == best
    assert page["other"].keep[name][0] != best
    kept = page["model"].stage1[0].conv1.weight[list(best)]
    in_place = page["plan"].keep["conv.weight"][0]
    torch.testing.assert_close(page["small"].stage1[0].conv1.weight, kept[:, list(in_place)])


def test_a_criterion_of_that_name_is_taken_from_the_command_line(tmp_path: Path) -> None:
    module = tmp_path / "criterion_of_mine.py"
    module.write_text(
        "import penjing as pj\n"
        "def build():\n"
        "    pj.score.CRITERIA['mine'] = pj.score.l1_norm\n"
        "    return pj.zoo.two_convolutions(width=8)\n",
        encoding="utf-8",
    )
    command = ["prune", "--model", "criterion_of_mine:build", "--shape", "3,32,32", "--ratio", "0.5", "--criterion"]
    try:
        with contextlib.chdir(tmp_path), pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(os.fspath(tmp_path))
            assert CliRunner().invoke(app, [*command, "mine"]).exit_code == 0
            assert isinstance(CliRunner().invoke(app, [*command, "yours"]).exception, RecipeError)
    finally:
        pj.score.CRITERIA.pop("mine", None)


def test_the_rule_frees_the_channels_and_the_cut_is_proved(page: dict[str, Any]) -> None:
    assert not page["before"].groups
    assert "yours.squash.default has no rule" in page["before"].reasons
    assert [g.channels for g in page["after"].groups] == [16]
    assert page["half"].first.out_channels == 8
    x = torch.randn(2, 1, 12, 12)
    kept = pj.plan_channels(page["squashed"], x, ratio=0.5).keep["first.weight"][0]
    whole, y = page["squashed"], torch.zeros(2, 16, 12, 12)
    y[:, kept] = torch.asinh(whole.first(x))[:, kept]  # the others give their readers zeros
    torch.testing.assert_close(page["half"](x), whole.second(y).mean((2, 3)))


def test_a_wrong_rule_is_found_out() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(torch.cumsum(self.first(x), 1))
            return y

    net, x = randomized(Mixed()), torch.randn(2, 1, 8, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RULES, torch.ops.aten.cumsum.default, elementwise)  # every channel holds the sum of those before it
        assert pj.inspect(net, x).groups
        with pytest.raises(NotEquivalent):
            pj.prune(net, x, ratio=0.5)


def test_the_observer_gives_the_ranges(page: dict[str, Any]) -> None:
    assert len(page["changed"]) > 10
    rows = torch.randn(3, 4096) * torch.tensor([[1.0], [10.0], [0.1]])
    rows[0, 0] = 50.0
    observer = page["Deviations"]()
    for part in rows.split(1024, 1):
        observer.update(part)
    low, high = observer.limits()
    mean, spread = rows.double().mean(1), 4 * rows.double().std(1, correction=0)
    torch.testing.assert_close(low.double(), torch.maximum(mean - spread, rows.amin(1).double()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(high.double(), torch.minimum(mean + spread, rows.amax(1).double()), rtol=1e-4, atol=1e-4)
    assert high[0] < 10  # control: the outlier would have been kept by minmax


def test_observers_of_two_processes_are_brought_together(page: dict[str, Any]) -> None:
    rows = torch.randn(1, 4096)
    whole, one, two = (page["Deviations"]() for _ in range(3))
    for part in rows.split(1024, 1):
        whole.update(part)
    for observer, half in zip((one, two), rows.split(2048, 1), strict=True):
        for part in half.split(1024, 1):
            observer.update(part)
    one.merge(two)
    for a, b in zip(one.limits(), whole.limits(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_losses_teach(page: dict[str, Any]) -> None:
    features = {"stage2": torch.rand(4, 8, 6, 6)}
    shown = {"stage2": torch.rand(4, 16, 6, 6)}
    output, taught = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
    lesson = pj.distill.Lesson(output, taught, features=features, shown=shown)
    page["soft_targets"](lesson).backward()
    wanted = (output.detach().softmax(1) - (taught / 2).softmax(1)) / 4  # the known gradient of cross-entropy
    torch.testing.assert_close(output.grad, wanted)
    share = [np.tanh(2 * np.abs(f["stage2"].numpy()).mean(1)).mean((1, 2)) for f in (features, shown)]
    loss = pj.distill.loss_named("sparing", student="stage2", teacher="stage2", sharpness=2.0)
    np.testing.assert_allclose(loss(lesson).item(), np.square(share[0] - share[1]).mean(), rtol=1e-5)
    assert "sharpness=2.0" in repr(loss)
    trained, start = page["student"].state_dict(), page["small"].state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in trained.items())


def test_an_added_loss_is_asked_during_training(page: dict[str, Any]) -> None:
    asked: list[float] = []

    def counted(lesson: pj.distill.Lesson) -> Tensor:
        asked.append(lesson.done)
        found: Tensor = page["soft_targets"](lesson)
        return found

    pj.fit(page["small"], page["task"], epochs=1, teacher=page["model"], loss=counted)
    assert len(asked) >= 3  # one for each batch


def test_the_runtime_runs_the_file(page: dict[str, Any]) -> None:
    file, x = page["file"], page["images"][0]
    assert file.runtime == "reference"
    agreement = file.agreement(page["int8"], x)
    assert agreement.argmax == 1.0
    assert agreement.largest < 1e-5
    kernels = [k for k in file.kernels() if k.weighted]
    assert {k.precision for k in kernels} == {"f32"}
    assert len(kernels) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in page["tiny"].modules())
    other = {k.precision for k in file.on("onnxruntime").kernels() if k.weighted}
    assert "int8" in other  # control: the same file, in a runtime that has integers
    assert file.profile(x[:1], seconds=0.01).wall.value > 0


def test_every_file_and_test_that_the_page_names_is_there() -> None:
    text, root = PAGE.read_text(encoding="utf-8"), PAGE.parents[1]
    named = set(re.findall(r"`((?:src|tests)/[\w/]+(?:\.py)?/?)`", text))
    named |= {f"docs/{link}" for link in re.findall(r"\]\(((?!https?:|#)[^)#]+)", text)}
    assert len(named) > 10
    assert [path for path in sorted(named) if not (root / path).exists()] == []
