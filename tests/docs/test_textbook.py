"""The textbook's page: its blocks and its example run, its formulas hold, and every mistake that it names is shown."""

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj
from penjing.prune.textbook import clip

ROOT = Path(__file__).parents[2]
PAGE, EXAMPLE = ROOT / "docs/textbook.md", ROOT / "examples/textbook.py"


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the names of the page stand for after its last block."""
    names: dict[str, Any] = {"__name__": "textbook"}
    with contextlib.chdir(tmp_path_factory.mktemp("page")), torch.random.fork_rng():
        for block in python_blocks(text):
            exec(compile(block, str(PAGE), "exec"), names)
    return names


def python_blocks(text: str) -> Iterator[str]:
    """Every block of Python, with as many empty lines before it as the page has, so that errors name the page's lines."""
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield "\n" * text[: found.start(1)].count("\n") + found[1]


# The page and the example as a whole.


def test_the_blocks_of_the_page_train_networks(page: dict[str, Any]) -> None:
    for name in ("net", "sparse", "int8"):
        assert pj.measure.top1(page[name], page["task"].confirm).value > 0.8
    assert [step.name for step in page["taught"].steps] == ["teacher", "pretrained", "student"]
    assert page["taught"].steps[-1].score.value > 0.5


def test_every_test_that_the_page_names_is_here(text: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", text))
    here = {
        name
        for path in Path(__file__).parent.glob("test_textbook*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    assert len(named) > 20
    assert named - here == set()


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("textbook_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with torch.random.fork_rng():
        example.main()
    lines = capsys.readouterr().out.splitlines()
    accuracy = [float(found[1]) for line in lines if (found := re.search(r"([\d.]+)%", line))]
    assert len(accuracy) == 4
    assert min(accuracy) > 60  # of ten classes
    assert "50% of the weights are not zero" in lines[2]
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 80


# The network.


def chapters(width: int, *middle: nn.Module, inputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2),
        *middle, nn.Linear(inputs, 10),
    )  # fmt: skip


def test_without_flatten_the_network_cannot_run() -> None:
    x = torch.randn(1, 3, 32, 32)
    for width in (64, 32):
        with pytest.raises(RuntimeError, match=f"cannot be multiplied \\({2 * width * 8}x8 and {2 * width}x10\\)"):
            chapters(width, inputs=2 * width)(x)
        with pytest.raises(RuntimeError, match=f"cannot be multiplied \\(1x{2 * width * 64} and {2 * width}x10\\)"):
            chapters(width, nn.Flatten(), inputs=2 * width)(x)  # flattening alone is not enough
        assert chapters(width, nn.Flatten(), inputs=2 * width * 8 * 8)(x).shape == (1, 10)
        assert chapters(width, nn.AdaptiveAvgPool2d(1), nn.Flatten(), inputs=2 * width)(x).shape == (1, 10)


@pytest.mark.parametrize("width", [64, 32])
def test_the_network_is_the_chapters(page: dict[str, Any], width: int) -> None:
    net = page["build"](width)
    assert [tuple(p.shape) for p in net.parameters() if p.ndim > 1] == [
        (width, 3, 3, 3), (2 * width, width, 3, 3), (10, 2 * width * 8 * 8),
    ]  # fmt: skip
    assert net[:6](torch.zeros(2, 3, 32, 32)).shape == (2, 2 * width, 8, 8)


def test_zeros_change_no_shape_and_channels_do(page: dict[str, Any]) -> None:
    net, x = page["net"], page["example"]
    whole, sparse, narrow = (pj.inspect(m, x) for m in (net, pj.sparsify(net, 0.5), page["narrow"]))
    assert (sparse.macs, sparse.parameters) == (whole.macs, whole.parameters)
    assert narrow.macs < 0.4 * whole.macs
    assert narrow.parameters < 0.6 * whole.parameters
    assert pj.measure.sparsity(page["narrow"]).density == 1


# 3.1, and the program of 4.1.


def printed_pruning(model: nn.Module, x: Tensor, rate: float = 0.5) -> Tensor:
    """The forward of the chapter's program, with no more mended than is needed to run: it sums the outputs to differentiate
    them, and takes the gradient of each parameter."""
    y: Tensor = model(x)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(y.sum(), parameters)
    with torch.no_grad():
        for p, gradient in zip(parameters, gradients, strict=True):
            epsilon = gradient.abs().mean() * rate
            p.sub_(gradient.clamp(-epsilon, epsilon) / p.numel())
    return y.detach()


def test_the_update_is_the_formula() -> None:
    """A linear layer with half the squared error, whose gradient is known; in float64 with numpy."""
    rng = np.random.default_rng(0)
    x, target, weight, bias = (rng.normal(size=s).astype(np.float32) for s in ((4, 6), (4, 3), (3, 6), (3,)))
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weight))
        model.bias.copy_(torch.from_numpy(bias))
    task = pj.Task(
        train=[(torch.from_numpy(x), torch.from_numpy(target))], search=[], confirm=[], metric=pj.measure.top1,
        loss=lambda output, wanted: 0.5 * (output - wanted).square().sum(),
    )  # fmt: skip
    found = pj.sparsify_textbook(model, task, density=0.5, steps=2, lr=0.1, epsilon=100.0)

    w, b, bounded = weight.astype(np.float64), bias.astype(np.float64), 0
    for _ in range(2):
        error = x @ w.T + b - target
        jw, jb = error.T @ x, error.sum(0)
        bound = 100.0 / np.abs(jw).sum()
        clipped = np.clip(jw, -bound, bound)
        bounded += int((np.abs(jw) > bound).sum())
        w = w - 0.1 * clipped
        b = b - 0.1 * np.clip(jb, -100.0 / np.abs(jb).sum(), 100.0 / np.abs(jb).sum())
        matters = np.abs(w * clipped)
        w = np.where(matters >= np.sort(matters, axis=None)[-9], w, 0)
    assert 0 < bounded < 36  # some are clipped, some are not
    np.testing.assert_allclose(found.get_parameter("weight").detach().numpy(), w, atol=1e-5)
    np.testing.assert_allclose(found.get_parameter("bias").detach().numpy(), b, atol=1e-5)


def test_clipping_zeroes_nothing(page: dict[str, Any]) -> None:
    net, x = page["build"](8), page["images"][0]
    for _ in range(5):
        printed_pruning(net, x)
    assert pj.measure.sparsity(net).density == 1
    gradient = torch.randn(1000)
    clipped = clip(gradient, 1.0)
    assert clipped.abs().max() < gradient.abs().max()
    assert clipped.all()
    weight, gone = torch.randn(1000), gradient.abs() < 0.5
    stayed = weight - 0.1 * clipped.masked_fill(gone, 0)  # setting gradients to zero leaves weights where they are
    assert torch.equal(stayed[gone], weight[gone]) and weight[gone].all()
    assert pj.measure.sparsity(page["sparse"]).density == 0.5  # control: a mask does zero


def test_no_gradient_of_what_was_computed_under_no_grad(page: dict[str, Any]) -> None:
    net = page["build"](8)
    with torch.no_grad():
        y = net(page["example"])
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(y.sum(), net.parameters(), create_graph=True, retain_graph=True)
    assert all(g.any() for g in torch.autograd.grad(net(page["example"]).sum(), net.parameters()))  # control


def test_no_gradient_of_what_is_no_scalar(page: dict[str, Any]) -> None:
    net, x = page["build"](8), page["example"]
    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        torch.autograd.grad(net(x), net.parameters(), create_graph=True, retain_graph=True)
    assert torch.autograd.grad(F.cross_entropy(net(x), torch.tensor([3])), net.parameters())
    a, b = (torch.autograd.grad(F.cross_entropy(net(x), torch.tensor([k])), net[7].bias)[0] for k in (3, 4))
    assert not torch.allclose(a, b)  # with a loss the label plays a part


def test_one_gradient_does_not_serve_all_parameters(page: dict[str, Any]) -> None:
    net = page["build"](8)
    first, *_ = torch.autograd.grad(net(page["example"]).sum(), net.parameters())
    net[0].weight.grad = first
    for other in list(net.parameters())[1:]:
        with pytest.raises(RuntimeError, match="assign a gradient of size"):
            other.grad = first


def test_the_printed_bound_is_not_the_formulas() -> None:
    gradient = torch.randn(64, 27)
    printed = [float(0.5 * (k * gradient).abs().mean()) for k in (1, 10)]
    formula = [float(clip(k * gradient, 0.5).abs().max()) for k in (1, 10)]
    assert printed[1] / printed[0] == pytest.approx(10, rel=1e-4)
    assert formula[1] / formula[0] == pytest.approx(0.1, rel=1e-4)
    assert formula[0] == pytest.approx(0.5 / np.abs(gradient.double().numpy()).sum(), rel=1e-4)


def test_the_number_of_weights_is_no_learning_rate(page: dict[str, Any]) -> None:
    net, x = page["build"](64), page["example"]
    before = [p.detach().clone() for p in net.parameters()]
    gradients = torch.autograd.grad(net(x).sum(), list(net.parameters()))
    printed_pruning(net, x)
    rates = {}
    for p, old, g in zip(net.parameters(), before, gradients, strict=True):
        step = g.double().clamp(-g.abs().mean() * 0.5, g.abs().mean() * 0.5)
        rates[p.numel()] = float((old.double() - p.detach().double()).sum() / step.sum())
    small, large = min(rates), max(rates)
    assert (small, large) == (10, 10 * 8192)
    assert rates[small] == pytest.approx(1 / small, rel=0.01)
    assert rates[large] < 1e-3 * rates[small]  # a weight of the linear layer moves a thousandth of what its bias does


def test_density_is_the_share_that_is_not_zero(page: dict[str, Any]) -> None:
    sparse = pj.sparsify_textbook(page["net"], page["task"], density=0.2, steps=1)
    weights = torch.cat([p.detach().flatten() for p in sparse.parameters() if p.ndim > 1])
    assert float((weights != 0).double().mean()) == pytest.approx(0.2, abs=1e-3)
    loose = pj.sparsify_textbook(page["net"], page["task"], density=0.2, steps=1, epsilon=10.0)
    assert pj.measure.sparsity(loose).density == pj.measure.sparsity(sparse).density  # the bound has no say in it


def test_a_forward_that_trains_changes_its_answer(page: dict[str, Any]) -> None:
    net, x = page["build"](8), page["example"]
    first, second = printed_pruning(net, x), printed_pruning(net, x)
    assert not torch.equal(first, second)
    with torch.no_grad():
        assert torch.equal(page["net"](x), page["net"](x))  # control


# 3.2, and the program of 4.2.


def test_the_printed_dequantization_is_off_by_a_factor(page: dict[str, Any]) -> None:
    alpha = 0.05
    x = np.random.default_rng(0).normal(0.3, 1, 10_000)
    mu = x.mean()
    right = alpha * np.round((x - mu) / alpha) + mu
    assert np.abs(right - x).max() <= alpha / 2 + 1e-12
    off = np.abs(right / alpha - x)
    # (x + e) / alpha - x with |e| <= alpha / 2: the factor, and half an integer at most.
    assert np.abs(off - np.abs(x) * (1 / alpha - 1)).max() <= 0.5 + 1e-9
    assert np.median(off) > 10 * np.median(np.abs(x))
    own, step = page["x"].double(), float(page["alpha"])
    assert float((page["right"] - own).abs().max()) <= step / 2 * 1.01
    assert float((page["printed"] - own).abs().max()) == pytest.approx(float(own.abs().max()) * (1 / step - 1), abs=0.51)


def test_the_grid_is_the_formula_but_for_the_shift_of_its_zero() -> None:
    x = torch.from_numpy(np.random.default_rng(1).gamma(4, 0.5, 5000) - 0.5).float()
    exact = x.double().numpy()
    mu = exact.mean()
    alpha = np.abs(exact - mu).max() / 127
    codes = np.round((exact - mu) / alpha)
    assert np.abs(codes).max() == 127
    grid = pj.quant.GRIDS["mean_centered"](x.min(), x.max(), x.mean(), 8)
    assert float(grid.scale) == pytest.approx(alpha, rel=1e-5)
    # In unsigned integers the mean is 128; the shift of the zero moves each integer by one at most.
    assert np.abs(grid.encode(x).numpy() - 128 - codes).max() <= 1
    middle = grid.encode(x).numpy() < 255  # what the shift pushes over the end is off by a little more than half a step
    assert np.abs(grid.nearest(x).double().numpy() - exact)[middle].max() <= alpha / 2 * (1 + 1e-4)
    assert float(grid.nearest(torch.zeros(1))) == 0
    shift = mu / alpha - np.round(mu / alpha)
    assert 0.01 < abs(shift) <= 0.5  # the chapter's own grid has no zero: its nearest value is off by that many steps
    assert abs(alpha * np.round(-mu / alpha) + mu) == pytest.approx(abs(shift) * alpha)


def test_weights_values_and_outputs_are_on_mean_centered_grids(page: dict[str, Any]) -> None:
    net, int8 = page["net"], page["int8"]
    held = dict(int8.named_buffers())
    weight = net[3].weight.detach().double().numpy()
    mu = weight.mean((1, 2, 3))
    half = 2 ** (pj.quant.target_named("onnxruntime").weight_bits - 1)  # 64 without VNNI
    alpha = np.abs(weight - mu[:, None, None, None]).max((1, 2, 3)) / (half - 1)  # a grid for each output channel
    np.testing.assert_allclose(held["grids.of__3_weight.scale"].flatten().numpy(), alpha, rtol=1e-5)
    np.testing.assert_array_equal(held["grids.of__3_weight.zero_point"].flatten().numpy(), half - np.round(mu / alpha))
    with torch.no_grad():
        y = int8(page["images"][0])
    step = float(held["grids.of_linear.scale"])
    assert len(y.unique()) <= 256 < y.numel()
    assert float((y / step - (y / step).round()).abs().max()) < 1e-3
    names = {name.removeprefix("grids.of_").rpartition(".")[0] for name in held}
    assert {"_0_weight", "_3_weight", "_7_weight", "input_1", "relu", "relu_1", "linear"} <= names


def test_on_what_a_relu_gives_the_mean_is_a_poor_center(page: dict[str, Any]) -> None:
    def lost(grid: pj.quant.Grid, x: Tensor) -> float:
        """In dB."""
        return float(-10 * torch.log10((grid.nearest(x) - x).double().square().sum()))

    def on(name: str, x: Tensor) -> float:
        return lost(pj.quant.GRIDS[name](x.min(), x.max(), x.mean(), 8), x)

    rectified, weights = page["signal"], page["net"][7].weight.detach()
    assert 3 < on("affine", rectified) - on("mean_centered", rectified) < 7
    assert on("mean_centered", weights) == pytest.approx(on("symmetric", weights), abs=0.5)
    grid = pj.quant.GRIDS["mean_centered"](rectified.min(), rectified.max(), rectified.mean(), 8)
    assert int(grid.zero_point) > 80  # so many integers lie below 0


def test_quantizing_outputs_leaves_the_weights(page: dict[str, Any]) -> None:
    net = page["net"]
    before = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        y = net(page["images"][0])
        assert len((torch.round((y - y.mean()) / 0.5) * 0.5 + y.mean()).unique()) < y.numel()
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    weight = net[7].weight.detach()
    assert len(weight.unique()) > 0.9 * weight.numel()
    grid = pj.quant.GRIDS["mean_centered"](weight.min(), weight.max(), weight.mean(), 8)
    assert len(grid.nearest(weight).unique()) <= 256  # control


def test_integers_without_limits_do_not_fit(page: dict[str, Any]) -> None:
    with torch.no_grad():
        y = page["net"](page["images"][0])
    codes = {alpha: torch.round((y - y.mean()) / alpha).abs().max() for alpha in (0.001, 0.5)}
    assert codes[0.001] > 127 > codes[0.5]
    grid = pj.quant.Grid(torch.tensor(0.001), torch.tensor(128), 0, 255)
    assert int(grid.encode(y).max()) == 255


def test_the_mean_of_a_batch_makes_answers_depend_on_company(page: dict[str, Any]) -> None:
    def printed(x: Tensor) -> Tensor:
        y = page["net"](x).detach()
        rounded: Tensor = torch.round((y - y.mean()) / 0.5) * 0.5 + y.mean()
        return rounded

    images = page["images"][0]
    assert (printed(images)[0] - printed(images[:1])[0]).abs().max() > 0.01
    with torch.no_grad():
        alone, together = page["int8"](images[:1])[0], page["int8"](images)[0]
    step = float(page["int8"].get_buffer("grids.of_linear.scale"))
    assert (alone - together).abs().max() <= 1.01 * step  # sums in another order may round to the next integer


def test_openvino_has_no_int8_convolution_for_weights_with_a_zero_point(page: dict[str, Any], tmp_path: Path) -> None:
    scheme = pj.Scheme(weights="mean_centered")
    int8 = pj.quantize(page["net"], page["example"], page["images"], target="openvino", scheme=scheme)
    file = pj.export(int8, page["example"], tmp_path / "net.onnx", target="openvino")
    ran = [(kernel.op, kernel.precision) for kernel in file.kernels() if kernel.weighted]
    assert len(ran) == 3
    assert all((precision == "int8") == (op == "FullyConnected") for op, precision in ran)


# 3.3, and the program of 4.3.


def test_soft_labels_are_the_formula(page: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    z, t = rng.normal(size=(5, 10)), rng.normal(size=(5, 10))
    s, p = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (z, t))
    output = torch.tensor(z, requires_grad=True)
    lesson = pj.distill.Lesson(output, torch.tensor(t), target=torch.zeros(5).long())
    value = page["soft_labels"](lesson)
    assert value.item() == pytest.approx(-(p * np.log(s)).sum(1).mean(), rel=1e-12)
    (gradient,) = torch.autograd.grad(value, output)
    np.testing.assert_allclose(gradient.numpy(), (s - p) / 5, atol=1e-12)
    (divergence,) = torch.autograd.grad(pj.distill.kl(temperature=1.0)(lesson), output)
    np.testing.assert_allclose(divergence.numpy(), gradient.numpy(), atol=1e-6)


def test_nll_loss_takes_no_probabilities() -> None:
    teacher, student = torch.randn(4, 10), torch.randn(4, 10)
    with pytest.raises(RuntimeError, match="target"):
        F.nll_loss(F.log_softmax(teacher, dim=1), F.softmax(student, dim=1), reduction="none")
    assert F.cross_entropy(student, teacher.softmax(1)).isfinite()
    numbers = teacher.argmax(1)
    assert F.nll_loss(F.log_softmax(student, dim=1), numbers) == pytest.approx(float(F.cross_entropy(student, numbers)))


def test_swapped_roles_teach_one_class_alone() -> None:
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    def taught(swapped: bool) -> Tensor:
        z = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        for _ in range(500):
            s = z.softmax(0)
            loss = -(s * p.log()).sum() if swapped else -(p * s.log()).sum()
            z = (z - torch.autograd.grad(loss, z)[0]).detach().requires_grad_()
        return z.detach().softmax(0)

    torch.testing.assert_close(taught(swapped=False), p, atol=1e-6, rtol=0)
    assert taught(swapped=True)[0] > 0.98


def test_a_loss_that_is_dropped_teaches_nothing(page: dict[str, Any]) -> None:
    teacher, student, x = page["net"], page["build"](4), page["images"][0]
    before = {k: v.clone() for k, v in student.state_dict().items()}
    with torch.no_grad():
        y_teacher = teacher(x)
    F.cross_entropy(student(x), y_teacher.softmax(1)).mean()
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())
    found = pj.fit(student, page["task"], epochs=1, teacher=teacher, loss=page["soft_labels"])
    assert not torch.equal(found.get_parameter("0.weight"), before["0.weight"])  # control


