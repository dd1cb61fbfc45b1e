"""Small networks with couplings that the zoo does not have, and the reference that a cut is held against.

The reference is the user's own module with zeros where a layer sums over the channels that the plan drops: it neither
looks at the exported graph nor at what the labelling says about consumers, so it shares nothing with what it judges.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from penjing.graph import capture, find_channels
from penjing.plan import ChannelPlan
from penjing.prune.decide import lowest_dropped
from penjing.score import l2_norm

Make = Callable[[], nn.Module]
Shapes = tuple[tuple[int, ...], ...]  # of the inputs, without the batch
IMAGE: Shapes = ((3, 8, 8),)


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


def split_in_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Even and odd channels, as ShuffleNetV2's authors write it (Ma et al. 2018, arXiv:1807.11164)."""
    n, c, h, w = x.shape
    x = x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
    return x[0], x[1]


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
    return torch.cat([a, F.relu(m.inner(b))], 1)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.chunk(2, dim=1)  # type: ignore[return-value]


def head(channels: int, classes: int = 5) -> nn.Linear:
    return nn.Linear(channels, classes)


class Doubled(nn.Module):
    """The same layer under two names."""

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


class Masked(nn.Module):
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


def _interleaved(m: Any, x: Tensor) -> Tensor:
    a, b = split_in_pairs(F.relu(m.a(x)))
    return m.head(pooled(m.b(torch.cat([a, F.relu(m.inner(b))], 1))))


def _normalized(layer: nn.Module) -> Make:
    return net(lambda m, x: m.head(pooled(m.b(F.relu(m.norm(m.a(x)))))), a=conv(3, 16), norm=layer, b=conv(16, 16), head=head(16))


def _between(middle: Callable[[Any, Tensor], Tensor], width: int = 16, /, **layers: nn.Module | nn.Parameter) -> Make:
    """Convolution, ``middle``, convolution, head; ``middle`` turns 16 channels into ``width``."""
    return net(
        lambda m, x: m.head(pooled(F.relu(m.b(middle(m, F.relu(m.a(x))))))), a=conv(3, 16), b=conv(width, 16), head=head(16), **layers
    )


