"""Post-training quantization: read, fold, place, calibrate, and put torch's own fake-quantize operations into the graph.

What comes out is a trainable module; the export writes the same graph, so what is trained is what ships.
"""

import copy
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch

import torch
from torch import Tensor, fx, nn

from penjing.errors import DataError, ModelError, RecipeError, nearest
from penjing.graph import as_inputs, capture, check_weights
from penjing.graph.layers import TRANSPOSED
from penjing.graph.walk import arguments
from penjing.progress import Progress, silent
from penjing.quant.calibrate import Seen, calibrate
from penjing.quant.correct import correct_bias_from_means, round_biases, separate_biases
from penjing.quant.equalize import BOUNDED, absorb_biases, equalize
from penjing.quant.even import even_out
from penjing.quant.fold import convolutions_to_scalings, is_scaling
from penjing.quant.grids import GRIDS, Grid, blocked, counts
from penjing.quant.insert import insert_grid, tensor
from penjing.quant.learned import has_grids
from penjing.quant.observers import OBSERVERS, MinMax
from penjing.quant.place import Placement, is_grouped_in_3d, is_joined, names_of, origin, place, readers
from penjing.quant.prepare import prepare
from penjing.quant.rounding import ROUNDINGS
from penjing.quant.scheme import Scheme
from penjing.quant.targets import WEIGHTED, Target, target_named
from penjing.task import Inputs, as_tuple

LARGE = 2**24  # bytes of weights; looking for garbage among all that there is takes longer than quantizing a small network
OPTIONAL = 0.5  # share of a value that may become zero where those who read it can as well stay in float
LOST = 0.5  # share of a value's numbers that a concatenation's grid may turn into zeros for those who read the value itself


def quantize(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    calibration: Iterable[Inputs],
    *,
    target: str = "onnxruntime",
    scheme: Scheme | None = None,
    progress: Progress = silent,
) -> fx.GraphModule:
    """An integer version of ``model`` in fake-quantized float: int8 weights and values, placed as the target wants them.

    A layer that reads values of so wide a range that nearly all that is not zero would become zero stays in float, and so does
    one that reads channels of very different size, as where inputs are not normalized;
    ``module.meta["reasons"]`` has every layer that does, and why.

    Args:
        example: Inputs as the model takes them; only their shapes matter.
        calibration: Batches of inputs (no labels); a few hundred images do.
        target: The runtime it is for; its profile says where the grids go.
        scheme: How many bits, which grids, how they are found.

    Raises:
        DataError: ``calibration`` is empty, no batches, or makes a value that is not finite.
        ModelError: The model cannot be read, or its weights are not finite.
        RecipeError: The target is not known, or ``scheme.exclude`` names no parameter.
    """
    quantizer = Quantizer(model, example, calibration, target=target_named(target), scheme=scheme, progress=progress)
    return quantizer.module(sharing=quantizer.scheme.rounding == "nearest")  # which leaves weights as they are


