"""Small networks with couplings that the zoo does not have; ``tests/oracle.py`` holds what is cut of them to account."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Make = Callable[[], nn.Module]
Shapes = tuple[tuple[int, ...], ...]  # of the inputs, without the batch
IMAGE: Shapes = ((3, 8, 8),)
SHAPES: dict[str, Shapes] = {  # of those that do not take an image
    "conv1d": ((3, 16),),
    "conv3d": ((3, 6, 6, 6),),
    "two_inputs": ((3, 12), (4,)),
    "tied_decoder": ((12,),),
    "embedded": ((3, 8, 8), (1,)),
}


class Wired(nn.Module):
    """Named layers and a function that says how they are wired."""

    def __init__(self, wiring: Callable[[Any, Tensor], Any], layers: dict[str, nn.Module | nn.Parameter]) -> None:
        super().__init__()
        self.wiring = wiring
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.wiring(self, x)


class WiredPair(Wired):
    """The same for two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.wiring(self, x, y)


def net(wiring: Callable[[Any, Tensor], Any], **layers: nn.Module | nn.Parameter) -> Make:
    """A network of one input."""
    return lambda: Wired(wiring, copy.deepcopy(layers))


def pair(wiring: Callable[[Any, Tensor, Tensor], Any], **layers: nn.Module | nn.Parameter) -> Make:
    """A network of two inputs."""
    return lambda: WiredPair(wiring, copy.deepcopy(layers))  # type: ignore[arg-type]


def conv(inputs: int, outputs: int, kernel: int = 3, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **settings)


def pooled(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2)


def scale(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(*shape))


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel shuffle (Zhang et al. 2018, arXiv:1707.01083), as most write it."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def interleaved(m: Any, x: Tensor) -> Tensor:
    """Odd channels go through a layer, even ones around it, as ShuffleNetV2's authors write it (arXiv:1807.11164)."""
    n, c, h, w = x.shape
    x = x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
    return torch.cat([x[0], F.relu(m.c(x[1]))], 1)


def less_its_group(_m: Any, x: Tensor) -> Tensor:
    """Channels less the sum of their group, for four groups of whatever size."""
    x, shape = x.view(len(x) * 4, -1, *x.shape[2:]), x.shape
    return (x - x.sum(1, keepdim=True)).view(shape)


