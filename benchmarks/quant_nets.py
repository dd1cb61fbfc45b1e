"""Networks that are hard to quantize, each for a reason of its own: python benchmarks/quant_nets.py [NAME ...]

Trained once and kept in runs/benchmarks; a training that was interrupted goes on from its last epoch. On Fashion-MNIST
(Debian's dataset-fashion-mnist) for all but the U-Net, whose frames are drawn (quant_hits.py). MACs for one input:

* ``depthwise``, 4.1 M: inverted residuals with ReLU6. As it is trained here, int8 with one scale a tensor does it no harm;
  ``uneven`` gives the same function in the shape that long training leaves.
* ``depthwise-relu``, 4.1 M: the same with ReLU, begun with the weights of ``depthwise``, so that every channel can be uneven.
* ``norm-last``, 6.8 M: norms behind the ReLU and behind concatenations, which no convolution before them can take in.
* ``squeeze-excite``, 8.6 M: squeeze-excite and hard swish.
* ``unet``, 144 M: an input whose faint part is smaller than one step of int8.

In float, on the 10,000 test images: depthwise 90.83 %, norm-last 91.42 %, squeeze-excite 90.33 %; ``recovered`` of the U-Net on
500 frames: 0.8986. Trained on one core shared with other work, in 829, 473, 802 and 772 s.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from quant_hits import hits as hits
from quant_hits import hits_task
from quant_hits import recovered as recovered
from quant_hits import score as score
from quant_hits import unet as unet
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.data import fashion_batches, fashion_mnist
from penjing.errors import entry
from penjing.files import read_tensors, write_tensors
from penjing.measure import cores, top1
from penjing.task import Task, as_tuple
from penjing.train import Epoch, Training, fit
from penjing.zoo.small import SqueezeExcite

FOLDER = Path(__file__).parent.parent / "runs/benchmarks"
HELD_OUT = 2000  # training images of Fashion-MNIST that choices may be made on


class Inverted(nn.Module):
    """Widen, filter each channel by itself, narrow without an activation; add where the shape allows (arXiv:1801.04381)."""

    def __init__(self, inputs: int, channels: int, stride: int, activation: type[nn.Module], *, times: int = 4) -> None:
        super().__init__()
        hidden = times * inputs
        self.widen = nn.Sequential(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), activation())
        self.filter = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), activation()
        )
        self.narrow = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.adds = stride == 1 and inputs == channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(self.filter(self.widen(x)))
        return x + y if self.adds else y


class Depthwise(nn.Module):
    """MobileNetV2 for small images: ``(N, 1, 28, 28) -> (N, 10)``; clipped at 6, or with plain ReLU."""

    def __init__(self, *, clipped: bool = True) -> None:
        super().__init__()
        act: type[nn.Module] = nn.ReLU6 if clipped else nn.ReLU
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), act())
        self.stage1 = nn.Sequential(Inverted(16, 24, 1, act), Inverted(24, 24, 1, act))
        self.stage2 = nn.Sequential(Inverted(24, 40, 2, act), Inverted(40, 40, 1, act), Inverted(40, 40, 1, act))
        self.last = nn.Sequential(nn.Conv2d(40, 160, 1, bias=False), nn.BatchNorm2d(160), act())
        self.head = nn.Linear(160, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.stage2(self.stage1(self.stem(x))))
        out: Tensor = self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))
        return out


def uneven(model: Depthwise, seed: int, *, octaves: int = 3) -> Depthwise:
    """The same function with channels of very different ranges; a copy, in eval mode.

    What a norm gives is multiplied by a power of two of its channel, drawn from ``2 ** -octaves`` to ``2 ** octaves``, and
    what reads it divided by the same. Wherever a positive factor passes what lies between, which is nothing (the linear
    ends of the blocks, with all that is added to them) or a ReLU, but not a ReLU6. Powers of two make it exact. In
    networks trained for long the ranges of channels differ by themselves (Nagel et al. 2019, arXiv:1906.04721).
    """
    generator = torch.Generator().manual_seed(seed)
    copied = Depthwise(clipped=isinstance(model.stem[2], nn.ReLU6))
    copied.load_state_dict(model.state_dict())
    for norms, readers in _proportional(copied):
        channels = norms[0].num_features
        factor = 2.0 ** torch.randint(-octaves, octaves + 1, (channels,), generator=generator)
        with torch.no_grad():
            for norm in norms:
                norm.weight.mul_(factor)
                norm.bias.mul_(factor)
            for conv in readers:
                conv.weight.div_(factor.view(-1, 1, 1, 1) if conv.groups > 1 else factor.view(1, -1, 1, 1))
    return copied.eval()


def _proportional(model: Depthwise) -> list[tuple[list[nn.BatchNorm2d], list[nn.Conv2d]]]:
    """Norms whose outputs are added up, with all the convolutions that read them, proportionally."""
    one, two = [[b for b in stage if isinstance(b, Inverted)] for stage in (model.stage1, model.stage2)]
    sums = [(one, [*one[1:], two[0]]), (two, two[1:])]
    found = [([_norm(b.narrow) for b in given], [_conv(b.widen) for b in read]) for given, read in sums]
    found[1][1].append(_conv(model.last))
    if isinstance(model.stem[2], nn.ReLU):
        found.append(([_norm(model.stem)], [_conv(one[0].widen)]))
        for block in (*one, *two):
            found.append(([_norm(block.widen)], [_conv(block.filter)]))
            found.append(([_norm(block.filter)], [_conv(block.narrow)]))
    return found


def _conv(part: nn.Sequential) -> nn.Conv2d:
    assert isinstance(part[0], nn.Conv2d)
    return part[0]


def _norm(part: nn.Sequential) -> nn.BatchNorm2d:
    assert isinstance(part[1], nn.BatchNorm2d)
    return part[1]


class Dense(nn.Module):
    """Every layer reads all before it through a norm of its own (arXiv:1608.06993): ``C -> C + growth * layers`` channels."""

    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        widths = [inputs + growth * i for i in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths)
        self.convs = nn.ModuleList(nn.Conv2d(w, growth, 3, padding=1, bias=False) for w in widths)

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return x


class NormLast(nn.Module):
    """Norms that no convolution before them can take in: ``(N, 1, 28, 28) -> (N, 10)``.

    In the stem and between the dense stages they come after the ReLU; within these, after a concatenation.
    """

    def __init__(self, *, width: int = 16, growth: int = 12, layers: int = 4) -> None:
        super().__init__()
        inner, between = width + growth * layers, 3 * width
        self.stem = nn.Sequential(*_norm_last(1, width, 3), *_norm_last(width, width, 3))
        self.dense1 = Dense(width, growth, layers)
        self.between = nn.Sequential(*_norm_last(inner, between, 1))
        self.dense2 = Dense(between, growth, layers)
        self.norm = nn.BatchNorm2d(between + growth * layers)
        self.head = nn.Linear(between + growth * layers, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense1(F.max_pool2d(self.stem(x), 2))
        y = self.dense2(F.avg_pool2d(self.between(y), 2))
        out: Tensor = self.head(F.adaptive_avg_pool2d(F.relu(self.norm(y)), 1).flatten(1))
        return out


def _norm_last(inputs: int, channels: int, size: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, channels, size, padding=size // 2), nn.ReLU(), nn.BatchNorm2d(channels)


class Gated(nn.Module):
    """A full 3x3 convolution that widens, a gate, a narrow end (arXiv:2104.00298); added where the shape allows."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        hidden = 2 * inputs
        self.widen = nn.Sequential(nn.Conv2d(inputs, hidden, 3, stride, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.gate = SqueezeExcite(hidden, hidden // 4)
        self.narrow = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.adds = stride == 1 and inputs == channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(self.gate(self.widen(x)))
        return x + y if self.adds else y


class SqueezeExciteNet(nn.Module):
    """Squeeze-excite and hard swish: ``(N, 1, 28, 28) -> (N, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        widths = ((16, 24, 2), (24, 24, 1), (24, 48, 2), (48, 48, 1), (48, 48, 1))
        self.blocks = nn.Sequential(*(Gated(*w) for w in widths))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))
        return out


def fashion_task() -> Task:
    """All of Fashion-MNIST; ``confirm`` holds the 10,000 test images, ``search`` 2,000 of the others."""
    data = fashion_mnist()
    return Task(
        train=fashion_batches(data.train[:-HELD_OUT], 128, augment=True),
        search=fashion_batches(data.train[-HELD_OUT:], 250),
        confirm=fashion_batches(data.test, 250),
        metric=top1,
    )


@dataclass(frozen=True)
class Recipe:
    """How a network is made."""

    build: Callable[[], nn.Module]
    task: Callable[[], Task]
    epochs: int
    settings: Training
    start: str | None = None  # the network whose weights it begins with


FASHION = Training(lr=0.1)
RECIPES = {
    "depthwise": Recipe(Depthwise, fashion_task, 5, FASHION),
    "norm-last": Recipe(NormLast, fashion_task, 5, FASHION),
    "squeeze-excite": Recipe(SqueezeExciteNet, fashion_task, 6, Training(lr=0.05)),
    "depthwise-relu": Recipe(lambda: Depthwise(clipped=False), fashion_task, 3, Training(lr=0.03), start="depthwise"),
    "unet": Recipe(unet, hits_task, 10, Training(lr=0.02, weight_decay=1e-5)),
}


@dataclass(frozen=True)
class Trained:
    """A network with what it is for, in eval mode."""

    model: nn.Module
    task: Task
    example: Tensor  # one batch of inputs
    seconds: float  # that its training took


def trained(name: str, folder: Path = FOLDER) -> Trained:
    """The network of that name: from its file in ``folder``, or trained now and put there.

    Weights are kept, and so are used, in 16 bits; norms and biases in 32. A training that was interrupted goes on from its
    last epoch.

    Raises:
        RecipeError: There is none of that name.
        DataError: Fashion-MNIST is not installed.
    """
    recipe = entry(RECIPES, name, "network")
    path, task = folder / f"{name}.safetensors", recipe.task()
    if not path.exists():
        _train(name, recipe, task, path)
    tensors, about = read_tensors(path)
    model = recipe.build()
    model.load_state_dict({k: t.float() if t.is_floating_point() else t for k, t in tensors.items()})
    inputs, _ = next(iter(task.search))
    return Trained(model.eval(), task, as_tuple(inputs)[0], about["seconds"])


def _train(name: str, recipe: Recipe, task: Task, path: Path) -> None:
    torch.manual_seed(recipe.settings.seed)
    model = recipe.build()
    if recipe.start:
        model.load_state_dict(trained(recipe.start, path.parent).model.state_dict())
    epochs: list[Epoch] = []

    def tell(epoch: Epoch) -> None:
        epochs.append(epoch)
        print(f"{time.strftime('%H:%M:%S')} {name}: {epoch}", file=sys.stderr, flush=True)

    checkpoint = path.with_suffix(".training.safetensors")
    model = fit(model, task, epochs=recipe.epochs, settings=recipe.settings, checkpoint=checkpoint, on_epoch=tell)
    tensors = {k: t.half() if t.ndim > 1 else t for k, t in model.state_dict().items()}
    write_tensors(path, tensors, {"epochs": recipe.epochs, "seconds": round(sum(e.seconds for e in epochs), 1)})
    checkpoint.unlink()


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; without one, all")
    given = parser.parse_args(words)
    torch.set_num_threads(cores())
    for name in given.names or RECIPES:
        net = trained(name)
        print(f"{name}: {net.task.metric(net.model, net.task.confirm).value:.4f}, trained in {net.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