class Quantizer:
    """A network that was read, prepared and watched once, and can be quantized in several ways.

    Attributes:
        reference: The prepared network in float.
        batches: The calibration data.
        noisy: ``{layer: why it stays in float}``, of those whose integers would drown what they give.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor | Sequence[Tensor],
        calibration: Iterable[Inputs],
        *,
        target: Target,
        scheme: Scheme | None = None,
        progress: Progress = silent,
    ) -> None:
        """See ``quantize``."""
        self.target, self.scheme, self.progress = target, scheme or Scheme(), progress
        if isinstance(calibration, Tensor):
            raise DataError("calibration data is one tensor; give a loader or a list of batches, e.g. list(images.split(64))")
        if not isinstance(calibration, Iterable) or isinstance(calibration, str | Mapping):
            raise DataError(f"calibration is {type(calibration).__name__}; give a loader or a list of batches of inputs")
        check_weights(model)
        if isinstance(model, fx.GraphModule) and has_grids(model):
            raise ModelError("the network is quantized already; give the one in float that it was made from")
        self.reference = capture(model, as_inputs(example)).module
        if sum(t.nbytes for t in model.state_dict().values() if isinstance(t, Tensor)) > LARGE:
            gc.collect()  # what reading leaves lies in cycles, and would stay while calibration takes memory
        self.batches = list(calibration) if isinstance(calibration, Iterator) else calibration
        prepare(self.reference, target)
        _check_patterns(self.reference, self.scheme.exclude)
        bits = min(target.weight_bits, self.scheme.weight_bits)
        evened = even_out(self.reference, self.batches, weight_bits=bits, value_bits=self.scheme.value_bits)
        self.noisy = {name: _told(noise) for name, noise in evened.noise.items() if noise > self.scheme.noise}
        if self.scheme.equalize:
            self._equalize()
        self.seen = Seen()

    def bold(self) -> "Quantizer":
        """The same, with integers also where ``scheme.noise`` leaves layers in float; what either sees the other has seen."""
        other = copy.copy(self)
        other.noisy = {}
        return other

    def module(self, floats: Iterable[str] = (), target: Target | None = None, *, sharing: bool = False) -> fx.GraphModule:
        """The quantized network.

        Args:
            floats: Names of layers' and operations' nodes in ``reference`` that stay in float.
            target: Another profile than the one it was made for.
            sharing: Whether its weights are those of ``reference`` and not a copy, for memory; biases are copies.

        Raises:
            DataError: See ``quantize``.
        """
        placement = self.placement(floats, target)
        shared = {id(w): w for w in self.reference.parameters() if w.ndim > 1} if sharing else {}
        module = copy.deepcopy(self.reference, shared)
        self._insert_weights(module, placement, target or self.target)
        self._insert_values(module, placement, target or self.target)
        separate_biases(module)
        module.graph.lint()
        module.recompile()
        if self.scheme.rounding != "nearest":
            ROUNDINGS[self.scheme.rounding](self.reference, module, list(self.inputs()), self.progress)
        elif self.scheme.correct_bias:
            correct_bias_from_means(module, self.seen.means)
        round_biases(module)
        _undo(module, placement)
        return module

    def plain(self) -> fx.GraphModule:
        """The network as it is written where nothing is in integers."""
        module = copy.deepcopy(self.reference)
        convolutions_to_scalings(module)
        return module

    def _equalize(self) -> None:
        """Even out channels between layers, and move constants out of what ReLUs let through whole."""
        clips = {n.name for n in self.reference.graph.nodes if n.target in BOUNDED}
        seen = calibrate(self.reference, self.batches, clips, MinMax, progress=self.progress)
        equalize(self.reference, seen={name: float(o.limits()[1]) for name, o in seen.values.items()})
        layers = {n.name for n in self.reference.graph.nodes if n.target in WEIGHTED}
        seen = calibrate(self.reference, self.batches, set(), MinMax, least=layers, progress=self.progress)
        absorb_biases(self.reference, seen.lowest)

    def inputs(self) -> Iterator[tuple[Tensor, ...]]:
        """The calibration batches."""
        return (as_tuple(inputs) for inputs in self.batches)

    def placement(self, floats: Iterable[str] = (), target: Target | None = None) -> Placement:
        """Where the grids of ``module`` go; layers behind values that no grid can hold are left out."""
        floats, target, coarse, alone = frozenset(floats), target or self.target, dict[str, str](), frozenset[str]()
        while True:
            placement = place(
                self.reference,
                target,
                exclude=self.scheme.exclude,
                floats=floats,
                coarse=coarse,
                noisy=self.noisy,
                alone=alone,
            )
            if self.scheme.outputs:
                placement.values.update({n.name: n.name for n in self._outputs() if n.name not in placement.values})
            self._watch(placement)
            if lost := self._lost_among_others(placement, target):
                alone |= lost
                continue
            found = {name: self._lost(shared, target) for name, shared in placement.values.items()}
            most = dict.fromkeys(placement.optional, min(OPTIONAL, self.scheme.lost))
            worse = {n: lost for n, lost in found.items() if lost > most.get(n, self.scheme.lost) and n not in coarse}
            if not worse:
                return placement
            coarse |= {name: f"{lost:.0%} of what is not zero in {name} would become zero" for name, lost in worse.items()}

    def _outputs(self) -> list[fx.Node]:
        nodes = self.reference.graph.output_node().all_input_nodes
        return [n for n in nodes if n.meta["val"].is_floating_point()]

    def _watch(self, placement: Placement) -> None:
        """Calibrate the values that were not seen yet."""
        if missing := {*placement.values.values(), *placement.joined} - set(self.seen.values):
            make = OBSERVERS[self.scheme.observer]
            read = {n.args[0].name for n in self.reference.graph.nodes if n.name in placement.weights}
            means = read - set(self.seen.means)
            with self._laid_out():
                self.seen.update(calibrate(self.reference, self.batches, missing, make, means=means, progress=self.progress))

    @contextmanager
    def _laid_out(self) -> Iterator[None]:
        """While networks are run: weights as convolutions want them."""
        own = [p for p in self.reference.parameters() if p.ndim == 4]
        for p in own:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
        try:
            yield
        finally:
            for p in own:
                p.data = p.data.contiguous()

    def _lost(self, name: str, target: Target, shared: str | None = None) -> float:
        """Which share of a value becomes zero on its own grid, or on that of another value."""
        return self.seen.values[name].typical_lost(self._value_grid(shared or name, target, self.scheme.value_bits))

    def _lost_among_others(self, placement: Placement, target: Target) -> frozenset[str]:
        """Values that are small beside those they are concatenated with, so that others who read them would read zeros."""
        shared = {name: placement.values[name] for name in placement.joined}
        return frozenset(n for n, other in shared.items() if self._lost(n, target, other) - self._lost(n, target) > LOST)

    def _insert_weights(self, module: fx.GraphModule, placement: Placement, target: Target) -> None:
        nodes = {n.name: n for n in module.graph.nodes}
        edges = self._edges(placement)
        readers: dict[fx.Node, list[str]] = {}  # of each weight, which may serve several layers
        for name in placement.weights:
            readers.setdefault(nodes[name].args[1], []).append(name)
        for weight, names in readers.items():
            edge = not edges.isdisjoint(names)
            bits = min(target.weight_bits, self.scheme.edge_bits if edge else self.scheme.weight_bits)
            plain = any(_has_no_blocks(nodes[name]) for name in names)
            scheme = replace(self.scheme, block="channel") if plain and self.scheme.block != "tensor" else self.scheme
            grid = weight_grid(tensor(module, weight).detach(), placement.weights[names[0]], bits, scheme)
            for name in names:
                grid = self._with_room(grid, module, nodes[name], placement, target)
            insert_grid(module, weight, weight.name, grid)

    def _insert_values(self, module: fx.GraphModule, placement: Placement, target: Target) -> None:
        nodes = {n.name: n for n in module.graph.nodes}
        for name, shared in placement.values.items():
            insert_grid(module, nodes[name], shared, self._shared_grid(shared, placement, target))

    def _with_room(self, grid: Grid, module: fx.GraphModule, layer: fx.Node, placement: Placement, target: Target) -> Grid:
        """The grid with scales large enough for the bias: runtimes keep it in 32 bits, in steps of both scales' product."""
        source, bias = layer.args[0], layer.args[2] if len(layer.args) > 2 else None
        shared = placement.values.get(source.name) if isinstance(source, fx.Node) else None
        if shared is None or not isinstance(bias, fx.Node) or bias.op != "get_attr":
            return grid
        step = self._shared_grid(shared, placement, target).scale
        least = tensor(module, bias).detach().abs() / (step * 2**30)  # half of what 32 bits hold: correction may add to it
        fits = grid.scale.ndim and grid.scale.numel() == least.numel()
        least = least.view(grid.scale.shape) if fits else least.max()
        return replace(grid, scale=torch.maximum(grid.scale, least))

    @staticmethod
    def _edges(placement: Placement) -> set[str]:
        """The first and the last layer."""
        names = list(placement.weights)
        return {names[0], names[-1]} if names else set()

    def _value_bits(self, shared: str, placement: Placement) -> int:
        """Of a grid of values: what the first and the last layer read has those of edges at least."""
        nodes = {n.name: n for n in self.reference.graph.nodes}
        read = {placement.values.get(nodes[name].args[0].name) for name in self._edges(placement)}
        return max(self.scheme.value_bits, self.scheme.edge_bits if shared in read else 0)

    def _shared_grid(self, shared: str, placement: Placement, target: Target) -> Grid:
        """The grid of all values that share it; of the kind that outputs have, where the network gives one of them."""
        given = self.scheme.outputs is not None and shared in {placement.values[n.name] for n in self._outputs()}
        return self._value_grid(shared, target, self._value_bits(shared, placement), self.scheme.outputs if given else None)

    def _value_grid(self, name: str, target: Target, bits: int, kind: str | None = None) -> Grid:
        seen = self.seen.values[name]
        signed = "affine" if self._is_joined(name) else target.signed_values
        chosen = kind or self.scheme.values or (signed if float(seen.low) < 0 else "affine")
        low, high = (v.reshape(()) for v in seen.aimed(bits=bits, signed=chosen == "symmetric").limits())
        most = _bound(next(n for n in self.reference.graph.nodes if n.name == name))
        return GRIDS[chosen](low, high.clamp(max=most), seen.mean().reshape(()), bits)

    def _is_joined(self, name: str) -> bool:
        """Whether a value is put together from others or becomes a part of one.

        OpenVINO (2026.4) turns signed integers into unsigned ones for convolutions, where the processor has no AMX, and loses
        their zero behind a concatenation; a grid that is unsigned from the start it reads rightly.
        """
        node = next(n for n in self.reference.graph.nodes if n.name == name)
        return any(is_joined(n) for n in (node, origin(node), *readers(node))) or any(map(is_grouped_in_3d, readers(node)))