def test_the_same_labels_for_both_teach_nothing_of_the_teacher(page: dict[str, Any]) -> None:
    student, task = page["build"](4), page["task"]
    teachers = page["net"], page["build"](8)
    labels = pj.distill.with_labels(F.cross_entropy)
    alone = pj.fit(student, task, epochs=1)
    same = [pj.fit(student, task, epochs=1, teacher=t, loss=labels) for t in teachers]
    soft = [pj.fit(student, task, epochs=1, teacher=t, loss=page["soft_labels"]) for t in teachers]
    for name, value in alone.state_dict().items():
        assert all(torch.equal(value, net.state_dict()[name]) for net in same)
    assert not torch.equal(soft[0].get_parameter("0.weight"), soft[1].get_parameter("0.weight"))  # control: soft labels do


# 5.


def test_generalization_is_measured(page: dict[str, Any]) -> None:
    report, change, confirm = page["report"], page["change"], page["task"].confirm
    with torch.no_grad():
        said = [torch.cat([net(x).argmax(1) for x, _ in confirm]) for net in (page["net"], page["int8"])]
    labels = torch.cat([y for _, y in confirm])
    right = [s == labels for s in said]
    assert change.drop == pytest.approx(float(right[0].double().mean() - right[1].double().mean()))
    assert (change.worse, change.better) == (int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum()))
    assert report.flips.flipped == pytest.approx(float((said[0] != said[1]).double().mean()))
    assert {row.name for row in report.corruptions} == set(pj.measure.CORRUPTIONS)
    assert len(report.per_class) == 10


def test_every_file_that_the_page_links_is_there(text: str) -> None:
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(((?!https?:|#)[^)#]+)", text)
    assert len(links) > 5
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
    headings = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert [a for a in re.findall(r"\]\(#([^)]+)\)", text) if a not in headings] == []
