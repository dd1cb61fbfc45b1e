"""Round the weights of a quantized network by what its layers' outputs lose, from unlabeled data; the grids stay.

Layer after layer, on the inputs that the quantized network gives by then: the target is what the float network's layer gives
(or, where that is added to a value known by then, what makes the sum right), so that each layer also makes up for the errors
before it. Biases take up the mean. Weights that are used twice, or read an input without a batch, are left to the nearest.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from penjing.graph import Graph
from penjing.progress import Progress, silent
from penjing.quant.codes import Problem, best_of, flipped, gptq_codes, relaxed_codes
from penjing.quant.grids import Grid, spread
from penjing.quant.insert import Layer
from penjing.quant.lockstep import InOrder, Lockstep, Pass, added, count_samples, own, parameter
from penjing.quant.reconstruct import Reconstruction
from penjing.score.flow import Batch
from penjing.score.gram import Moments, least_squares, places, ridge_diagonal, squared_error
from penjing.score.products import Product, products

Rounding = Callable[[fx.GraphModule, fx.GraphModule, Sequence[Batch], Progress], None]
Quantizer = Callable[[Problem], Tensor]
HELD_BACK = 0.2  # share of the samples that ridges are judged by


@dataclass(frozen=True, kw_only=True)
class AdaRound:
    """Settings of ``adaround``."""

    steps: int = 300
    lr: float = 0.1
    push: float = 1.0  # towards 0 and 1, where 1 is the error of a weight that is rounded to the nearest
    largest: int = 1500  # columns of a layer that is learned; a step's cost grows with their square

    def __call__(self, problem: Problem) -> Tensor:
        """The best of what is learned, GPTQ and the nearest, each moved on until no single move helps."""
        start = gptq_codes(problem)
        found = [start, problem.encode(problem.target)]
        if problem.target.shape[2] <= self.largest:
            found.append(relaxed_codes(problem, start, steps=self.steps, lr=self.lr, push=self.push))
        return best_of(problem, [flipped(problem, codes) for codes in found])


@dataclass(frozen=True, kw_only=True)
class LayerByLayer(InOrder):
    """Layer after layer; biases take up the mean.

    Attributes:
        quantizer: How one layer's integers are found.
        ridges: How strongly a layer is held to its float weights, as shares of its inputs' mean square; for each layer
            the one is taken that does best on samples that were held back.
        seed: Of which samples are held back, and which places of the layers' inputs are looked at, where there are many.
    """

    quantizer: Quantizer
    ridges: tuple[float, ...] = (0.01, 0.1, 1.0)
    seed: int = 0

    def begin(self, both: Lockstep) -> Pass:
        """See ``InOrder``."""
        return _Layers(self, both)


class _Layers(Pass):
    """The layers that can be rounded by what they read, each in its turn."""

    def __init__(self, settings: LayerByLayer, both: Lockstep) -> None:
        self.settings, self.both = settings, both
        reference, self.gm = both.networks
        graph = Graph(reference, both.reference.batches[0], dynamic=True)
        known = {p.node: p for p in products(graph).values()}
        self.products = {n: known[twin] for n, twin in both.twin.items() if twin in known}
        self.total = sum(layer.node in self.products for layer in both.layers)
        self.generator = torch.Generator().manual_seed(settings.seed)

    def at(self, node: fx.Node, layer: Layer | None) -> Iterator[str]:
        if layer is None or node not in self.products:
            return
        product = self.products[node]
        product = product if product.bias is None or own(self.gm, product.bias) else replace(product, bias=None)
        self._round(layer, product, *_moments(self.both, layer, product, self.generator))
        self.both.again(node)
        yield layer.weight

    def _round(self, layer: Layer, product: Product, use: Moments, back: Moments) -> None:
        weight = parameter(self.gm, layer.weight)
        bias = None if product.bias is None else parameter(self.gm, product.bias)
        old, moments = _matrix(product, weight, bias), use + back

        def held_back(ridge: float) -> float:
            return squared_error(back, least_squares(use, old, ridge, columns=product.columns))

        ridges = self.settings.ridges
        ridge = min(ridges, key=held_back) if use.count and back.count else max(ridges)
        codes = self.settings.quantizer(problem_of(product, layer.grid, weight, bias, moments, ridge))
        with torch.no_grad():
            weight.copy_(layer.grid.decode(product.unmatrix(codes, weight.shape).to(layer.grid.zero_point)))
            if bias is not None:
                bias.copy_(_bias(moments, product.matrix(weight.detach().double())).flatten())


def nearest(reference: fx.GraphModule, module: fx.GraphModule, batches: Sequence[Batch], progress: Progress = silent) -> None:
    """What the fake-quantize operations do by themselves: nothing is changed.

    Raises:
        DataError: There is no batch.
    """
    del reference, module, progress
    count_samples(batches)


def problem_of(product: Product, grid: Grid, weight: Tensor, bias: Tensor | None, moments: Moments, ridge: float) -> Problem:
    """The layer's error ``|y - V x - b|^2 / n + ridge m |V - W|^2``, up to a constant; ``m`` is the mean square of ``x``.

    With a bias, whatever ``V`` is chosen, ``b`` is the one that suits it best, so only what varies of ``x`` counts.
    """
    old = _matrix(product, weight, bias)
    second = moments.xx / moments.count
    held = second + torch.diag_embed(ridge_diagonal(second, product.columns, ridge))
    d = product.columns
    target = least_squares(moments, old, ridge, columns=d)[:, :, :d]
    held = held[:, :d, :d]
    if bias is not None:
        held = held - second[:, :d, d:] @ second[:, d:, :d]
    scale, zero = (
        product.matrix(spread(t, weight.shape).expand(weight.shape)).double().cpu() for t in (grid.scale, grid.zero_point)
    )
    return Problem(target.contiguous(), held, scale, zero, grid.low, grid.high)


def _matrix(product: Product, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's weight, with its bias as a last column: ``(groups, outputs, d)``, in float64."""
    matrix = product.matrix(weight.detach().double().cpu())
    if bias is None:
        return matrix
    return torch.cat([matrix, bias.detach().double().cpu().view(*matrix.shape[:2], 1)], 2)