# Those in which something must be cut: a labelling that froze everything would pass any oracle.
CUTTABLE: dict[str, tuple[Make, Shapes]] = {
    "plain": (_between(lambda _m, x: x), IMAGE),
    "grouped": (_between(lambda m, x: F.relu(m.g(x)), 32, g=conv(16, 32, groups=4)), IMAGE),
    "depthwise_doubling": (_between(lambda m, x: m.g(x), 32, g=conv(16, 32, groups=16)), IMAGE),
    "shuffle_then_grouped": (
        _between(lambda m, x: m.g2(shuffled(F.relu(m.g1(x)), 4)), g1=conv(16, 16, groups=4), g2=conv(16, 16, groups=4)), IMAGE),
    "shuffle_then_plain": (_between(lambda m, x: shuffled(F.relu(m.g(x)), 4), g=conv(16, 16, groups=4)), IMAGE),
    "gated_halves": (_between(lambda _m, x: torch.mul(*halves(x)), 8), IMAGE),
    "csp": (_between(csp, inner=conv(8, 8)), IMAGE),
    "split_attention": (_between(lambda _m, x: x.view(len(x), 2, x.shape[1] // 2, *x.shape[2:]).sum(1), 8), IMAGE),
    "pixel_shuffle": (_between(lambda _m, x: F.pixel_shuffle(x, 2), 4), IMAGE),
    "pixel_unshuffle": (_between(lambda _m, x: F.pixel_unshuffle(x, 2), 64), IMAGE),
    "transposed": (_between(lambda m, x: F.relu(m.t(x)), 8, t=nn.ConvTranspose2d(16, 8, 2, 2)), IMAGE),
    "conv1d": (
        net(lambda m, x: m.head(pooled(m.b(F.max_pool1d(F.relu(m.n(m.a(x))), 2)))),
            a=nn.Conv1d(3, 16, 3), n=nn.BatchNorm1d(16), b=nn.Conv1d(16, 16, 3), head=head(16)), ((3, 16),)),
    "conv3d": (
        net(lambda m, x: m.head(pooled(m.b(F.max_pool3d(F.relu(m.n(m.a(x))), 2)))),
            a=nn.Conv3d(3, 16, 3), n=nn.BatchNorm3d(16), b=nn.Conv3d(16, 16, 1), head=head(16)), ((3, 6, 6, 6),)),
    "used_twice": (_between(lambda m, x: F.relu(m.again(F.relu(m.again(x)))), again=conv(16, 16)), IMAGE),
    "residual_twice": (_between(lambda m, x: x + m.again(x + F.relu(m.again(x))), again=conv(16, 16)), IMAGE),
    "layer_scale": (_between(lambda m, x: x + m.s * m.c(x), s=scale(16, 1, 1), c=conv(16, 16)), IMAGE),
    "registered_mask": (Masked, IMAGE),
    "softmax_attention": (
        _between(lambda m, x: x + m.o(attended(m, x)), q=conv(16, 8, 1), k=conv(16, 8, 1), v=conv(16, 16, 1), o=conv(16, 16, 1)), IMAGE),
    "two_inputs": (
        pair(lambda m, x, y: m.head(pooled(m.b(F.relu(m.a(x) + m.c(y).unsqueeze(-1))))),
             a=nn.Conv1d(3, 16, 3), c=nn.Linear(4, 16), b=nn.Conv1d(16, 16, 3), head=head(16)), ((3, 12), (4,))),
    "dict_output": (
        net(lambda m, x: {"classes": m.head(pooled(m.b(m.a(x)))), "map": m.c(F.relu(m.a(x)))},
            a=conv(3, 16), b=conv(16, 16), c=conv(16, 2), head=head(16)), IMAGE),
    "tuple_output": (net(lambda m, x: (m.b(m.a(x)), (m.c(F.relu(m.a(x))),)), a=conv(3, 16), b=conv(16, 4), c=conv(16, 2)), IMAGE),
    "unet": (UNet, IMAGE),
    "pre_activation": (
        _between(lambda m, x: x + m.d(F.relu(m.n2(m.c(F.relu(m.n1(x)))))),
                 n1=nn.BatchNorm2d(16), c=conv(16, 16), n2=nn.BatchNorm2d(16), d=conv(16, 16)), IMAGE),
    "norm_after_flatten": (
        net(lambda m, x: m.head(m.n(F.relu(m.b(F.relu(m.a(x)))).flatten(1))),
            a=conv(3, 8), b=conv(8, 8, stride=2), n=nn.BatchNorm1d(8 * 16), head=head(8 * 16)), IMAGE),
    "norm_without_scale": (_between(lambda m, x: m.n(x), n=nn.BatchNorm2d(16, affine=False)), IMAGE),
    "dropout": (_between(lambda m, x: m.d2(m.d1(x)), d1=nn.Dropout(0.5), d2=nn.Dropout2d(0.5)), IMAGE),
    "in_place": (
        net(lambda m, x: m.head(pooled(m.b(m.r(m.n(m.a(x))).mul_(2).add_(1)))),
            a=conv(3, 16), n=nn.BatchNorm2d(16), r=nn.ReLU(inplace=True), b=conv(16, 16), head=head(16)), IMAGE),
    "channels_last_linear": (_between(lambda m, x: m.l(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 8, l=nn.Linear(16, 8)), IMAGE),
    "mean_and_peak": (
        net(lambda m, x: m.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1) if (x := F.relu(m.a(x))) is not None else x),
            a=conv(3, 16), head=head(32)), IMAGE),
    "spatial_attention": (
        _between(lambda m, x: x * torch.sigmoid(m.s(m.c(x))), c=conv(16, 8), s=conv(8, 1)), IMAGE),
    "concatenated_with_itself": (_between(lambda _m, x: torch.cat([x, F.avg_pool2d(x, 3, 1, 1)], 1), 32), IMAGE),
    "depth_to_sequence": (
        net(lambda m, x: m.head(m.l(F.relu(m.a(x)).flatten(2).transpose(1, 2)).mean(1)), a=conv(3, 16), l=nn.Linear(16, 16), head=head(16)), IMAGE),
    "reflected": (_between(lambda m, x: m.c(F.pad(x, (1, 1, 1, 1), mode="reflect")), c=nn.Conv2d(16, 16, 3, padding_mode="circular", padding=1)), IMAGE),
}  # fmt: skip

# Those that may be cut or left whole, but never cut wrongly.
AWKWARD: dict[str, tuple[Make, Shapes]] = {
    "module_shuffle_then_plain": (_between(lambda m, x: m.s(x), s=nn.ChannelShuffle(4)), IMAGE),
    "module_shuffle_then_grouped": (
        _between(lambda m, x: m.g2(m.s(F.relu(m.g1(x)))), s=nn.ChannelShuffle(4), g1=conv(16, 16, groups=4), g2=conv(16, 16, groups=4)), IMAGE),
    "interleaved": (net(_interleaved, a=conv(3, 16), inner=conv(8, 8), b=conv(16, 16), head=head(16)), IMAGE),
    "sliced": (_between(lambda m, x: torch.cat([m.c(x[:, :8]), x[:, 8:]], 1), c=conv(8, 8)), IMAGE),
    "every_second": (_between(lambda _m, x: x[:, ::2] * x[:, 1::2], 8), IMAGE),
    "one_channel_picked": (_between(lambda _m, x: x * torch.sigmoid(x[:, 3:4])), IMAGE),
    "glu": (_between(lambda _m, x: F.glu(x, 1), 8), IMAGE),
    "transposed_grouped": (_between(lambda m, x: m.t(x), t=nn.ConvTranspose2d(16, 16, 2, 2, groups=4)), IMAGE),
    "transposed_depthwise": (_between(lambda m, x: m.t(x), t=nn.ConvTranspose2d(16, 16, 2, 2, groups=16)), IMAGE),
    "prelu": (_between(lambda m, x: m.p(m.c(x)), c=conv(16, 16), p=nn.PReLU(16)), IMAGE),
    "eca": (_between(eca, along=nn.Conv1d(1, 1, 3, padding=1, bias=False)), IMAGE),
    "option_a": (OptionA, IMAGE),
    "layer_norm_last": (
        _between(lambda m, x: m.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), n=nn.LayerNorm(16)), IMAGE),
    "group_norm": (_normalized(nn.GroupNorm(4, 16)), IMAGE),
    "group_norm_one": (_normalized(nn.GroupNorm(1, 16)), IMAGE),
    "instance_norm": (_normalized(nn.InstanceNorm2d(16)), IMAGE),
    "instance_norm_affine": (_normalized(nn.InstanceNorm2d(16, affine=True, track_running_stats=True)), IMAGE),
    "local_response_norm": (_normalized(nn.LocalResponseNorm(3)), IMAGE),
    "same_name_twice": (Doubled, IMAGE),
    "tied_decoder": (TiedDecoder, ((12,),)),
    "unregistered_constant": (Unregistered, IMAGE),
    "float_inside": (_between(lambda m, x: m.c(x.float()), c=conv(16, 16)), IMAGE),
    "type_as": (_between(lambda m, x: m.c(x).type_as(x), c=conv(16, 16)), IMAGE),
    "flipped": (_between(lambda m, x: m.c(x) + m.c(x.flip(3)).flip(-1), c=conv(16, 16)), IMAGE),
    "flipped_channels": (_between(lambda _m, x: x + x.flip(1)), IMAGE),
    "rolled": (_between(lambda _m, x: torch.roll(x, (1, 2), (2, 3))), IMAGE),
    "rolled_channels": (_between(lambda _m, x: x + torch.roll(x, 1, 1)), IMAGE),
    "positions_selected": (_between(lambda _m, x: x.index_select(3, torch.tensor([0, 2, 4]))), IMAGE),
    "channels_selected": (_between(lambda _m, x: x.index_select(1, torch.tensor([0, 2, 4, 5])), 4), IMAGE),
    "channels_indexed": (_between(lambda _m, x: x[:, [3, 1, 2, 0]], 4), IMAGE),
    "standardized_weights": (_between(lambda m, x: standardized(m.c, x), c=conv(16, 16)), IMAGE),
    "weight_norm": (_between(lambda m, x: m.c(x), c=nn.utils.parametrizations.weight_norm(conv(16, 16))), IMAGE),
    "mixed_by_softmax": (
        _between(lambda m, x: (lambda w: w[0] * m.c(x) + w[1] * x)(torch.softmax(m.alpha, 0)), alpha=scale(2), c=conv(16, 16)), IMAGE),
    "scaled_by_mean_weight": (_between(lambda m, x: x * m.c.weight.mean() + m.c(x), c=conv(16, 16)), IMAGE),
    "divided_by_norm": (_between(lambda _m, x: x / (x.norm() + 1)), IMAGE),
    "divided_by_deviation": (_between(lambda _m, x: x / (x.std() + 1)), IMAGE),
    "unit_length": (_between(lambda _m, x: F.normalize(x, dim=1)), IMAGE),
    "share_of_sum": (_between(lambda _m, x: x / (1 + x.sum(1, keepdim=True))), IMAGE),
    "softmax_over_channels": (_between(lambda _m, x: x * torch.softmax(x, 1)), IMAGE),
    "maxout": (_between(lambda _m, x: x.view(len(x), x.shape[1] // 2, 2, *x.shape[2:]).amax(2), 8), IMAGE),
    "peak_of_channels": (_between(lambda _m, x: x * torch.sigmoid(x.max(1, keepdim=True).values)), IMAGE),
    "cumulative": (_between(lambda _m, x: x.cumsum(1)), IMAGE),
    "coordinates": (_between(lambda _m, x: with_coordinates(x), 18), IMAGE),
    "counted": (_between(lambda _m, x: x * torch.arange(1, x.shape[1] + 1).view(1, -1, 1, 1)), IMAGE),
    "multiplied_by_ones": (_between(lambda _m, x: x * torch.ones(16, 1, 1)), IMAGE),
    "zeros_beside": (_between(lambda _m, x: torch.cat([x, torch.zeros_like(x)], 1), 32), IMAGE),
    "bilinear_pooling": (
        net(lambda m, x: m.head(torch.einsum("nchw,ndhw->ncd", y, y).flatten(1) if (y := F.relu(m.a(x))) is not None else x),
            a=conv(3, 8), head=head(64)), IMAGE),
    "outer_product": (
        net(lambda m, x: m.head((y.unsqueeze(1) * y.unsqueeze(2)).flatten(1) if (y := pooled(F.relu(m.a(x)))) is not None else x),
            a=conv(3, 8), head=head(64)), IMAGE),
    "conv_over_rows": (_between(lambda m, x: m.c(x.transpose(1, 2)).transpose(1, 2), c=conv(8, 8)), IMAGE),
    "unfolded": (
        net(lambda m, x: m.head(m.l(F.unfold(F.relu(m.a(x)), 3, padding=1).transpose(1, 2)).mean(1)),
            a=conv(3, 8), l=nn.Linear(72, 16), head=head(16)), IMAGE),
    "bilinear_upsampling": (_between(lambda _m, x: F.interpolate(x, scale_factor=2, mode="bilinear")), IMAGE),
    "pooled_along_channels": (_between(lambda _m, x: F.max_pool1d(x.flatten(2).transpose(1, 2), 3, 1, 1).transpose(1, 2).unflatten(2, (8, 8))), IMAGE),
    "embedded": (
        pair(lambda m, x, y: m.head(pooled(m.b(F.relu(m.a(x) + m.e((y * 0).long().squeeze(1))[:, :, None, None])))),
             a=conv(3, 16), e=nn.Embedding(4, 16), b=conv(16, 16), head=head(16)), ((3, 8, 8), (1,))),
    "computed_kernel": (
        _between(lambda m, x: F.conv2d(x, m.k(scale_of(x)).view(16, 16, 1, 1)), k=nn.Linear(16, 256)), IMAGE),
    "recurrent": (
        net(lambda m, x: m.head(m.r(F.relu(m.a(x)).flatten(2).transpose(1, 2))[0].mean(1)),
            a=conv(3, 8), r=nn.GRU(8, 8, batch_first=True), head=head(8)), IMAGE),
    "multihead": (
        net(lambda m, x: m.head(m.t(y, y, y, need_weights=False)[0].mean(1) if (y := F.relu(m.a(x)).flatten(2).transpose(1, 2)) is not None else x),
            a=conv(3, 8), t=nn.MultiheadAttention(8, 2, batch_first=True), head=head(8)), IMAGE),
    "autocast_inside": (_between(lambda m, x: _in_full_precision(m.c, x), c=conv(16, 16)), IMAGE),
    "scalar_parameter": (_between(lambda m, x: x * m.s, s=nn.Parameter(torch.tensor(1.5))), IMAGE),
    "parameter_as_query": (
        _between(lambda m, x: x * torch.sigmoid(F.linear(m.query, m.l.weight))[:, :, None, None], query=scale(1, 8), l=nn.Linear(8, 16, bias=False)),
        IMAGE),
    "learned_map": (_between(lambda m, x: x + F.interpolate(m.map, scale_factor=2.0), map=scale(1, 16, 4, 4)), IMAGE),
    "batch_statistics": (_between(lambda m, x: m.n(x), n=nn.BatchNorm2d(16, track_running_stats=False)), IMAGE),
    "interpolated_depth": (_between(lambda _m, x: F.interpolate(x.unsqueeze(1), scale_factor=(0.5, 1, 1)).squeeze(1), 8), IMAGE),
}  # fmt: skip


def scale_of(x: Tensor) -> Tensor:
    return x.mean((0, 2, 3))


def _in_full_precision(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        out: Tensor = layer(x)
    return out


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """The same model in eval mode with every weight and statistic at random, so that nothing is hidden by a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            fan = max(1, value[0].numel() if value.ndim > 1 else 4)
            drawn = drawn.abs() + 0.5 if "var" in name else 0.3 + drawn * (2 / fan) ** 0.5
            value.data.copy_(drawn)
    return model.eval()


def inputs(shapes: Shapes, batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    return tuple(torch.randn(batch, *s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)


def decided(model: nn.Module, example: Sequence[Tensor], ratio: float = 0.5, round_to: int = 1) -> ChannelPlan:
    """What ``plan_channels`` decides."""
    channels = find_channels(capture(model, example))
    return lowest_dropped(channels, channels.groups, dict(model.named_parameters()), ratio, l2_norm, round_to)


def zeroed(model: nn.Module, plan: ChannelPlan) -> nn.Module:
    """The reference: a copy of ``model`` whose layers read nothing from the channels that ``plan`` drops."""
    reference = copy.deepcopy(model)
    for name, module in reference.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or not isinstance(weight, nn.Parameter):
            continue
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        if not transposed and getattr(module, "groups", 1) == weight.shape[0] > 1:  # depthwise: it sums over no channels
            continue
        reads = 0 if transposed else 1
        kept = plan.keep.get(f"{name}.weight", {}).get(reads)
        if kept is not None:
            gone = [i for i in range(weight.shape[reads]) if i not in set(kept)]
            weight.data.index_fill_(reads, torch.tensor(gone, dtype=torch.int64), 0)
    return reference


def shifted(model: nn.Module, plan: ChannelPlan) -> ChannelPlan:
    """As many channels as ``plan`` keeps, but each the neighbour of one it keeps."""
    shapes = {name: value.shape for name, value in [*model.named_parameters(), *model.named_buffers()]}
    return ChannelPlan(
        {
            name: {d: tuple(sorted((i + 1) % shapes[name][d] for i in index)) for d, index in dims.items()}
            for name, dims in plan.keep.items()
        }
    )


def difference(found: Any, expected: Any) -> float:
    """The largest difference of two outputs of one structure, relative to the largest value; infinite when shapes differ."""
    pairs = list(zip(tree_leaves(found), tree_leaves(expected), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    assert all(a.isfinite().all() and b.isfinite().all() for a, b in pairs)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
