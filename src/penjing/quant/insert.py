"""Put grids into a graph as torch's own fake-quantize operations, and read them back from there."""

import copy
import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from penjing.quant.editable import set_tensor
from penjing.quant.grids import Grid
from penjing.quant.targets import WEIGHTED

aten = torch.ops.aten
WHOLE = aten.fake_quantize_per_tensor_affine.tensor_qparams  # one scale in all
SLICES = aten.fake_quantize_per_channel_affine.default  # one for each index of a dim
FIXED = frozenset({WHOLE, SLICES})


@dataclass(frozen=True)
class Layer:
    """A convolution or a linear layer whose weights have a grid."""

    node: fx.Node
    weight: str  # name of the parameter, in float
    bias: str | None  # name of the parameter, or of the operation that it is computed by
    axis: int  # dim of the weight that holds the output channels
    grid: Grid


def insert_grid(module: fx.GraphModule, node: fx.Node, name: str, grid: Grid) -> None:
    """Quantize what ``node`` gives, in place, for all who read it; the grid becomes the buffers ``grids.of_<name>.*``."""
    readers = list(node.users)
    graph, after, held = module.graph, node, []
    blocks = _lasting_dims(grid.scale)
    shape = tuple(node.meta["val"].shape)
    folded = blocks and any(n not in (1, shape[d]) for d, n in enumerate(grid.scale.shape))
    for leaf, value in (("scale", grid.scale), ("zero_point", grid.zero_point)):
        path = f"grids.of_{name}.{leaf}"  # a bare name may be that of a module's method, such as "to"
        set_tensor(module, path, value.flatten() if blocks else value.reshape(()))
        with graph.inserting_after(after):
            after = graph.get_attr(path)
        held.append(after)
    source = node
    if folded:  # blocks of input channels: torch has scales along one dim only, so blocks become that dim
        rows = grid.scale.numel()
        source = after = _call(graph, after, aten.view.default, (node, [rows, shape[0] * shape[1] // rows, *shape[2:]]))
    along = () if not blocks else (0,) if folded else (blocks[0],)
    after = _call(graph, after, SLICES if along else WHOLE, (source, *held, *along, grid.low, grid.high))
    if folded:
        after = _call(graph, after, aten.view.default, (after, list(shape)))
    after.meta = copy.copy(node.meta)
    for reader in readers:
        reader.replace_input_with(node, after)


def _lasting_dims(scale: Tensor) -> list[int]:
    return [d for d, n in enumerate(scale.shape) if n > 1]


def _call(graph: fx.Graph, after: fx.Node, target: object, args: tuple[object, ...]) -> fx.Node:
    with graph.inserting_after(after):
        return graph.call_function(target, args)  # type: ignore[arg-type]


def layers(module: fx.GraphModule) -> Iterator[Layer]:
    """Every layer whose weights have a grid, in the order of the graph."""
    for node in module.graph.nodes:
        if node.target not in WEIGHTED:
            continue
        source, views = node.args[1], False
        if source.target is aten.view.default:
            source, views = source.args[0], True
        if source.target not in FIXED:
            continue
        held = source.args[0].args[0] if views else source.args[0]
        shape = tensor(module, held).shape
        bias = node.args[2] if len(node.args) > 2 else None
        grid = _grid(module, source, shape, views)
        yield Layer(node, str(held.target), None if bias is None else str(bias.target), WEIGHTED[node.target], grid)


def read_weight(fake: fx.Node) -> fx.Node | None:
    """The parameter that a fake-quantize node reads, in blocks or not; None where it reads a value."""
    source = fake.args[0]
    if isinstance(source, fx.Node) and source.target is aten.view.default:
        source = source.args[0]
    return source if isinstance(source, fx.Node) and source.op == "get_attr" else None


def weight_name(layer: fx.Node) -> str:
    """The name of the parameter that a layer's weight is, with or without a grid; empty where it is computed."""
    source = layer.args[1]
    while isinstance(source, fx.Node) and (source.target in FIXED or source.target is aten.view.default):
        source = source.args[0]
    return str(source.target) if isinstance(source, fx.Node) and source.op == "get_attr" else ""


def value_grid(module: fx.GraphModule, node: fx.Node) -> Grid | None:
    """The grid of what ``node`` gives, where it is a fake-quantize operation on a whole value."""
    if node.target is not WHOLE:
        return None
    scale, zero = (tensor(module, n) for n in node.args[1:3])
    return Grid(scale, zero, *_limits(node))


def tensor(module: fx.GraphModule, node: object) -> Tensor:
    """The parameter or buffer that a ``get_attr`` node reads."""
    assert isinstance(node, fx.Node)
    found: Tensor = operator.attrgetter(str(node.target))(module)
    return found


def _grid(module: fx.GraphModule, fake: fx.Node, shape: torch.Size, views: bool) -> Grid:
    scale, zero = (tensor(module, n) for n in fake.args[1:3])
    if fake.target is SLICES:
        axis = fake.args[3]
        assert isinstance(axis, int)
        sizes = [1] * len(shape)
        sizes[axis] = len(scale)
        if views:
            sizes[0], sizes[1] = shape[0], len(scale) // shape[0]
        scale, zero = scale.view(sizes), zero.view(sizes)
    return Grid(scale, zero, *_limits(fake))


def _limits(fake: fx.Node) -> tuple[int, int]:
    low, high = fake.args[-2:]
    assert isinstance(low, int)
    assert isinstance(high, int)
    return low, high