def focus(_m: Any, x: Tensor) -> Tensor:
    """Every second pixel in four phases, one after the other (YOLOv5)."""
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def in_windows(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer that sees windows of 4x4 pixels one by one."""
    n, c, h, w = x.shape
    y = layer(x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).flatten(0, 2))
    return y.view(n, h // 4, w // 4, -1, 4, 4).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # type: ignore[no-any-return]


def channels_last(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def mean_and_peak(x: Tensor) -> Tensor:
    return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


def mixed_by_softmax(m: Any, x: Tensor) -> Tensor:
    """Two paths, weighed by learned shares."""
    share = torch.softmax(m.alpha, 0)
    return share[0] * m.c(x) + share[1] * x


def in_half_precision(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out: Tensor = layer(x)
    return out.to(x.dtype)


def attended(m: Any, x: Tensor, heads: int = 2) -> Tensor:
    """Softmax attention over the positions (Vaswani et al. 2017, arXiv:1706.03762)."""
    n, _, h, w = x.shape
    q, k, v = (layer(x).flatten(2).unflatten(1, (heads, -1)) for layer in (m.q, m.k, m.v))
    weights = torch.softmax(q.transpose(2, 3) @ k, dim=-1)
    return (v @ weights.transpose(2, 3)).flatten(1, 2).unflatten(2, (h, w)).reshape(n, -1, h, w)


def standardized(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Weight standardization (Qiao et al. 2019, arXiv:1903.10520)."""
    w = layer.weight
    w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
    return F.conv2d(x, w, layer.bias, padding=1)


def with_coordinates(x: Tensor) -> Tensor:
    """Two channels that say where a pixel is (Liu et al. 2018, arXiv:1807.03247)."""
    n, _, h, w = x.shape
    rows = torch.linspace(-1, 1, h, dtype=x.dtype).view(1, 1, h, 1).expand(n, 1, h, w)
    cols = torch.linspace(-1, 1, w, dtype=x.dtype).view(1, 1, 1, w).expand(n, 1, h, w)
    return torch.cat([x, rows, cols], 1)


def eca(m: Any, x: Tensor) -> Tensor:
    """A gate from a convolution along the channels (Wang et al. 2020, arXiv:1910.03151)."""
    return x * torch.sigmoid(m.along(x.mean((2, 3)).unsqueeze(1))).transpose(1, 2).unsqueeze(-1)


def csp(m: Any, x: Tensor) -> Tensor:
    """One half goes through a layer, the other around it (Wang et al. 2019, arXiv:1911.11929)."""
    a, b = x.chunk(2, dim=1)
    return torch.cat([a, F.relu(m.c(b))], 1)


def head(channels: int, classes: int = 5) -> nn.Linear:
    return nn.Linear(channels, classes)


class TwoNames(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.first = conv(16, 16)
        self.second = conv(16, 16)
        self.second.weight = self.first.weight
        self.second.bias = self.first.bias
        self.head = head(16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(pooled(self.second(F.relu(self.first(F.relu(self.stem(x)))))))
        return out


class TiedDecoder(nn.Module):
    """An autoencoder that decodes with the transpose of the weight it encodes with."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.encode, self.after = nn.Linear(12, 16), nn.Linear(16, 8), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.encode(F.relu(self.before(x))))
        out: Tensor = self.after(F.relu(F.linear(code, self.encode.weight.t())))
        return out


class Unregistered(nn.Module):
    """A constant of one value a channel that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 16), conv(16, 16), head(16)
        self.scale = torch.linspace(0.5, 2, 16).view(1, 16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(pooled(self.second(F.relu(self.first(x)) * self.scale.to(x.dtype))))
        return out


class RegisteredMask(nn.Module):
    """A buffer of one value a channel, which is not in the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 16), conv(16, 16), head(16)
        self.register_buffer("gate", torch.linspace(0.5, 2, 16).view(1, 16, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(pooled(self.second(F.relu(self.first(x)) * self.gate)))
        return out


class UNet(nn.Module):
    """Down, up, and what was there before beside it (Ronneberger et al. 2015, arXiv:1505.04597): image to image."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.bn = conv(3, 16), nn.BatchNorm2d(16)
        self.down, self.deep, self.up = conv(16, 32, stride=2), conv(32, 32), nn.ConvTranspose2d(32, 16, 2, 2)
        self.join, self.leave = conv(32 + 16 + 16, 16), conv(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.bn(self.enter(x)))
        deep = F.relu(self.deep(F.relu(self.down(first))))
        grown = F.interpolate(deep, scale_factor=2, mode="nearest")
        out: Tensor = self.leave(F.relu(self.join(torch.cat([grown, self.up(deep), first], 1))))
        return out


class OptionA(nn.Module):
    """A shortcut that makes more channels out of zeros (He et al. 2016, arXiv:1512.03385, option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.conv, self.head = conv(3, 16), conv(16, 32, stride=2), head(32)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.enter(x))
        out: Tensor = self.head(pooled(F.relu(self.conv(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))))
        return out


def _between(middle: Callable[[Any, Tensor], Tensor], width: int = 16, /, **layers: nn.Module | nn.Parameter) -> Make:
    """Convolution, ``middle``, convolution, head; ``middle`` turns 16 channels into ``width``."""
    return net(
        lambda m, x: m.head(pooled(F.relu(m.b(middle(m, F.relu(m.a(x))))))),
        a=conv(3, 16),
        b=conv(width, 16),
        head=head(16),
        **layers,
    )


Step = tuple[Callable[[Any, Tensor], Tensor], dict[str, nn.Module]]  # 16 channels to 16, and its layers

# What networks are put together from by lot, each alone in the tables below.
STEPS: dict[str, Step] = {
    "conv": (lambda m, x: m.c(x), {"c": conv(16, 16)}),
    "grouped": (lambda m, x: m.c(x), {"c": conv(16, 16, groups=4)}),
    "depthwise": (lambda m, x: m.c(x), {"c": conv(16, 16, groups=16)}),
    "norm": (lambda m, x: F.relu(m.n(x)), {"n": nn.BatchNorm2d(16)}),
    "unknown": (lambda m, x: m.n(x), {"n": nn.GroupNorm(4, 16)}),
    "beside unknown": (lambda m, x: m.n(x) + m.c(x), {"n": nn.GroupNorm(4, 16), "c": conv(16, 16)}),
    "residual": (lambda m, x: x + m.c(x), {"c": conv(16, 16)}),
    "dense": (lambda m, x: m.d(torch.cat([x, m.c(x)], 1)), {"c": conv(16, 8), "d": conv(24, 16)}),
    "squeeze": (lambda m, x: x * torch.sigmoid(m.c(x.mean((2, 3), keepdim=True))), {"c": conv(16, 16, 1)}),
    "shuffle": (lambda _m, x: shuffled(x, 4), {}),
    "module shuffle": (lambda m, x: m.s(x), {"s": nn.ChannelShuffle(2)}),
    "csp": (csp, {"c": conv(8, 8)}),
    "gated": (lambda m, x: m.c(torch.mul(*x.chunk(2, 1))), {"c": conv(8, 16)}),
    "swapped": (lambda _m, x: torch.cat(x.chunk(2, 1)[::-1], 1), {}),
    "summed halves": (lambda m, x: m.c(x.view(len(x), 2, x.shape[1] // 2, *x.shape[2:]).sum(1)), {"c": conv(8, 16)}),
    "pixels": (lambda _m, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), {}),
    "last": (lambda m, x: channels_last(m.l, x), {"l": nn.Linear(16, 16)}),
    "picked": (lambda _m, x: x * torch.sigmoid(x[:, :1]), {}),
    "mirrored": (lambda _m, x: x.flip(3), {}),
    "windows": (lambda m, x: in_windows(m.c, x), {"c": conv(16, 16)}),
}


def chain(*steps: str) -> Make:
    """A network of these steps, one after the other, and around all of them a shortcut."""

    def wiring(m: Any, x: Tensor) -> Tensor:
        y = first = F.relu(m.a(x))
        for i, step in enumerate(steps):
            y = STEPS[step][0](m.steps[i], y)
        return m.head(pooled(y + first))  # type: ignore[no-any-return]

    layers = nn.ModuleList(nn.ModuleDict(copy.deepcopy(STEPS[s][1])) for s in steps)
    return net(wiring, a=conv(3, 16), steps=layers, head=head(16))


# Those in which the channels of the first layer must be cut: a labelling that froze everything would pass any oracle.
CUTTABLE: dict[str, Make] = {
    "plain": _between(lambda _m, x: x),
    "grouped": _between(lambda m, x: F.relu(m.g(x)), 32, g=conv(16, 32, groups=4)),
    "grouped_by_four_then_two": (
        _between(lambda m, x: m.g2(F.relu(m.g1(x))), g1=conv(16, 16, groups=4), g2=conv(16, 16, groups=2))),
    "concatenated_then_grouped": (
        _between(lambda m, x: m.g(torch.cat([x, m.c(x)], 1)), 24, c=conv(16, 8), g=conv(24, 24, groups=4))),
    "concatenated_then_depthwise": (
        _between(lambda m, x: m.g(torch.cat([x, m.c(x)], 1)), 48, c=conv(16, 8), g=conv(24, 48, groups=24))),
    "shuffled_then_grouped": (
        _between(lambda m, x: m.g2(shuffled(F.relu(m.g1(x)), 4)), g1=conv(16, 16, groups=4), g2=conv(16, 16, groups=4))),
    "shuffled_then_plain": _between(lambda m, x: shuffled(F.relu(m.g(x)), 4), g=conv(16, 16, groups=4)),
    "shuffled_by_four_then_two": (
        _between(lambda m, x: m.g2(shuffled(shuffled(F.relu(m.g1(x)), 4), 2)),
                 g1=conv(16, 16, groups=4), g2=conv(16, 16, groups=2))),
    "gated_halves": _between(lambda _m, x: torch.mul(*x.chunk(2, 1)), 8),
    "csp": _between(csp, c=conv(8, 8)),
    "parts_swapped": _between(lambda _m, x: torch.cat(x.chunk(2, 1)[::-1], 1) + x),
    "split_attention": _between(lambda _m, x: x.view(len(x), 2, x.shape[1] // 2, *x.shape[2:]).sum(1), 8),
    "rows_from_channels": _between(lambda _m, x: x.view(len(x), x.shape[1] // 2, 2 * x.shape[2], x.shape[3]), 8),
    "groups_as_batch": (
        _between(lambda m, x: m.c(x.view(len(x) * 4, x.shape[1] // 4, *x.shape[2:])).view(len(x), -1, *x.shape[2:]),
                 c=conv(4, 4))),
    "pixel_shuffle": _between(lambda _m, x: F.pixel_shuffle(x, 2), 4),
    "pixel_shuffle_and_back": _between(lambda _m, x: F.pixel_unshuffle(F.relu(F.pixel_shuffle(x, 2)), 2)),
    "pixel_unshuffle": _between(lambda _m, x: F.pixel_unshuffle(x, 2), 64),
    "focus": _between(focus, 64),
    "windows": _between(lambda m, x: in_windows(m.c, x), c=conv(16, 16)),
    "sliced_to_its_size": _between(lambda m, x: torch.cat([x, m.d(x)], 1)[:, :32], 32, d=conv(16, 16, groups=16)),
    "transposed": _between(lambda m, x: F.relu(m.t(x)), 8, t=nn.ConvTranspose2d(16, 8, 2, 2)),
    "conv1d": (
        net(lambda m, x: m.head(pooled(m.b(F.max_pool1d(F.pad(F.relu(m.n(m.a(x))), (2, 0)), 2)))),
            a=nn.Conv1d(3, 16, 3), n=nn.BatchNorm1d(16), b=nn.Conv1d(16, 16, 3), head=head(16))),
    "conv3d": (
        net(lambda m, x: m.head(pooled(m.b(F.max_pool3d(F.relu(m.n(m.a(x))), 2)))),
            a=nn.Conv3d(3, 16, 3), n=nn.BatchNorm3d(16), b=nn.Conv3d(16, 16, 1), head=head(16))),
    "rows_as_channels": (
        net(lambda m, x: m.head(m.b(F.relu(m.a(x)).flatten(1, 2)).mean(2)),
            a=conv(3, 8), b=nn.Conv1d(64, 16, 3), head=head(16))),
    "used_twice": _between(lambda m, x: F.relu(m.again(F.relu(m.again(x)))), again=conv(16, 16)),
    "two_names": TwoNames,
    "layer_scale": _between(lambda m, x: x + m.s * m.c(x), s=scale(16, 1, 1), c=conv(16, 16)),
    "registered_mask": RegisteredMask,
    "softmax_attention": (
        _between(lambda m, x: x + m.o(attended(m, x)),
                 q=conv(16, 8, 1), k=conv(16, 8, 1), v=conv(16, 16, 1), o=conv(16, 16, 1))),
    "two_inputs": (
        pair(lambda m, x, y: m.head(pooled(m.b(F.relu(m.a(x) + m.c(y).unsqueeze(-1))))),
             a=nn.Conv1d(3, 16, 3), c=nn.Linear(4, 16), b=nn.Conv1d(16, 16, 3), head=head(16))),
    "dict_output": (
        net(lambda m, x: {"classes": m.head(pooled(m.b(m.a(x)))), "map": m.c(F.relu(m.a(x)))},
            a=conv(3, 16), b=conv(16, 16), c=conv(16, 2), head=head(16))),
    "tuple_output": net(lambda m, x: (m.b(m.a(x)), (m.c(F.relu(m.a(x))),)), a=conv(3, 16), b=conv(16, 4), c=conv(16, 2)),
    "unet": UNet,
    "pre_activation": (
        _between(lambda m, x: x + m.d(F.relu(m.n2(m.c(F.relu(m.n1(x)))))),
                 n1=nn.BatchNorm2d(16), c=conv(16, 16), n2=nn.BatchNorm2d(16), d=conv(16, 16))),
    "norm_after_flatten": (
        net(lambda m, x: m.head(m.n(F.relu(m.b(F.relu(m.a(x)))).flatten(1))),
            a=conv(3, 8), b=conv(8, 8, stride=2), n=nn.BatchNorm1d(8 * 16), head=head(8 * 16))),
    "norm_without_scale": _between(lambda m, x: m.n(x), n=nn.BatchNorm2d(16, affine=False)),
    "dropout": _between(lambda m, x: m.d2(m.d1(x)), d1=nn.Dropout(0.5), d2=nn.Dropout2d(0.5)),
    "in_place": (
        net(lambda m, x: m.head(pooled(m.b(m.r(m.n(m.a(x))).mul_(2).add_(1)))),
            a=conv(3, 16), n=nn.BatchNorm2d(16), r=nn.ReLU(inplace=True), b=conv(16, 16), head=head(16))),
    "channels_last_linear": _between(lambda m, x: channels_last(m.l, x), 8, l=nn.Linear(16, 8)),
    "mean_and_peak": (
        net(lambda m, x: m.head(mean_and_peak(F.relu(m.a(x)))), a=conv(3, 16), head=head(32))),
    "padded_by_itself": (
        _between(lambda m, x: m.c(F.pad(x, (1, 1, 1, 1), mode="reflect")), c=conv(16, 16, padding_mode="circular"))),
    "enlarged": _between(lambda _m, x: F.interpolate(x, scale_factor=2, mode="bilinear")),
}  # fmt: skip

# Those that may be cut or left whole, but never cut wrongly.
AWKWARD: dict[str, Make] = {
    "module_shuffle_then_plain": _between(lambda m, x: m.s(x), s=nn.ChannelShuffle(4)),
    "module_shuffle_then_grouped": (
        _between(lambda m, x: m.g2(m.s(F.relu(m.g1(x)))),
                 s=nn.ChannelShuffle(4), g1=conv(16, 16, groups=4), g2=conv(16, 16, groups=4))),
    "interleaved": _between(interleaved, c=conv(8, 8)),
    "sliced": _between(lambda m, x: torch.cat([m.c(x[:, :8]), x[:, 8:]], 1), c=conv(8, 8)),
    "one_channel_picked": _between(lambda _m, x: x * torch.sigmoid(x[:, 3:4])),
    "channels_selected": _between(lambda _m, x: x.index_select(1, torch.tensor([0, 2, 4, 5])), 4),
    "positions_selected": _between(lambda _m, x: x.index_select(3, torch.tensor([0, 2, 4]))),
    "flipped": _between(lambda m, x: m.c(x) + m.c(x.flip(3)).flip(-1), c=conv(16, 16)),
    "flipped_channels": _between(lambda _m, x: x + x.flip(1)),
    "rolled": _between(lambda _m, x: torch.roll(x, (1, 2), (2, 3))),
    "repeated": _between(lambda _m, x: x.repeat(1, 2, 1, 1), 32),
    "split_unequally": _between(lambda m, x: torch.cat([m.c((p := x.split([4, 12], 1))[1]), p[0]], 1), c=conv(12, 12)),
    "three_parts": _between(lambda _m, x: torch.cat(x.chunk(3, 1)[::-1], 1)),
    "maxout": _between(lambda _m, x: x.view(len(x), x.shape[1] // 2, 2, *x.shape[2:]).amax(2), 8),
    "transposed_grouped": _between(lambda m, x: m.t(x), t=nn.ConvTranspose2d(16, 16, 2, 2, groups=4)),
    "prelu": _between(lambda m, x: m.p(m.c(x)), c=conv(16, 16), p=nn.PReLU(16)),
    "eca": _between(eca, along=nn.Conv1d(1, 1, 3, padding=1, bias=False)),
    "spatial_attention": _between(lambda m, x: x * torch.sigmoid(m.s(m.c(x))), c=conv(16, 8), s=conv(8, 1)),
    "option_a": OptionA,
    "norm_beside_shortcut": (
        _between(lambda m, x: m.n(m.c(x)) + m.d(x), n=nn.GroupNorm(4, 16), c=conv(16, 16), d=conv(16, 16, 1))),
    "norm_and_layer_scale": _between(lambda m, x: m.n(x) * m.s, n=nn.GroupNorm(4, 16), s=scale(16, 1, 1)),
    "layer_norm": _between(lambda m, x: channels_last(m.n, x), n=nn.LayerNorm(16)),
    "group_norm": _between(lambda m, x: m.n(x), n=nn.GroupNorm(4, 16)),
    "instance_norm_with_statistics": (
        _between(lambda m, x: m.n(x), n=nn.InstanceNorm2d(16, affine=True, track_running_stats=True))),
    "batch_statistics": _between(lambda m, x: m.n(x), n=nn.BatchNorm2d(16, track_running_stats=False)),
    "norm_of_positions": (
        _between(lambda m, x: m.n(x.flatten(2).transpose(1, 2)).transpose(1, 2).view(x.shape), n=nn.BatchNorm1d(64))),
    "unit_length": _between(lambda _m, x: F.normalize(x, dim=1)),
    "divided_by_norm": _between(lambda _m, x: x / (x.norm() + 1)),
    "softmax_over_channels": _between(lambda _m, x: x * torch.softmax(x, 1)),
    "running_sum": _between(lambda _m, x: x.cumsum(1)),
    "tied_decoder": TiedDecoder,
    "unregistered_constant": Unregistered,
    "constant_made_inside": _between(lambda _m, x: x * torch.ones(16, 1, 1)),
    "counted": _between(lambda _m, x: x * torch.arange(x.shape[1]).view(1, -1, 1, 1)),
    "coordinates": _between(lambda _m, x: with_coordinates(x), 18),
    "learned_map": _between(lambda m, x: x + F.interpolate(m.map, scale_factor=2.0), map=scale(1, 16, 4, 4)),
    "float_inside": _between(lambda m, x: m.c(x.float()), c=conv(16, 16)),
    "autocast_inside": _between(lambda m, x: in_half_precision(m.c, x), c=conv(16, 16)),
    "standardized_weights": _between(lambda m, x: standardized(m.c, x), c=conv(16, 16)),
    "weight_norm": _between(lambda m, x: m.c(x), c=nn.utils.parametrizations.weight_norm(conv(16, 16))),
    "mixed_by_softmax": _between(mixed_by_softmax, alpha=scale(2), c=conv(16, 16)),
    "scaled_by_mean_weight": _between(lambda m, x: x * m.c.weight.mean() + m.c(x), c=conv(16, 16)),
    "parameter_as_query": (
        _between(lambda m, x: x * torch.sigmoid(F.linear(m.query, m.l.weight))[:, :, None, None],
                 query=scale(1, 8), l=nn.Linear(8, 16, bias=False))),
    "computed_kernel": (
        _between(lambda m, x: F.conv2d(x, m.k(x.mean((0, 2, 3))).view(16, 16, 1, 1)), k=nn.Linear(16, 256))),
    "bilinear_pooling": (
        net(lambda m, x: m.head(torch.einsum("nchw,ndhw->ncd", *[F.relu(m.a(x))] * 2).flatten(1)),
            a=conv(3, 8), head=head(64))),
    "rows_filtered": _between(lambda m, x: m.c(x.transpose(1, 2)).transpose(1, 2), c=conv(8, 8)),
    "mixer": (
        _between(lambda m, x: x + m.l2(F.gelu(m.l1(x.flatten(2)))).view(x.shape), l1=nn.Linear(64, 32), l2=nn.Linear(32, 64))),
    "unfolded": (
        net(lambda m, x: m.head(m.l(F.unfold(F.relu(m.a(x)), 3, padding=1).transpose(1, 2)).mean(1)),
            a=conv(3, 8), l=nn.Linear(72, 16), head=head(16))),
    "embedded": (
        pair(lambda m, x, y: m.head(pooled(m.b(F.relu(m.a(x) + m.e((y * 0).long().squeeze(1))[:, :, None, None])))),
             a=conv(3, 16), e=nn.Embedding(4, 16), b=conv(16, 16), head=head(16))),
}  # fmt: skip

# Those that say with numbers of their own how many channels there are: no wrong network may be handed back.
UNWILLING: dict[str, Make] = {
    "view": _between(lambda _m, x: x.view(len(x), 16, -1).unflatten(2, (8, 8))),
    "view_and_mean": net(lambda m, x: m.head(F.relu(m.a(x)).view(len(x), 16, -1).mean(2)), a=conv(3, 16), head=head(16)),
    "view_flat": net(lambda m, x: m.head(F.relu(m.a(x)).view(-1, 16 * 64)), a=conv(3, 16), head=head(16 * 64)),
    "split": _between(lambda m, x: torch.cat([m.c((p := x.split([8, 8], 1))[0]), p[1]], 1), c=conv(8, 8)),
    "expand": _between(lambda m, x: x + m.c(x).mean((2, 3), keepdim=True).expand(-1, 16, 8, 8), c=conv(16, 16)),
    "groups": _between(lambda m, x: F.conv2d(x, m.c.weight, padding=1, groups=16), c=conv(16, 16, groups=16)),
    "unflatten": _between(lambda m, x: m.u(x).sum(1), 4, u=nn.Unflatten(1, (4, 4))),
    "multihead_attention": (
        net(lambda m, x: m.head(m.t(*[F.relu(m.a(x)).flatten(2).transpose(1, 2)] * 3, need_weights=False)[0].mean(1)),
            a=conv(3, 8), t=nn.MultiheadAttention(8, 2, batch_first=True), head=head(8))),
    "times_the_count": _between(lambda _m, x: x * x.shape[1]),
    "deinterleaved": (
        _between(lambda _m, x: x.view(len(x), x.shape[1] // 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape))),
    "four_groups_as_batch": _between(less_its_group),
    "dropout_always_on": _between(lambda _m, x: F.dropout(x, 0.5)),
}  # fmt: skip