def _moments(both: Lockstep, layer: Layer, product: Product, generator: torch.Generator) -> tuple[Moments, Moments]:
    """Of what the quantized layer reads, with what the float one should give: to fit on, and of samples that are held back."""
    use, back = Moments(), Moments()
    read = layer.node.args[0]
    assert isinstance(read, fx.Node)
    for x, y in zip(both.module[read], _targets(both, layer.node), strict=True):
        apart = torch.rand(len(y), generator=generator) < HELD_BACK
        for at in places(product, y, both.samples, generator):
            rows, wanted = product.rows(x, at), product.outputs(y, at)
            held = apart[(at // product.positions(y)).cpu()].to(at.device)
            use.add(rows[:, ~held], wanted[:, ~held])
            back.add(rows[:, held], wanted[:, held])
    (use + back).check(product.weight)
    return use, back


def _targets(both: Lockstep, node: fx.Node) -> list[Tensor]:
    """What the layer should give, batch by batch."""
    twin = both.twin[node]
    wanted: list[Tensor] = both.reference[twin]
    other = added(twin)
    if other is None or other not in both.reference:
        return wanted
    quantized = _addend(both, twin, other)
    if quantized is None:
        return wanted
    pairs = list(zip(wanted, both.reference[other], both.module[quantized], strict=True))
    if any(y.shape != a.shape for y, a, _ in pairs):  # something is broadcast
        return wanted
    return [y + a - b for y, a, b in pairs]


def _addend(both: Lockstep, twin: fx.Node, other: fx.Node) -> fx.Node | None:
    """What the quantized network adds in the place of ``other``, if it is known by then."""
    add = next(iter(twin.users))
    (mine,) = [n for n, t in both.twin.items() if t is add]
    found = mine.args[add.args.index(other)]
    return found if isinstance(found, fx.Node) and found in both.module else None


def _bias(moments: Moments, matrix: Tensor) -> Tensor:
    """What makes the mean output right."""
    d = matrix.shape[2]
    mean = moments.xx[:, :d, -1:] / moments.count
    return (moments.yx[:, :, -1:] / moments.count - matrix.cpu() @ mean)[:, :, 0]


gptq = LayerByLayer(quantizer=gptq_codes)
adaround = LayerByLayer(quantizer=AdaRound())
blocks = Reconstruction(layers=gptq)

ROUNDINGS: dict[str, Rounding] = {"nearest": nearest, "gptq": gptq, "adaround": adaround, "blocks": blocks}
