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
    "transposed_1d": ((3, 16),),
    "transposed_3d": ((3, 6, 6, 6),),
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


# Norms that take their statistics along the channels.


def mean_free(x: Tensor) -> Tensor:
    """A layer norm over the channels, as ConvNeXt writes it (Liu et al. 2022, arXiv:2201.03545)."""
    centered = x - x.mean(1, keepdim=True)
    return centered / torch.sqrt(centered.pow(2).mean(1, keepdim=True) + 1e-6)


def root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)


def global_response(m: Any, x: Tensor) -> Tensor:
    """Global response normalization (Woo et al. 2023, arXiv:2301.00808)."""
    size = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x + m.scale.view(1, -1, 1, 1) * (x * size / (size.mean(1, keepdim=True) + 1e-6)) + m.shift.view(1, -1, 1, 1)


def global_response_last(m: Any, x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
    return (m.scale * (x * size / (size.mean(-1, keepdim=True) + 1e-6)) + x).permute(0, 3, 1, 2)


def group_norm_by_hand(m: Any, x: Tensor) -> Tensor:
    shape = x.shape
    y = x.reshape(shape[0], 4, -1)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True) + 1e-5).sqrt()
    return y.view(shape) * m.scale + m.shift


def gated_by_context(m: Any, x: Tensor) -> Tensor:
    """Gated channel transformation (Yang et al. 2020, arXiv:1909.11519)."""
    size = (x.pow(2).sum((2, 3), keepdim=True) + 1e-5).sqrt() * m.alpha
    return x * (1 + torch.tanh(size * m.gamma / (size.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() + m.beta))


def filter_response(m: Any, x: Tensor) -> Tensor:
    """Filter response normalization (Singh & Krishnan 2020, arXiv:1911.09737)."""
    x = x * torch.rsqrt(x.pow(2).mean((2, 3), keepdim=True) + m.eps.abs())
    return torch.max(m.gamma * x + m.beta, m.tau)


def by_statistics(x: Tensor) -> Tensor:
    """Every way to take an extreme, a spread or a share over the channels."""
    low, high = x.amin((1, 2, 3), keepdim=True), torch.max(x, 1, keepdim=True)[0]
    x = (x - low) / (high - low + 1) + x.logsumexp(1, keepdim=True) * x / (x.std(1, keepdim=True) + 1)
    return x * x.abs().sum(1, keepdim=True) / (x.flatten(1).var(1)[:, None, None, None] + 1) + torch.log_softmax(x, 1)


# Weights that are computed.


def standardized_by_batch_norm(m: Any, x: Tensor) -> Tensor:
    """Scaled weight standardization (Brock et al. 2021, arXiv:2101.08692) by batch norm, as timm writes it."""
    weight = m.c.weight
    flat = weight.reshape(1, m.c.out_channels, -1)
    flat = F.batch_norm(flat, None, None, weight=(m.gain * 0.3).view(-1), training=True, momentum=0.0, eps=1e-5)
    return F.conv2d(x, flat.reshape_as(weight), m.c.bias, padding=1)


def standardized_by_rows(m: Any, x: Tensor) -> Tensor:
    """Weight standardization as its authors write it (arXiv:1903.10520)."""
    weight = m.c.weight
    weight = weight - weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
    spread = weight.view(weight.size(0), -1).std(1).view(-1, 1, 1, 1) + 1e-5
    return F.conv2d(x, weight / spread.expand_as(weight), m.c.bias, padding=1)


def standardized_at_once(m: Any, x: Tensor) -> Tensor:
    weight = m.c.weight
    spread, mean = torch.std_mean(weight.view(weight.size(0), -1), dim=1)
    return F.conv2d(x, (weight - mean.view(-1, 1, 1, 1)) / (spread.view(-1, 1, 1, 1) + 1e-5), m.c.bias, padding=1)


def merged_kernels(m: Any, x: Tensor) -> Tensor:
    """Two kernels and a scale for every channel, added before they are used (Ding et al. 2021, arXiv:2101.03697)."""
    weight = m.c.weight * m.s.view(-1, 1, 1, 1) + F.pad(m.d.weight, (1, 1, 1, 1))
    return F.conv2d(x, weight, m.c.bias + m.d.bias, padding=1)


def norm_in_the_kernel(m: Any, x: Tensor) -> Tensor:
    scale = m.n.weight / torch.sqrt(m.n.running_var + 1e-5)
    return F.conv2d(x, m.c.weight * scale.view(-1, 1, 1, 1), m.n.bias - m.n.running_mean * scale, padding=1)


def times_a_parameter(m: Any, x: Tensor) -> Tensor:
    y = x.flatten(2).transpose(1, 2) @ m.w + m.shift
    return y.transpose(1, 2).unflatten(2, x.shape[2:])


# Attention.


def many_headed(m: Any, x: Tensor, *, heads: int = 2, width: int = -1, joined: int = -1, fused: bool = False) -> Tensor:
    """Self-attention of one linear layer for queries, keys and values, as in ViT (arXiv:2010.11929)."""
    n, _, h, w = x.shape
    q, k, v = m.qkv(m.n(x.flatten(2).transpose(1, 2))).reshape(n, h * w, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
    by_hand = not fused
    out = (q @ k.transpose(-2, -1) * 0.35).softmax(-1) @ v if by_hand else F.scaled_dot_product_attention(q, k, v)
    return x + m.p(out.transpose(1, 2).reshape(n, h * w, joined)).transpose(1, 2).reshape(n, -1, h, w)  # type: ignore[no-any-return]


def of_many_layers(m: Any, x: Tensor, *, width: int = -1, joined: int = -1) -> Tensor:
    """The same with a layer each."""
    n, _, h, w = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (layer(tokens).view(n, h * w, 2, width or -1).transpose(1, 2) for layer in (m.q, m.k, m.v))
    out = (q @ k.transpose(-2, -1) * 0.35 + m.bias).softmax(-1) @ v
    return x + m.p(out.transpose(1, 2).reshape(n, h * w, joined)).transpose(1, 2).reshape(n, -1, h, w)  # type: ignore[no-any-return]


def narrow_headed(m: Any, x: Tensor, mask: Tensor | None = None, **settings: Any) -> Tensor:
    """More heads than each is wide, so that heads go whole."""
    n, _, h, w = x.shape
    q, k, v = (layer(x.flatten(2).transpose(1, 2)).view(n, h * w, -1, 2).transpose(1, 2) for layer in (m.q, m.k, m.v))
    out = F.scaled_dot_product_attention(q, k, v, mask, **settings)
    return x + m.p(out.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(n, -1, h, w)  # type: ignore[no-any-return]


def of_channels(m: Any, x: Tensor) -> Tensor:
    """Attention of the channels to one another, XCA (El-Nouby et al. 2021, arXiv:2106.09681)."""
    n, _, h, w = x.shape
    q, k, v = m.qkv(x).flatten(2).view(n, 3, 2, -1, h * w).unbind(1)
    shares = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * m.t).softmax(-1)
    return x + m.p((shares @ v).reshape(n, -1, h, w))  # type: ignore[no-any-return]


def of_batches(m: Any, x: Tensor) -> Tensor:
    """Attention by products of batches, the heads beside the samples."""
    n, _, h, w = x.shape
    q, k, v = (t.reshape(n, 4, -1, h * w).flatten(0, 1) for t in m.qkv(x).chunk(3, 1))
    shares = torch.softmax(torch.bmm(q.transpose(1, 2), k), -1)
    return m.p(torch.bmm(v, shares.transpose(1, 2)).view(n, -1, h, w))  # type: ignore[no-any-return]


def non_local(m: Any, x: Tensor, width: int = 8) -> Tensor:
    """The block of Wang et al. 2018, arXiv:1711.07971, its width hard-coded."""
    q, k, v = (layer(x).view(x.size(0), width, -1) for layer in (m.q, m.k, m.v))
    y = torch.matmul(F.softmax(torch.matmul(q.permute(0, 2, 1), k), -1), v.permute(0, 2, 1))
    return x + m.o(y.permute(0, 2, 1).contiguous().view(x.size(0), width, *x.shape[2:]))  # type: ignore[no-any-return]


def global_context(m: Any, x: Tensor) -> Tensor:
    """One query for all positions (Cao et al. 2019, arXiv:1904.11492)."""
    n, c, h, w = x.shape
    shares = F.softmax(m.k(x).view(n, 1, h * w), 2).unsqueeze(-1)
    return x + m.t(torch.matmul(x.view(n, c, h * w).unsqueeze(1), shares).view(n, c, 1, 1))  # type: ignore[no-any-return]


def twice_attended(m: Any, x: Tensor) -> Tensor:
    """Gathered by one attention, handed out by another (Chen et al. 2018, arXiv:1810.11579)."""
    n, _, h, w = x.shape
    a, b, v = (layer(x).view(n, -1, h * w) for layer in (m.q, m.k, m.v))
    return m.o(torch.bmm(torch.bmm(a, F.softmax(b, -1).permute(0, 2, 1)), F.softmax(v, 1)).view(n, -1, h, w))  # type: ignore[no-any-return]


# Gates.


def squeezed(m: Any, x: Tensor) -> Tensor:
    """Squeeze and excite (Hu et al. 2018, arXiv:1709.01507), with linear layers and ``expand_as``."""
    n, c, _, _ = x.shape
    return x * torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1).view(n, c))))).view(n, c, 1, 1).expand_as(x)


