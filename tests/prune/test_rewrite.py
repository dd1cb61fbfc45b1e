"""A pruned model that got a rewritten forward is in every other way the model that its user knows."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.errors import ModelError, NotEquivalent
from penjing.graph import capture, find_channels
from penjing.plan import ChannelPlan
from penjing.prune import prune_channels
from penjing.prune.channels import RewrittenWarning
from tests.nets import IMAGE, conv
from tests.oracle import absent, chosen, difference, inputs, randomized

X = inputs(IMAGE, 3, torch.float64)
pytestmark = pytest.mark.filterwarnings("ignore:.*take no part in eval mode")  # some leave layers of ``Written`` uncalled


class Written(nn.Module):
    """Sizes in ``forward``, and all that has a mode of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.again = conv(16, 16)
        self.bn = nn.BatchNorm2d(16)
        self.drop, self.drop2d = nn.Dropout(0.5), nn.Dropout2d(0.5)
        self.head = nn.Linear(16 * 64, 5)
        self.kinds = 16

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x).view(-1, self.kinds, 64).unflatten(2, (8, 8))
        y = self.drop2d(F.relu(self.bn(self.again(y))))
        y = F.dropout(y, 0.5, self.training)
        out: Tensor = self.head(self.drop(y.reshape(-1, 16 * 8 * 8)))
        return out


def rewritten(model: nn.Module, seed: int = 0) -> tuple[nn.Module, ChannelPlan]:
    x = inputs(IMAGE, dtype=torch.float64)
    plan = chosen(find_channels(capture(model, x)), seed=seed)
    with pytest.warns(RewrittenWarning):
        return prune_channels(model, plan, x), plan


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return randomized(Written()).double()


@pytest.fixture(scope="module")
def made(model: nn.Module) -> nn.Module:
    return rewritten(model)[0]


@pytest.fixture
def small(made: nn.Module) -> nn.Module:
    return copy.deepcopy(made)


def test_names_and_modules_are_the_model_s(model: nn.Module, small: nn.Module) -> None:
    assert isinstance(small, Written)
    assert type(small).__name__ == "Written"
    assert list(small.state_dict()) == list(model.state_dict())
    assert [n for n, _ in small.named_modules()] == [n for n, _ in model.named_modules()]
    assert small.again.out_channels == small.bn.num_features == 8


def test_the_model_keeps_its_own_forward(model: nn.Module, made: nn.Module) -> None:
    assert type(model) is Written
    assert type(made) is not Written
    assert model(*X).shape == made(*X).shape == (3, 5)


def test_dropout_drops_in_train_mode_only(small: nn.Module) -> None:
    assert torch.equal(small(*X), small(*X))
    small.train()
    small.enter[1].eval()
    small.bn.eval()
    assert not torch.equal(small(*X), small(*X))
    for layer in (small.drop, small.drop2d):
        layer.eval()
    small.training = False  # what F.dropout was told
    assert torch.equal(small(*X), small.eval()(*X))


def test_each_dropout_asks_its_own_module(small: nn.Module) -> None:
    expected = small(*X)
    for layer in (small.drop, small.drop2d):
        layer.train()
        assert not torch.equal(small(*X), expected)
        layer.eval()
    assert torch.equal(small(*X), expected)


def test_norms_learn_their_statistics_in_train_mode_only(small: nn.Module) -> None:
    before = copy.deepcopy(small.state_dict())
    small(*X)
    assert all(torch.equal(v, before[n]) for n, v in small.state_dict().items())
    small.train()
    small.bn.eval()  # frozen, as many fine-tune
    small(*X)
    after = small.state_dict()
    assert not torch.equal(after["enter.1.running_mean"], before["enter.1.running_mean"])
    assert torch.equal(after["bn.running_mean"], before["bn.running_mean"])
    assert torch.equal(after["bn.running_var"], before["bn.running_var"])


def test_a_norm_without_momentum_counts_its_batches(model: nn.Module) -> None:
    averaging = copy.deepcopy(model)
    averaging.bn.momentum = None
    small = rewritten(rewritten(averaging)[0])[0].train()
    small.bn.running_mean.zero_()
    small(*X)
    once = small.bn.running_mean.clone()
    small(*X)
    assert small.bn.num_batches_tracked == 2
    assert once.count_nonzero()
    torch.testing.assert_close(small.bn.running_mean, once)  # the mean of the same batch twice


