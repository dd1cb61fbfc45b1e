"""The float network and its quantized copy side by side, node by node, over all calibration data.

So every layer can be fitted to what the float network gives there, on the inputs that the quantized one feeds it by then, in
a single pass over the data.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx

from penjing.errors import DataError
from penjing.graph import Graph
from penjing.graph.walk import behind
from penjing.progress import Progress, silent
from penjing.quant.insert import FIXED, Layer, layers, tensor
from penjing.score.flow import Batch, Flow
from penjing.task import samples_of

aten = torch.ops.aten


class Lockstep:
    """Both networks' values on all batches. Nodes that both have bear the same name.

    Attributes:
        reference: The values of the float network, by its nodes.
        module: Those of the quantized one, by its own nodes.
        networks: The float one and the quantized one.
        twin: ``{node of the quantized network: node of the float one}``, of those that both have.
        layers: Those of the quantized network whose weights have a grid.
        samples: How many there are in all batches together.

    Raises:
        DataError: There is no batch.
    """

    def __init__(self, reference: fx.GraphModule, module: fx.GraphModule, batches: Sequence[Batch]) -> None:
        self.samples, self.networks = count_samples(batches), (reference, module)
        self.reference = Flow(Graph(reference, batches[0], dynamic=True), batches)
        self.module = Flow(Graph(module, batches[0], dynamic=True), batches)
        self.twin = twins(reference, module)
        self.layers = list(layers(module))

    def walk(self) -> Iterator[tuple[fx.Node, Layer | None]]:
        """Node after node of the quantized network, with its layer where it is one whose weights have a grid.

        While a node is looked at, its values are there in both networks, and so is what it reads.
        """
        quantized = {layer.node: layer for layer in self.layers}
        for node in self.module.nodes:
            twin = self.twin.get(node)
            if twin is not None:
                self.reference.compute(twin)
            self.module.compute(node)
            yield node, quantized.get(node)
            self.module.drop(node)
            if twin is not None:
                self.reference.drop(twin)

    def again(self, layer: fx.Node) -> None:
        """Compute a layer of the quantized network once more, with the weight and bias that it has now."""
        weight = layer.args[1]
        assert isinstance(weight, fx.Node)
        made_of = behind(weight)
        in_order = [n for n in self.module.nodes if n in made_of]
        passing = [n for n in in_order if n not in self.module]
        for node in (*in_order, layer):
            self.module.compute(node)
        for values in self.module.held:
            for node in passing:
                values.pop(node)

    def put(self, node: fx.Node, values: Sequence[Tensor]) -> None:
        """Let all that follows in the quantized network read these values of a node, batch by batch."""
        for held, value in zip(self.module.held, values, strict=True):
            held[node] = value


class Pass(ABC):
    """One pass over both networks.

    Attributes:
        total: How many notes it gives.
    """

    total: int

    @abstractmethod
    def at(self, node: fx.Node, layer: Layer | None) -> Iterator[str]:
        """Change what is to be changed at a node; see ``Lockstep.walk``. Gives a note about each part that is done."""


class InOrder(ABC):
    """A rounding: changes the quantized network's weights, in place, to values on their grids, in the order they are read.

    So each part is fitted on what the parts before it, which are settled by then, feed it.
    """

    @abstractmethod
    def begin(self, both: Lockstep) -> Pass:
        """What it does, node by node."""

    def __call__(
        self, reference: fx.GraphModule, module: fx.GraphModule, batches: Sequence[Batch], progress: Progress = silent
    ) -> None:
        """Round all layers.

        Args:
            reference: The float network, norms folded.
            module: Its copy with fake-quantize nodes, whose weights are still those of ``reference``.
            batches: Inputs; a few hundred samples.

        Raises:
            DataError: There is none, a layer reads or gives values that are not finite, or their shapes do not suit.
        """
        both = Lockstep(reference, module, batches)
        work = self.begin(both)
        with progress("rounding", work.total) as advance:
            for node, layer in both.walk():
                for note in work.at(node, layer):
                    advance(note)


def count_samples(batches: Sequence[Batch]) -> int:
    """How many there are in all batches together.

    Raises:
        DataError: None.
    """
    samples = sum(map(samples_of, batches))
    if not samples:
        raise DataError("calibration is empty: it yields no sample; give a few hundred images")
    return samples


def twins(reference: fx.GraphModule, module: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """``{node of the quantized network: node of the float one}``, of those that both have."""
    named = {n.name: n for n in reference.graph.nodes}
    return {n: named[n.name] for n in module.graph.nodes if n.name in named}


def unquantized(node: fx.Node) -> fx.Node:
    """The node whose values a fake-quantize operation takes; any other node is its own."""
    source = node.args[0] if node.target in FIXED else node
    assert isinstance(source, fx.Node)
    return source


def added(node: fx.Node) -> fx.Node | None:
    """What alone is added to a layer's output, which nobody else reads; it may be computed later than the layer."""
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    if reader is None or reader.target is not aten.add.Tensor or reader.kwargs.get("alpha", 1) != 1:
        return None
    others = [a for a in reader.args if isinstance(a, fx.Node) and a is not node]
    return others[0] if len(others) == 1 else None


def parameter(module: fx.GraphModule, name: str) -> Tensor:
    """The parameter or buffer of that name."""
    found: Tensor = operator.attrgetter(name)(module)
    return found


def own(module: fx.GraphModule, name: str) -> bool:
    """Whether that is a parameter of a network, before grids are put into it, and is read once."""
    if not any(n.op == "get_attr" and n.target == name for n in module.graph.nodes):
        return False  # it is computed from the input
    value = parameter(module, name)
    reads = [n for n in module.graph.nodes if n.op == "get_attr" and tensor(module, n) is value]
    return sum(len(n.users) for n in reads) == 1
