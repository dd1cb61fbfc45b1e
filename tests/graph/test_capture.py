import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.errors import ModelError
from penjing.graph import as_inputs, capture, check_weights
from tests.nets import CUTTABLE, IMAGE, SHAPES, conv
from tests.oracle import difference, inputs, randomized


class Plain(nn.Module):
    """Two convolutions, with everything in between that is off in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop, self.b = conv(3, 8), nn.BatchNorm2d(8), nn.Dropout(0.5), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.drop(F.relu(self.norm(self.a(x)))))
        return out


class OfTwo(Plain):
    """Only for a batch of two."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).view(2, 8, 8, 8))
        return out


class Undecided(Plain):
    """What it computes hangs on what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y) if x.sum() > 0 else self.b(-y)  # type: ignore[no-any-return]


class Decorated(Plain):
    """For inference only, as many write it."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Remembering(Plain):
    """Keeps what it computed last."""

    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.a(x)
        out: Tensor = self.b(self.last)
        return out


class Variadic(Plain):
    """Any number of inputs."""

    def forward(self, *xs: Tensor) -> Tensor:
        out: Tensor = self.b(sum(self.a(x) for x in xs))
        return out


@pytest.mark.parametrize("name", ["two_inputs", "dict_output", "tuple_output", "two_names"])
def test_the_graph_computes_what_the_model_computes(name: str) -> None:
    shapes = SHAPES.get(name, IMAGE)
    model = randomized(CUTTABLE[name]())
    graph = capture(model, inputs(shapes, 1))
    assert graph.dynamic
    with torch.no_grad():
        for batch in (1, 2, 5):
            x = inputs(shapes, batch)
            assert difference(graph.module(*x), model(*x)) < 1e-5


def test_the_graph_is_of_eval_mode() -> None:
    model = randomized(Plain())
    (x,) = inputs(IMAGE, 4)
    expected = model(x)
    torch.testing.assert_close(capture(model.train(), x).module(x), expected)
    assert not torch.allclose(model(x), expected)


def test_reading_leaves_the_model_as_it_was() -> None:
    model = Plain().train()
    model.norm.eval()
    state = copy.deepcopy(model.state_dict())
    capture(model, torch.randn(1, 3, 8, 8))
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_reading_draws_no_chance() -> None:
    model, before = Plain(), torch.get_rng_state()
    capture(model, torch.zeros(1, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_graph_can_be_changed_without_the_model() -> None:
    model = Plain()
    before = model.a.weight.clone()
    graph = capture(model, torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        for p in graph.module.parameters():
            p.zero_()
    assert torch.equal(model.a.weight, before)


def test_the_graph_has_the_model_s_names() -> None:
    model = Plain()
    found = dict(capture(model, torch.zeros(1, 3, 8, 8)).module.named_parameters())
    assert found.keys() == dict(model.named_parameters()).keys()


class Timed(nn.Module):
    """With a time step that is one for all samples."""

    def forward(self, *given: Tensor) -> Tensor:
        return given[0] * given[1]


def test_a_batch_of_one_is_doubled() -> None:
    assert capture(nn.Linear(3, 4), torch.zeros(1, 3)).example[0].shape == (2, 3)
    assert capture(nn.Linear(3, 4), torch.zeros(3, 3)).example[0].shape == (3, 3)
    for given in itertools.permutations((torch.zeros(1, 3), torch.tensor(0.5))):
        beside = capture(Timed(), given)
        assert {x.shape for x in beside.example} == {(2, 3), ()}
        assert beside.dynamic


def test_a_batch_written_into_the_model_is_found() -> None:
    assert not capture(OfTwo(), torch.zeros(2, 3, 8, 8)).dynamic


def test_any_number_of_inputs() -> None:
    model = randomized(Variadic())
    x = inputs(IMAGE * 3, 2)
    assert difference(capture(model, x).module(*x), model(*x)) < 1e-5


def test_a_decorated_forward() -> None:
    model = randomized(Decorated())
    x = inputs(IMAGE, 2)
    assert difference(capture(model, x).module(*x), model(*x)) < 1e-5


@pytest.mark.parametrize(
    "example", [None, 5, "x", [], (), {"x": torch.zeros(1)}, [torch.zeros(1), 2], torch.zeros(1).numpy()], ids=str
)
def test_an_example_that_is_no_tensor_is_refused(example: Any) -> None:
    with pytest.raises(ModelError, match="tensor"):
        as_inputs(example)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(Plain(), (1, 4, 8, 8)), (Undecided(), (1, 3, 8, 8)), (Remembering(), (1, 3, 8, 8)), (nn.LazyLinear(3), (1, 2))],
    ids=["channels", "undecided", "remembering", "lazy"],
)
def test_what_cannot_be_read_is_named(model: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=rf"{type(model).__name__} cannot be read with inputs of shape"):
        capture(model, torch.zeros(shape))


def test_what_cannot_be_copied_is_named() -> None:
    model = Remembering()
    model(torch.zeros(1, 3, 8, 8))  # now it holds a value with a history, which torch does not copy
    with pytest.raises(ModelError, match="Remembering"):
        capture(model, torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["a.weight", "norm.running_mean"])
def test_weights_that_are_not_finite_are_named(name: str, bad: float) -> None:
    model = Plain()
    check_weights(model)
    model.state_dict()[name].flatten()[1] = bad
    with pytest.raises(ModelError, match=rf"1 of \d+ values of {name}"):
        check_weights(model)


def test_the_length_of_a_tensor_is_as_free_as_its_first_size() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            assert len([x, x]) == 2
            y: Tensor = self.layer(x.view(len(x), -1)) / len(x)
            return y

    net, length = Flat().eval(), len
    graph = capture(net, torch.randn(2, 3, 4))
    assert graph.dynamic
    assert len is length
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(graph.module(x), net(x))