@pytest.mark.parametrize("weights", [True, False])
def test_attention_drops_in_train_mode_only(weights: bool) -> None:
    class Attending(Written):
        def __init__(self) -> None:
            super().__init__()
            self.t = nn.MultiheadAttention(16, 2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.enter(x).view(-1, self.kinds, 64).transpose(1, 2)
            y, _ = self.t(y, y, y, need_weights=weights)
            return y.mean((1, 2))

    small, _ = rewritten(randomized(Attending()).double())
    expected = small(*X)
    assert torch.equal(small(*X), expected)
    small.t.train()
    assert not torch.equal(small(*X), small(*X))
    small.t.dropout = 0.0
    torch.testing.assert_close(small(*X), expected)


def test_it_trains(small: nn.Module) -> None:
    small.train()
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-3)
    before = copy.deepcopy(small.state_dict())
    small(*X).square().mean().backward()
    assert all(p.grad is not None for p in small.parameters())
    optimizer.step()
    assert all(not torch.equal(p, before[n]) for n, p in small.named_parameters())


def test_it_is_copied_moved_and_loaded_as_any_module(made: nn.Module) -> None:
    expected = made(*X)
    other = copy.deepcopy(made)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    assert torch.equal(made(*X), expected)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(*X), expected)
    assert other.float()(X[0].float()).dtype == torch.float32
    assert torch.isfinite(other.bfloat16()(X[0].bfloat16())).all()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_will_do(model: nn.Module, batch: int) -> None:
    small, plan = rewritten(model, seed=batch)
    x = inputs(IMAGE, batch, torch.float64)
    with torch.no_grad():
        assert difference(small(*x), absent(model, plan)(*x)) < 1e-9


def test_images_of_another_size_are_refused(made: nn.Module) -> None:
    """Every size that the model asks for is a number in its graph."""
    for other in (copy.deepcopy(made), rewritten(made)[0]):
        with pytest.raises(ModelError, match=r"\[any, 3, 8, 8\]"):
            other(torch.zeros(2, 3, 16, 16, dtype=torch.float64))


def test_what_was_rewritten_is_pruned_again(made: nn.Module) -> None:
    again, plan = rewritten(made, seed=1)
    assert again.again.out_channels == 4
    with torch.no_grad():
        assert difference(again(*X), absent(made, plan)(*X)) < 1e-9
    assert list(again.state_dict()) == list(made.state_dict())


def test_it_is_rewritten_when_asked_for(model: nn.Module) -> None:
    x = inputs(IMAGE, dtype=torch.float64)
    plan = chosen(find_channels(capture(model, x)))
    small = prune_channels(model, plan, x, rewrite=True)  # which warns of nothing
    with torch.no_grad():
        assert difference(small(*X), absent(model, plan)(*X)) < 1e-9
    with pytest.raises(NotEquivalent, match="sizes written into it"):
        prune_channels(model, plan, x, rewrite=False)


def test_a_forward_that_counts_its_batch_is_refused() -> None:
    """It reads for one batch size only: rewritten, it would give wrong outputs for every other."""

    class Counting(Written):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.again(self.enter(x).view(int(x.shape[0]), 16, 8, 8)).flatten(1))
            return out

    model, x = randomized(Counting()).double(), inputs(IMAGE, dtype=torch.float64)
    plan = chosen(find_channels(capture(model, x)))
    for rewrite in (None, True):
        with pytest.raises(NotEquivalent, match="batch size"):
            prune_channels(model, plan, x, rewrite=rewrite)


def test_hooks_of_the_whole_stay(model: nn.Module) -> None:
    hooked, calls = copy.deepcopy(model), []
    hooked.register_forward_hook(lambda _m, _x, y: calls.append(tuple(y.shape)))
    small, _ = rewritten(hooked)
    calls.clear()
    small(*X)
    assert calls == [(3, 5)]


def test_constants_of_the_graph_are_no_part_of_the_state() -> None:
    class Constant(Written):
        def forward(self, x: Tensor) -> Tensor:
            y = self.enter(x).view(-1, 16, 8, 8) * torch.tensor([2.0]).to(x.dtype)
            out: Tensor = self.head(self.again(y).flatten(1))
            return out

    model = randomized(Constant()).double()
    small, plan = rewritten(model)
    assert list(small.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        assert difference(small(*X), absent(model, plan)(*X)) < 1e-9
