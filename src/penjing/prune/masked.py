"""The reference of the oracle: the original's graph, run with the dropped channels taking no part where channels are mixed.

Nothing is cut. Where a layer sums over channels, the dropped ones are zeroed on the way in; where a norm, a mean, a maximum
or a softmax is taken over channels, it is taken over those that stay.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from penjing.graph import Channels
from penjing.graph.labels import Labels
from penjing.graph.rules import overloads

aten = torch.ops.aten


class Masked(fx.Interpreter):
    """Run a graph as if the channels that ``keep`` leaves out were not there; every value keeps its full size."""

    def __init__(self, module: fx.GraphModule, channels: Channels, keep: Mapping[str, Mapping[int, tuple[int, ...]]]) -> None:
        super().__init__(module)
        self.mixes = channels.ledger.mixes
        self.alive = channels.alive(keep)
        self.device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))

    def run_node(self, n: fx.Node) -> Any:
        told = [self.mask(labels) for labels in self.mixes.get(n.name, ())]
        masks = [mask for mask in told if not bool(mask.all())]
        if not masks:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        kind: Callable[..., Any] = _KINDS.get(n.target, _zeroed)
        return kind(n, masks, *args, **kwargs)

    def mask(self, labels: Labels) -> Tensor:
        """Which elements of a value stay; shape as the labels', boolean."""
        return torch.where(labels >= 0, self.alive[labels.clamp_min(0)], True).to(self.device)


def _zeroed(node: fx.Node, masks: list[Tensor], x: Tensor, *args: Any, first: tuple[Any, ...] = (), **kwargs: Any) -> Any:
    """A sum over channels: those that are dropped add nothing."""
    for mask in masks:
        x = torch.where(_fitted(mask, x), x, torch.zeros((), dtype=x.dtype, device=x.device))
    return node.target(*first, x, *args, **kwargs)  # type: ignore[operator]


def _product_sum(node: fx.Node, masks: list[Tensor], bias: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return _zeroed(node, masks, x, *args, first=(bias,), **kwargs)


def _compressed(node: fx.Node, masks: list[Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A mean, a maximum, a norm, a softmax over those that stay."""
    places = [_places(mask) for mask in masks]
    small = x
    for dim, index in places:
        small = torch.take_along_dim(small, index.expand(_shape_but(small, dim, index.shape[dim])), dim)
    out = node.target(small, *args, **kwargs)  # type: ignore[operator]
    return _spread(out, places, x) if isinstance(out, Tensor) and out.shape == small.shape else out


def _layer_norm(node: fx.Node, masks: list[Tensor], x: Tensor, shape: list[int], *args: Any, **kwargs: Any) -> Any:
    """Over the last dimensions, of which those that stay are taken, from the weights too."""
    places = [_places(mask) for mask in masks]
    small, given = x, list(args)
    for dim, index in places:
        small = torch.take_along_dim(small, index.expand(_shape_but(small, dim, index.shape[dim])), dim)
        own = dim - x.ndim + len(shape)
        given = [g.index_select(own, index.flatten()) if isinstance(g, Tensor) else g for g in given]
    out = node.target(small, list(small.shape[-len(shape) :]), *given, **kwargs)  # type: ignore[operator]
    return _spread(out, places, x)


def _group_norm(node: fx.Node, masks: list[Tensor], x: Tensor, groups: int, *args: Any, **kwargs: Any) -> Any:
    """In every group over those that stay, which are equally many."""
    dim, index = _places(masks[0])
    kept = index.flatten()
    given = [g.index_select(0, kept) if isinstance(g, Tensor) else g for g in args]
    out = node.target(x.index_select(dim, kept), groups, *given, **kwargs)  # type: ignore[operator]
    return _spread(out, [(dim, index)], x)


def _fitted(mask: Tensor, x: Tensor) -> Tensor:
    """The mask for a batch of another size than that of the example."""
    return mask if mask.shape == x.shape else _narrowed(mask).expand(x.shape)


def _narrowed(mask: Tensor) -> Tensor:
    for dim in range(mask.ndim):
        if mask.shape[dim] > 1 and bool((mask == mask.narrow(dim, 0, 1)).all()):
            mask = mask.narrow(dim, 0, 1)
    return mask


def _places(mask: Tensor) -> tuple[int, Tensor]:
    """Along which dimension the mask drops elements, and the indices that stay there; equally many in every row."""
    small = _narrowed(mask)
    dims = [d for d in range(small.ndim) if small.shape[d] > 1]
    counts = {d: small.sum(d) for d in dims}
    dim = next(d for d in reversed(dims) if bool((counts[d] == counts[d].flatten()[0]).all()) and int(counts[d].flatten()[0]))
    n = int(counts[dim].flatten()[0])
    order = small.to(torch.uint8).sort(dim=dim, descending=True, stable=True).indices.narrow(dim, 0, n)
    return dim, order.sort(dim=dim).values


def _shape_but(x: Tensor, dim: int, size: int) -> list[int]:
    return [size if d == dim else n for d, n in enumerate(x.shape)]


def _spread(out: Tensor, places: list[tuple[int, Tensor]], x: Tensor) -> Tensor:
    """Put the results back where they belong; what was dropped becomes zero."""
    for dim, index in reversed(places):
        wide = torch.zeros(_shape_but(out, dim, x.shape[dim]), dtype=out.dtype, device=out.device)
        out = wide.scatter(dim, index.expand(out.shape), out)
    return out


_KINDS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        overloads(
            "mean", "amax", "amin", "var", "std", "var_mean", "std_mean", "logsumexp", "prod", "linalg_vector_norm", "norm",
            "batch_norm", "softmax", "_softmax", "log_softmax", "_log_softmax", "_weight_norm",
        ),
        _compressed,
    ),
    **dict.fromkeys([aten.max.dim, aten.min.dim], _compressed),
    **dict.fromkeys(overloads("layer_norm", "rms_norm"), _layer_norm),
    **dict.fromkeys(overloads("group_norm"), _group_norm),
    **dict.fromkeys(overloads("addmm", "baddbmm"), _product_sum),
}  # fmt: skip