def _has_no_blocks(layer: fx.Node) -> bool:
    """Whether OpenVINO reads no blocks of its input channels (groups), or the graph cannot hold them (they come first)."""
    return layer.target in TRANSPOSED or arguments(layer).get("groups", 1) != 1


def _undo(module: fx.GraphModule, placement: Placement) -> None:
    """Write norms that stayed in float as products and sums, in place; they are no layers any more."""
    norms = {n.name for n in module.graph.nodes if is_scaling(n)} - placement.weights.keys()
    convolutions_to_scalings(module, placement.weights)
    module.meta["reasons"] = {name: why for name, why in placement.reasons.items() if name not in norms}


def _told(noise: float) -> str:
    times = f"{noise:.0f} times" if noise >= 2 else f"{noise:.0%} of"
    return f"rounding what it reads to 8 bits makes noise of {times} what it gives: its channels differ too much in size"


def _check_patterns(module: fx.GraphModule, patterns: Sequence[str]) -> None:
    """Refuse a pattern that names no layer's weight.

    Raises:
        RecipeError: There is none.
    """
    names = [name for n in module.graph.nodes if n.target in WEIGHTED for name in names_of(n)]
    for pattern in patterns:
        if names and not any(fnmatch(name, pattern) for name in names):
            near = nearest(pattern, names)
            raise RecipeError(
                f"exclude has {pattern!r}, and no layer's weight is called so; did you mean {near or names[0]!r}?"
            )


def weight_grid(weight: Tensor, axis: int, bits: int, scheme: Scheme) -> Grid:
    """The grid of a weight; ``axis`` is the dim of its output channels."""
    parts = counts(weight.shape, axis, scheme.block)
    rows = blocked(weight, parts)
    observer = OBSERVERS[scheme.weight_observer](bits=bits, signed=scheme.weights == "symmetric")
    observer.update(rows)
    low, high = observer.limits()
    return GRIDS[scheme.weights](low.view(parts), high.view(parts), rows.mean(1).view(parts), bits)


def _bound(node: fx.Node) -> float:
    """The most that an activation lets through, a little less: OpenVINO keeps a clip that its grid reaches beyond."""
    most = 6.0 if node.target is torch.ops.aten.relu6.default else float("inf")
    if node.target is torch.ops.aten.hardtanh.default:
        given = node.args[2] if len(node.args) > 2 else 1.0
        assert isinstance(given, int | float)
        most = float(given)
    return most * (1 - 1e-6)