def convolutional_gates(m: Any, x: Tensor) -> Tensor:
    """CBAM (Woo et al. 2018, arXiv:1807.06521)."""
    x = x * torch.sigmoid(m.mlp(F.adaptive_avg_pool2d(x, 1)) + m.mlp(F.adaptive_max_pool2d(x, 1)))
    return x * torch.sigmoid(m.s(torch.cat([torch.mean(x, 1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)))  # type: ignore[no-any-return]


def selected_kernels(m: Any, x: Tensor) -> Tensor:
    """Selective kernels (Li et al. 2019, arXiv:1903.06586)."""
    a, b = F.relu(m.c(x)), F.relu(m.d(x))
    shares = torch.softmax(m.up(F.relu(m.down((a + b).mean((2, 3), keepdim=True)))).view(x.shape[0], 2, -1, 1, 1), 1)
    return (torch.stack([a, b], 1) * shares).sum(1)


def split_attention(m: Any, x: Tensor, cardinality: int = 1) -> Tensor:
    """The block of ResNeSt (Zhang et al. 2022, arXiv:2004.08955), as timm writes it."""
    n = x.shape[0]
    y = F.relu(m.c(x))
    width = y.shape[1]
    y = y.reshape(n, 2, width // 2, *y.shape[2:])
    shares = m.up(F.relu(m.down(y.sum(1).mean((2, 3), keepdim=True)))).view(n, cardinality, 2, -1).transpose(1, 2)
    return (y * F.softmax(shares, 1).reshape(n, -1, 1, 1).reshape(n, 2, width // 2, 1, 1)).sum(1)


def along_rows_and_columns(m: Any, x: Tensor) -> Tensor:
    """Coordinate attention (Hou et al. 2021, arXiv:2103.02907)."""
    h, w = x.shape[2:]
    y = F.relu(m.n(m.c(torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)], 2))))
    rows, columns = torch.split(y, [h, w], 2)
    return x * torch.sigmoid(m.d(columns.permute(0, 1, 3, 2))) * torch.sigmoid(m.e(rows))  # type: ignore[no-any-return]


def involved(m: Any, x: Tensor) -> Tensor:
    """Kernels of every position's own (Li et al. 2021, arXiv:2103.06255)."""
    n, c, h, w = x.shape
    kernels = m.d(F.relu(m.c(x))).view(n, 4, 1, 9, h, w)
    return (kernels * F.unfold(x, 3, padding=1).view(n, 4, c // 4, 9, h, w)).sum(3).view(n, c, h, w)  # type: ignore[no-any-return]


# Parts of the channels that go their own ways.


def in_steps(m: Any, x: Tensor) -> Tensor:
    """Each part with what came of the one before (Gao et al. 2021, arXiv:1904.01169)."""
    first, *parts = x.chunk(4, 1)
    out = [first]
    for layer, part in zip(m.layers, parts, strict=True):
        out.append(F.relu(layer(part if len(out) == 1 else part + out[-1])))
    return torch.cat(out, 1)


def of_width_four(m: Any, x: Tensor) -> Tensor:
    """The same with the width of the parts written into it, as timm has it."""
    parts, out = torch.split(x, 4, 1), [torch.zeros(1, dtype=x.dtype)]
    for layer, part in zip(m.layers, parts, strict=False):
        out.append(F.relu(layer(part + out[-1])))
    return torch.cat([*out[1:], parts[3]], 1)


def densely(m: Any, x: Tensor) -> Tensor:
    """Every layer sees all before it (Huang et al. 2017, arXiv:1608.06993)."""
    seen = [x]
    for layer in m.layers:
        seen.append(layer(F.relu(torch.cat(seen, 1))))
    return torch.cat(seen, 1)


def across_stages(m: Any, x: Tensor) -> Tensor:
    """YOLOv8's block: halves, then layer after layer, all beside one another."""
    parts = list(m.c(x).chunk(2, 1))
    for layer in m.layers:
        parts.append(layer(parts[-1]))
    return m.d(torch.cat(parts, 1))  # type: ignore[no-any-return]


def ghostly(m: Any, x: Tensor) -> Tensor:
    """Half of the channels computed from the other half (Han et al. 2020, arXiv:1911.11907)."""
    y = F.relu(m.c(x))
    return torch.cat([y, F.relu(m.d(y))], 1)


def shuffled_halves(m: Any, x: Tensor) -> Tensor:
    """The unit of ShuffleNetV2 (Ma et al. 2018, arXiv:1807.11164), as torchvision writes it."""
    a, b = x.chunk(2, 1)
    return shuffled(torch.cat((a, F.relu(m.e(m.d(F.relu(m.c(b)))))), 1), 2)


def fused(m: Any, x: Tensor) -> Tensor:
    """Two resolutions that exchange what they have (Wang et al. 2020, arXiv:1908.07919)."""
    a, b = F.relu(m.c(x)), F.relu(m.d(x))
    fine = a + F.interpolate(m.up(b), size=a.shape[2:], mode="bilinear", align_corners=True)
    return fine + F.interpolate(m.e(b + m.down(a)), scale_factor=2)


def partly(m: Any, x: Tensor) -> Tensor:
    """A quarter of the channels goes through a layer (Chen et al. 2023, arXiv:2303.03667)."""
    a, b = torch.split(x, [4, 12], 1)
    return torch.cat((m.c(a), b), 1)


def moved_in_time(_m: Any, x: Tensor) -> Tensor:
    """A quarter of the channels from the left, a quarter from the right (Lin et al. 2019, arXiv:1811.08383)."""
    a, b, c = x[:, :4], x[:, 4:8], x[:, 8:]
    return torch.cat([F.pad(a[..., 1:], (0, 1)), F.pad(b[..., :-1], (1, 0)), c], 1)


def next_blocks(m: Any, x: Tensor) -> Tensor:
    """ConvNeXt's block (arXiv:2201.03545)."""
    y = m.up(F.gelu(m.down(m.n(m.c(x).permute(0, 2, 3, 1)))))
    return x + (m.scale * y).permute(0, 3, 1, 2)


def windows_with_places(m: Any, x: Tensor) -> Tensor:
    """Windows as a batch, with a learned table of places, as Swin has them (arXiv:2103.14030)."""
    n, _, h, w = x.shape
    tokens = x.permute(0, 2, 3, 1).view(n, h // 4, 4, w // 4, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, x.shape[1])
    tokens = m.l(tokens) + m.places
    return tokens.view(n, h // 4, w // 4, 4, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1).permute(0, 3, 1, 2)


def depth_to_space(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).contiguous().view(n, c // 4, h * 2, w * 2)


def space_to_depth(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous().view(n, c * 4, h // 2, w // 2)


def folded_back(x: Tensor) -> Tensor:
    return F.fold(F.relu(F.unfold(x, 2, stride=2)), x.shape[2:], 2, stride=2)


def summed_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.c(x)
    y += x
    z = y.view(y.shape[0], -1, 64)
    z.add_(1)
    return F.silu(y, inplace=True)


def of_mixed_kernels(m: Any, x: Tensor) -> Tensor:
    """Kernels mixed for every sample by shares of its own (Yang et al. 2019, arXiv:1904.04971), sizes hard-coded."""
    n, c, h, w = x.shape
    kernels = (torch.sigmoid(m.r(x.mean((2, 3)))) @ m.w.view(3, -1)).view(n * 16, c, 3, 3)
    return F.conv2d(x.reshape(1, n * c, h, w), kernels, padding=1, groups=n).view(n, 16, h, w)


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


Step = tuple[Callable[[Any, Tensor], Tensor], dict[str, Any]]  # 16 channels to 16, and its layers

# What networks are put together from by lot, each alone in the tables below.
STEPS: dict[str, Step] = {
    "conv": (lambda m, x: m.c(x), {"c": conv(16, 16)}),
    "grouped": (lambda m, x: m.c(x), {"c": conv(16, 16, groups=4)}),
    "depthwise": (lambda m, x: m.c(x), {"c": conv(16, 16, groups=16)}),
    "norm": (lambda m, x: F.relu(m.n(x)), {"n": nn.BatchNorm2d(16)}),
    "unknown": (lambda _m, x: x.cumsum(1), {}),
    "beside unknown": (lambda m, x: x.cumsum(1) + m.c(x), {"c": conv(16, 16)}),
    "group norm": (lambda m, x: m.n(x), {"n": nn.GroupNorm(4, 16)}),
    "beside group norm": (lambda m, x: m.n(x) + m.c(x), {"n": nn.GroupNorm(2, 16), "c": conv(16, 16)}),
    "group norm by hand": (group_norm_by_hand, {"scale": scale(1, 16, 1, 1), "shift": scale(1, 16, 1, 1)}),
    "layer norm": (lambda m, x: channels_last(m.n, x), {"n": nn.LayerNorm(16)}),
    "unit length": (lambda _m, x: F.normalize(x, dim=1), {}),
    "global response": (global_response, {"scale": scale(16), "shift": scale(16)}),
    "attention": (many_headed, {"n": nn.LayerNorm(16), "qkv": nn.Linear(16, 48), "p": nn.Linear(16, 16)}),
    "attention of channels": (of_channels, {"qkv": conv(16, 48, 1), "p": conv(16, 16, 1), "t": scale(2, 1, 1)}),
    "split attention": (split_attention, {"c": conv(16, 32, groups=2), "down": conv(16, 8, 1), "up": conv(8, 32, 1)}),
    "in steps": (in_steps, {"layers": nn.ModuleList(conv(4, 4) for _ in range(3))}),
    "shuffled halves": (shuffled_halves, {"c": conv(8, 8, 1), "d": conv(8, 8, groups=8), "e": conv(8, 8, 1)}),
    "standardized": (lambda m, x: standardized(m.c, x), {"c": conv(16, 16)}),
    "glu": (lambda m, x: F.glu(m.c(x), 1), {"c": conv(16, 32)}),
    "prelu": (lambda m, x: m.p(x), {"p": nn.PReLU(16)}),
    "transposed": (lambda m, x: m.t(x), {"t": nn.ConvTranspose2d(16, 16, 1, groups=2)}),
    "written view": (lambda _m, x: x.view(-1, 16, 64).unflatten(2, (8, 8)), {}),
    "written shuffle": (lambda _m, x: x.view(-1, 4, 4, 8, 8).transpose(1, 2).reshape(-1, 16, 8, 8), {}),
    "written slices": (lambda m, x: torch.cat([m.c(x[:, :4]), x[:, 4:]], 1), {"c": conv(4, 4)}),
    "residual": (lambda m, x: x + m.c(x), {"c": conv(16, 16)}),
    "dense": (lambda m, x: m.d(torch.cat([x, m.c(x)], 1)), {"c": conv(16, 8), "d": conv(24, 16)}),
    "squeeze": (lambda m, x: x * torch.sigmoid(m.c(x.mean((2, 3), keepdim=True))), {"c": conv(16, 16, 1)}),
    "shuffle": (lambda _m, x: shuffled(x, 4), {}),
    "module shuffle": (lambda m, x: m.s(x), {"s": nn.ChannelShuffle(2)}),
    "csp": (csp, {"c": conv(8, 8)}),
    "gated": (lambda m, x: m.c(torch.mul(*x.chunk(2, 1))), {"c": conv(8, 16)}),
    "swapped": (lambda _m, x: torch.cat(x.chunk(2, 1)[::-1], 1), {}),
    "summed halves": (lambda m, x: m.c(x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:]).sum(1)), {"c": conv(8, 16)}),
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
        for step in m.steps:
            y = step(y)
        return m.head(pooled(y + first))  # type: ignore[no-any-return]

    layers = nn.ModuleList(Wired(STEPS[s][0], copy.deepcopy(STEPS[s][1])) for s in steps)
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

_PAIR: dict[str, nn.Module | nn.Parameter] = {"scale": scale(1, 16, 1, 1), "shift": scale(1, 16, 1, 1)}
_QKV: dict[str, nn.Module | nn.Parameter] = {"n": nn.LayerNorm(16), "qkv": nn.Linear(16, 48), "p": nn.Linear(16, 16)}
_APART: dict[str, nn.Module | nn.Parameter] = {
    "q": nn.Linear(16, 16), "k": nn.Linear(16, 16), "v": nn.Linear(16, 16), "p": nn.Linear(16, 16), "bias": scale(2, 1, 64),
}  # fmt: skip
_FIXED_QKV: dict[str, nn.Module] = {"q": conv(16, 8, 1), "k": conv(16, 8, 1), "v": conv(16, 8, 1), "o": conv(8, 16, 1)}

# Those that compare or average the channels, compute their weights, or part the channels; the first layer's are cut too.
MIXING: dict[str, Make] = {
    "layer_norm": _between(lambda m, x: channels_last(m.n, x), n=nn.LayerNorm(16)),
    "layer_norm_of_maps": _between(lambda m, x: m.n(x), n=nn.LayerNorm([16, 8, 8])),
    "layer_norm_by_its_weight": (
        _between(lambda m, x: channels_last(lambda y: F.layer_norm(y, m.w.shape, m.w, m.s), x), w=scale(16), s=scale(16))),
    "layer_norm_by_hand": _between(lambda m, x: m.scale * mean_free(x) + m.shift, **_PAIR),
    "rms_norm": _between(lambda m, x: channels_last(m.n, x), n=nn.RMSNorm(16)),
    "rms_norm_by_hand": _between(lambda _m, x: root_mean_square(x)),
    "one_group": _between(lambda m, x: m.n(x), n=nn.GroupNorm(1, 16)),
    "group_norm": _between(lambda m, x: m.n(x), n=nn.GroupNorm(4, 16)),
    "a_group_each": _between(lambda m, x: m.n(x), n=nn.GroupNorm(16, 16)),
    "group_norm_without_scale": _between(lambda _m, x: F.group_norm(x, 4)),
    "group_norm_then_grouped": _between(lambda m, x: m.g(m.n(x)), n=nn.GroupNorm(4, 16), g=conv(16, 16, groups=2)),
    "group_norm_by_hand": _between(group_norm_by_hand, **_PAIR),
    "norm_beside_shortcut": (
        _between(lambda m, x: m.n(m.c(x)) + m.d(x), n=nn.GroupNorm(4, 16), c=conv(16, 16), d=conv(16, 16, 1))),
    "norm_and_layer_scale": _between(lambda m, x: m.n(x) * m.s, n=nn.GroupNorm(4, 16), s=scale(16, 1, 1)),
    "instance_norm": _between(lambda m, x: m.n(x), n=nn.InstanceNorm2d(16, affine=True)),
    "instance_norm_with_statistics": (
        _between(lambda m, x: m.n(x), n=nn.InstanceNorm2d(16, affine=True, track_running_stats=True))),
    "batch_statistics": _between(lambda m, x: m.n(x), n=nn.BatchNorm2d(16, track_running_stats=False)),
    "norm_of_positions": (
        _between(lambda m, x: m.n(x.flatten(2).transpose(1, 2)).transpose(1, 2).view(x.shape), n=nn.BatchNorm1d(64))),
    "global_response": _between(global_response, scale=scale(16), shift=scale(16)),
    "global_response_last": _between(global_response_last, scale=scale(1, 1, 1, 16)),
    "gated_by_context": _between(gated_by_context, alpha=scale(1, 16, 1, 1), gamma=scale(1, 16, 1, 1), beta=scale(1, 16, 1, 1)),
    "filter_response": (
        _between(filter_response, eps=scale(1), gamma=scale(1, 16, 1, 1), beta=scale(1, 16, 1, 1), tau=scale(1, 16, 1, 1))),
    "unit_length": _between(lambda _m, x: F.normalize(x, dim=1)),
    "divided_by_norm": _between(lambda _m, x: x / (x.norm() + 1)),
    "less_the_mean": _between(lambda _m, x: 3 * x - x.mean((1, 2, 3), keepdim=True) - x.mean(1, keepdim=True)),
    "by_statistics": _between(lambda _m, x: by_statistics(x)),
    "softmax_over_channels": _between(lambda _m, x: x * torch.softmax(x, 1)),
    "compared": (
        _between(lambda m, x: F.cosine_similarity(m.c(x), m.d(x), dim=1).unsqueeze(1) * x, c=conv(16, 8), d=conv(16, 8))),
    "standardized_weights": _between(lambda m, x: standardized(m.c, x), c=conv(16, 16)),
    "standardized_by_batch_norm": _between(standardized_by_batch_norm, c=conv(16, 16), gain=scale(16, 1, 1, 1)),
    "standardized_by_rows": _between(standardized_by_rows, c=conv(16, 16)),
    "standardized_at_once": _between(standardized_at_once, c=conv(16, 16)),
    "weight_norm": _between(lambda m, x: m.c(x), c=nn.utils.parametrizations.weight_norm(conv(16, 16))),
    "weight_norm_of_inputs": _between(lambda m, x: m.c(x), c=nn.utils.parametrizations.weight_norm(conv(16, 16), dim=1)),
    "spectral_norm": _between(lambda m, x: m.c(x), c=nn.utils.parametrizations.spectral_norm(conv(16, 16))),
    "merged_kernels": _between(merged_kernels, c=conv(16, 16), d=conv(16, 16, 1), s=scale(16)),
    "norm_in_the_kernel": _between(norm_in_the_kernel, c=conv(16, 16, bias=False), n=nn.BatchNorm2d(16)),
    "scaled_by_mean_weight": _between(lambda m, x: x * m.c.weight.mean() + m.c(x), c=conv(16, 16)),
    "mixed_by_softmax": _between(mixed_by_softmax, alpha=scale(2), c=conv(16, 16)),
    "times_a_parameter": _between(times_a_parameter, w=scale(16, 16), shift=scale(16)),
    "times_a_batch_of_one": (
        _between(lambda m, x: torch.bmm(m.w.expand(x.shape[0], -1, -1), x.flatten(2)).unflatten(2, (8, 8)),
                 w=scale(1, 16, 16))),
    "added_product": (
        net(lambda m, x: m.head(torch.addmm(m.s, pooled(m.a(x)), m.w)),
            a=conv(3, 16), s=scale(8), w=scale(16, 8), head=head(8))),
    "tied_decoder": TiedDecoder,
    "parameter_as_query": (
        _between(lambda m, x: x * torch.sigmoid(F.linear(m.query, m.l.weight))[:, :, None, None],
                 query=scale(1, 8), l=nn.Linear(8, 16, bias=False))),
    "prelu": _between(lambda m, x: m.p(m.c(x)), c=conv(16, 16), p=nn.PReLU(16)),
    "prelu_of_one_slope": _between(lambda m, x: m.p(m.c(x)), c=conv(16, 16), p=nn.PReLU()),
    "learned_places": _between(lambda m, x: x + m.map + m.rows, map=scale(1, 16, 8, 8), rows=scale(1, 16, 8, 1)),
    "learned_map": _between(lambda m, x: x + F.interpolate(m.map, scale_factor=2.0), map=scale(1, 16, 4, 4)),
    "windows_with_places": _between(windows_with_places, l=nn.Linear(16, 16), places=scale(1, 16, 16)),
    "embedded": (
        pair(lambda m, x, y: m.head(pooled(m.b(F.relu(m.a(x) + m.e((y * 0).long().squeeze(1))[:, :, None, None])))),
             a=conv(3, 16), e=nn.Embedding(4, 16), b=conv(16, 16), head=head(16))),
    "softmax_attention": (
        _between(lambda m, x: x + m.o(attended(m, x)),
                 q=conv(16, 8, 1), k=conv(16, 8, 1), v=conv(16, 16, 1), o=conv(16, 16, 1))),
    "many_headed": _between(many_headed, **_QKV),
    "attention_at_once": _between(lambda m, x: many_headed(m, x, fused=True), **_QKV),
    "of_many_layers": _between(of_many_layers, **_APART),
    "narrow_headed": _between(narrow_headed, **_APART),
    "narrow_headed_with_a_mask": (
        _between(lambda m, x: narrow_headed(m, x, m.mask, scale=0.3), **_APART, mask=scale(8, 1, 64))),
    "of_channels": _between(of_channels, qkv=conv(16, 48, 1), p=conv(16, 16, 1), t=scale(2, 1, 1)),
    "of_batches": _between(of_batches, qkv=conv(16, 48, 1), p=conv(16, 16, 1)),
    "global_context": (
        _between(global_context, k=conv(16, 1, 1),
                 t=nn.Sequential(conv(16, 4, 1), nn.LayerNorm([4, 1, 1]), nn.ReLU(), conv(4, 16, 1)))),
    "twice_attended": _between(twice_attended, q=conv(16, 8, 1), k=conv(16, 6, 1), v=conv(16, 6, 1), o=conv(8, 16, 1)),
    "squeezed": _between(squeezed, down=nn.Linear(16, 4), up=nn.Linear(4, 16)),
    "convolutional_gates": (
        _between(convolutional_gates, mlp=nn.Sequential(conv(16, 4, 1), nn.ReLU(), conv(4, 16, 1)), s=conv(2, 1, 7))),
    "selected_kernels": (
        _between(selected_kernels, c=conv(16, 16), d=conv(16, 16, 5), down=conv(16, 4, 1), up=conv(4, 32, 1))),
    "split_attention_of_one": (
        _between(split_attention, c=conv(16, 32, groups=2), down=conv(16, 8, 1), up=conv(8, 32, 1))),
    "split_attention_of_two": (
        _between(lambda m, x: split_attention(m, x, 2), c=conv(16, 32, groups=4), down=conv(16, 8, 1, groups=2),
                 up=conv(8, 32, 1, groups=2))),
    "along_rows_and_columns": (
        _between(along_rows_and_columns, c=conv(16, 8, 1), n=nn.BatchNorm2d(8), d=conv(8, 16, 1), e=conv(8, 16, 1))),
    "involved": _between(involved, c=conv(16, 4, 1), d=conv(4, 36, 1)),
    "spatial_attention": _between(lambda m, x: x * torch.sigmoid(m.s(m.c(x))), c=conv(16, 8), s=conv(8, 1)),
    "in_steps": _between(in_steps, layers=nn.ModuleList(conv(4, 4) for _ in range(3))),
    "densely": _between(densely, 40, layers=nn.ModuleList([conv(16, 8), conv(24, 8), conv(32, 8)])),
    "across_stages": (
        _between(across_stages, c=conv(16, 16, 1), layers=nn.ModuleList([conv(8, 8), conv(8, 8)]), d=conv(32, 16, 1))),
    "ghostly": _between(ghostly, c=conv(16, 8, 1), d=conv(8, 8, groups=8)),
    "shuffled_halves": _between(shuffled_halves, c=conv(8, 8, 1), d=conv(8, 8, groups=8), e=conv(8, 8, 1)),
    "fused": (
        _between(fused, c=conv(16, 16), d=conv(16, 16, stride=2), up=conv(16, 16, 1), down=conv(16, 16, stride=2),
                 e=conv(16, 16, 1))),
    "next_blocks": (
        _between(next_blocks, c=conv(16, 16, 7, groups=16), n=nn.LayerNorm(16), down=nn.Linear(16, 64), up=nn.Linear(64, 16),
                 scale=scale(16))),
    "glu": _between(lambda m, x: F.glu(m.c(x), 1), c=conv(16, 32)),
    "gated_slices": _between(lambda _m, x: x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :], 8),
    "maxout": _between(lambda _m, x: x.view(len(x), x.shape[1] // 2, 2, *x.shape[2:]).amax(2), 8),
    "stacked": _between(lambda m, x: torch.stack([m.c(x), m.d(x), x], -1).amax(-1), c=conv(16, 16), d=conv(16, 16)),
    "repeated": _between(lambda _m, x: x.repeat(1, 2, 1, 1), 32),
    "repeated_each": _between(lambda _m, x: x.repeat_interleave(2, 1), 32),
    "copied": _between(lambda _m, x: x.unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(1, 2), 32),
    "option_a": OptionA,
    "depth_to_space": _between(lambda _m, x: depth_to_space(x), 4),
    "space_to_depth": _between(lambda _m, x: space_to_depth(x), 64),
    "unfolded": (
        net(lambda m, x: m.head(m.l(F.unfold(F.relu(m.a(x)), 3, padding=1).transpose(1, 2)).mean(1)),
            a=conv(3, 8), l=nn.Linear(72, 16), head=head(16))),
    "folded_back": _between(lambda _m, x: folded_back(x)),
    "unpooled": _between(lambda _m, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
    "transposed_grouped": _between(lambda m, x: m.t(x), t=nn.ConvTranspose2d(16, 16, 2, 2, groups=4)),
    "transposed_depthwise": _between(lambda m, x: m.t(x), 32, t=nn.ConvTranspose2d(16, 32, 2, 2, groups=16)),
    "transposed_1d": (
        net(lambda m, x: m.head(pooled(m.t(m.a(x)))), 
            a=nn.Conv1d(3, 16, 3), t=nn.ConvTranspose1d(16, 8, 2, 2, groups=2), head=head(8))),
    "transposed_3d": (
        net(lambda m, x: m.head(pooled(m.t(m.a(x)))), 
            a=nn.Conv3d(3, 16, 3), t=nn.ConvTranspose3d(16, 8, 2, 2, groups=4), head=head(8))),
    "padded_to_the_same": (
        _between(lambda m, x: m.d(m.c(x)), c=nn.Conv2d(16, 16, 3, padding="same"),
                 d=nn.Conv2d(16, 16, (3, 5), padding="same", groups=4))),
    "mixer": (
        _between(lambda m, x: x + m.l2(F.gelu(m.l1(x.flatten(2)))).view(x.shape), l1=nn.Linear(64, 32), l2=nn.Linear(32, 64))),
    "flipped": _between(lambda m, x: m.c(x) + m.c(x.flip(3)).flip(-1), c=conv(16, 16)),
    "rolled": _between(lambda _m, x: torch.roll(x, (1, 2), (2, 3))),
    "positions_selected": _between(lambda _m, x: x.index_select(3, torch.tensor([0, 2, 4]))),
    "coordinates": _between(lambda _m, x: with_coordinates(x), 18),
    "summed_in_place": _between(summed_in_place, c=conv(16, 16)),
}  # fmt: skip

# Those that say with numbers of their own how many channels there are, and so get a forward in which these are rewritten.
REWRITTEN: dict[str, Make] = {
    "view_of_its_length": _between(lambda _m, x: x.view(len(x), 16, -1).unflatten(2, (8, 8))),
    "view": _between(lambda _m, x: x.view(x.shape[0], 16, -1).unflatten(2, (8, 8))),
    "view_and_mean": net(lambda m, x: m.head(F.relu(m.a(x)).view(-1, 16, 64).mean(2)), a=conv(3, 16), head=head(16)),
    "view_flat": net(lambda m, x: m.head(F.relu(m.a(x)).view(-1, 16 * 64)), a=conv(3, 16), head=head(16 * 64)),
    "view_as_gate": (
        _between(lambda m, x: x * torch.sigmoid(m.l(F.adaptive_avg_pool2d(x, 1).view(-1, 16)).view(-1, 16, 1, 1)),
                 l=nn.Linear(16, 16))),
    "shuffle": (
        _between(lambda m, x: F.relu(m.g(x)).view(-1, 4, 4, 8, 8).transpose(1, 2).contiguous().view(-1, 16, 8, 8),
                 g=conv(16, 16, groups=4))),
    "split": _between(lambda m, x: torch.cat([m.c((p := x.split([8, 8], 1))[0]), p[1]], 1), c=conv(8, 8)),
    "split_unequally": _between(lambda m, x: torch.cat([m.c((p := x.split([4, 12], 1))[1]), p[0]], 1), c=conv(12, 12)),
    "three_parts": _between(lambda _m, x: torch.cat(x.chunk(3, 1)[::-1], 1)),
    "sliced": _between(lambda m, x: torch.cat([m.c(x[:, :8]), x[:, 8:]], 1), c=conv(8, 8)),
    "narrowed": _between(lambda m, x: torch.cat([m.c(x.narrow(1, 0, 8)), x.narrow(1, -8, 8)], 1), c=conv(8, 8)),
    "the_last": _between(lambda _m, x: x[:, -8:] + x[:, 4:12], 8),
    "one_channel_picked": _between(lambda _m, x: x * torch.sigmoid(x[:, 3:4])),
    "partly": _between(partly, c=conv(4, 4)),
    "moved_in_time": _between(moved_in_time),
    "of_width_four": _between(of_width_four, layers=nn.ModuleList(conv(4, 4) for _ in range(3))),
    "expand": _between(lambda m, x: x + m.c(x).mean((2, 3), keepdim=True).expand(-1, 16, 8, 8), c=conv(16, 16)),
    "groups": _between(lambda m, x: F.conv2d(x, m.c.weight, m.c.bias, padding=1, groups=16), c=conv(16, 16, groups=16)),
    "unflatten": _between(lambda m, x: m.u(x).sum(1), 4, u=nn.Unflatten(1, (4, 4))),
    "literal_layer_norm": (
        _between(lambda m, x: channels_last(lambda y: F.layer_norm(y, (16,), m.w, m.s), x), w=scale(16), s=scale(16))),
    "many_headed": _between(lambda m, x: many_headed(m, x, width=8, joined=16), **_QKV),
    "of_many_layers": _between(lambda m, x: of_many_layers(m, x, width=8, joined=16), **_APART),
    "non_local": _between(non_local, **_FIXED_QKV),
    "of_mixed_kernels": _between(of_mixed_kernels, r=nn.Linear(16, 3), w=scale(3, 16, 16, 3, 3)),
    "multihead_attention": (
        net(lambda m, x: m.head(m.t(*[F.relu(m.a(x)).flatten(2).transpose(1, 2)] * 3, need_weights=False)[0].mean(1)),
            a=conv(3, 8), t=nn.MultiheadAttention(8, 2, batch_first=True), head=head(8))),
    "decoded": (
        net(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(pooled(x))).view(-1, 4, 5, 5)))),
            a=nn.Linear(3, 100), b=nn.ConvTranspose2d(4, 4, 2, stride=2), c=conv(4, 2))),
    "times_the_count": _between(lambda _m, x: x * x.shape[1]),
    "dict_of_views": (
        net(lambda m, x: {"classes": m.head(pooled(m.b(m.a(x).view(-1, 16, 8, 8)))), "map": m.c(m.a(x))},
            a=conv(3, 16), b=conv(16, 16), c=conv(16, 2), head=head(16))),
}  # fmt: skip

# Those that may be cut or left whole, but never cut wrongly.
AWKWARD: dict[str, Make] = {
    "module_shuffle_then_plain": _between(lambda m, x: m.s(x), s=nn.ChannelShuffle(4)),
    "module_shuffle_then_grouped": (
        _between(lambda m, x: m.g2(m.s(F.relu(m.g1(x)))),
                 s=nn.ChannelShuffle(4), g1=conv(16, 16, groups=4), g2=conv(16, 16, groups=4))),
    "interleaved": _between(interleaved, c=conv(8, 8)),
    "channels_selected": _between(lambda _m, x: x.index_select(1, torch.tensor([0, 2, 4, 5])), 4),
    "flipped_channels": _between(lambda _m, x: x + x.flip(1)),
    "eca": _between(eca, along=nn.Conv1d(1, 1, 3, padding=1, bias=False)),
    "running_sum": _between(lambda _m, x: x.cumsum(1)),
    "unregistered_constant": Unregistered,
    "constant_made_inside": _between(lambda _m, x: x * torch.ones(16, 1, 1)),
    "counted": _between(lambda _m, x: x * torch.arange(x.shape[1]).view(1, -1, 1, 1)),
    "float_inside": _between(lambda m, x: m.c(x.float()), c=conv(16, 16)),
    "autocast_inside": _between(lambda m, x: in_half_precision(m.c, x), c=conv(16, 16)),
    "queries_in_groups": (
        _between(lambda m, x: narrow_headed(m, x, enable_gqa=True), **(_APART | dict.fromkeys("kv", nn.Linear(16, 4))))),
    "computed_kernel": (
        _between(lambda m, x: F.conv2d(x, m.k(x.mean((0, 2, 3))).view(16, 16, 1, 1)), k=nn.Linear(16, 256))),
    "bilinear_pooling": (
        net(lambda m, x: m.head(torch.einsum("nchw,ndhw->ncd", *[F.relu(m.a(x))] * 2).flatten(1)),
            a=conv(3, 8), head=head(64))),
    "rows_filtered": _between(lambda m, x: m.c(x.transpose(1, 2)).transpose(1, 2), c=conv(8, 8)),
}  # fmt: skip

# Those that cannot be cut as they are written: no wrong network may be handed back.
UNWILLING: dict[str, Make] = {
    "view_of_a_counted_batch": _between(lambda _m, x: x.view(int(x.shape[0]), 16, -1).unflatten(2, (8, 8))),
    "four_groups_as_batch": _between(less_its_group),
    "deinterleaved": (
        _between(lambda _m, x: x.view(len(x), x.shape[1] // 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape))),
    "dropout_always_on": _between(lambda _m, x: F.dropout(x, 0.5)),
}  # fmt: skip
