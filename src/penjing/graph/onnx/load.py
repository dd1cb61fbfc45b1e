"""Read a float network from an ONNX file as an ordinary module, to be pruned, quantized, trained and exported again."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penjing.errors import ModelError, first_line
from penjing.graph.onnx.layers import LAYERS, Layer
from penjing.graph.onnx.network import Branch, Choose, OnnxNetwork, Operate, Ref, Shelf, Step, layer_step
from penjing.graph.onnx.ops import OPERATIONS
from penjing.graph.onnx.values import DTYPES, Call, Value, as_tensor, is_numbers, plain

_SHOWN = 5  # operators in an error
_STATIC = {  # inputs that torch wants as numbers
    "Clip": (1, 2), "Dropout": (1, 2), "Pad": (1, 2, 3), "Resize": (1, 2, 3), "Upsample": (1,),
}  # fmt: skip
_LEARNED = {  # operations whose constants are weights to train, where they are not of a layer
    "Add", "Mul", "MatMul", "Gemm", "Conv", "ConvTranspose", "PRelu", "InstanceNormalization", "LayerNormalization",
    "GroupNormalization", "Einsum",
}  # fmt: skip
_SCALED = {"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"}  # operations to which one number is the same as a tensor of it
_QUANTIZED = re.compile(r"Quantize|QLinear|Integer")
_MADE_UP = re.compile(r"::|^_?v(al)?_|^\d+$|^const|^tmp", re.IGNORECASE)  # names that exporters give to what has none
_LEAF = re.compile(r"[._/](weights?|kernel|w_\d+|w|scale|gamma|slope|ReadVariableOp(:0)?)$|_weights?$", re.IGNORECASE)


def load_onnx(path: str | Path) -> nn.Module:
    """The network in a float ONNX file, in eval mode; it computes what the file says, and can be trained.

    Convolutions, linear layers, batch norms and their like are torch's own layers with the file's weights as parameters,
    under names near those in the file. Its inputs are those of the file that have no initializer, in order. A file that was
    exported for a batch of 1 is read for any batch: a ``Reshape`` that keeps a leading 1 keeps the leading size.

    Raises:
        ModelError: The file is missing, damaged or no ONNX, its external data are missing, or it holds operators that
            cannot be read (quantized ones, control flow on values); names the nodes.
    """
    model = _opened(Path(path))
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    _check_operators(model.graph, Path(path))
    network = OnnxNetwork(Path(path).name)
    reader = _Reader(network, model, opset)
    steps, outputs = reader.read(model.graph)
    network.compute(steps, [i.name for i in _fed(model.graph)], outputs)
    return network.eval()


def _opened(path: Path) -> Any:
    """The file, with the types and shapes that ONNX can infer, and functions of its own written out."""
    import onnx
    import onnx.inliner

    if not path.is_file():
        raise ModelError(f"there is no file {path}; give the path of an .onnx file")
    try:
        model = onnx.load(path)
        model = onnx.inliner.inline_local_functions(model) if model.functions else model
    except Exception as e:  # onnx raises its own errors, those of protobuf and those of the system
        raise ModelError(
            f"{path} cannot be read as ONNX: {first_line(e)}; give a whole file, with those that hold its weights beside it"
        ) from e
    if not model.graph.node:
        raise ModelError(f"{path} holds no ONNX network; give a file that an exporter wrote")
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):  # over 2 GB, or at odds with itself: it is read as it stands
        return model


def _fed(graph: Any) -> list[Any]:
    """The inputs that a user gives: old files list the weights among them."""
    weights = {i.name for i in graph.initializer}
    return [i for i in graph.input if i.name not in weights]


def _sizes(info: Any) -> tuple[int | None, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in info.type.tensor_type.shape.dim)


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph, and those of the branches in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _check_operators(graph: Any, path: Path) -> None:
    """Tell at once of everything that cannot be read."""
    known = {*OPERATIONS, "Constant", "If"}
    nodes = [n for g in _graphs(graph) for n in g.node]
    strange = [n for n in nodes if n.domain not in ("", "ai.onnx") or n.op_type not in known]
    if not strange:
        return
    first = {f"{n.domain}.{n.op_type}".lstrip("."): n.name or n.output[0] for n in reversed(strange)}
    named = [f"{op} (node {name!r})" for op, name in first.items()]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    cure = "export it with the standard operators, without control flow, or give the model in torch"
    if any(_QUANTIZED.search(op) for op in first):
        cure = "it is quantized already: give the float model that it was made from"
    raise ModelError(f"{path} holds operators that cannot be read: {', '.join(named[:_SHOWN])}{more}; {cure}")


class _Reader:
    """Turns nodes into steps; what depends on constants alone is computed at once."""

    def __init__(self, network: OnnxNetwork, model: Any, opset: int) -> None:
        self.shelf, self.opset = Shelf(network), opset
        self.known: dict[str, Value] = {"": None}
        self.labels: dict[str, str] = {}  # of a constant -> the weight it was made of
        self.aliases: dict[str, Any] = {}  # of a value -> what it is now
        self.open: dict[str, nn.Module] = {}  # values of layers that may yet get a bias
        graph = model.graph
        infos = [*graph.input, *graph.output, *graph.value_info]
        self.infos = {i.name: i for i in infos if i.type.tensor_type.HasField("shape")}
        read = [[name for n in g.node for name in n.input] + [o.name for o in g.output] for g in _graphs(graph)]
        self.uses = Counter(name for names in read for name in names)
        self.of_one = all(_sizes(i)[:1] == (1,) for i in _fed(graph) if i.name in self.infos)

    def read(self, graph: Any) -> tuple[list[Step], list[Any]]:
        """The steps of a graph or branch, and what comes out of it."""
        for weight in graph.initializer:
            self.known[weight.name] = plain(_tensor(weight))
        steps = [step for node in graph.node if (step := self.step(node)) is not None]
        return steps, [self.given("Identity", o.name) for o in graph.output]

    def step(self, node: Any) -> Step | None:
        """The step of a node; None where it is done already."""
        call = self.call(node)
        if node.op_type == "If":
            return self.choice(node, call)
        if node.op_type == "Constant":
            self.known[node.output[0]] = _constant(call)
            return None
        inputs = list(node.input)
        while inputs and not inputs[-1]:
            inputs.pop()
        if all(i in self.known for i in inputs):
            self.fold(node, call, inputs)
            return None
        if node.op_type == "Add" and self.add_bias(node):
            return None
        layer = self.layer(call, inputs)
        if layer is not None:
            path = self.shelf.layer(layer, self.name_of(node))
            if "bias" in layer.weights and layer.weights["bias"] is None and self.uses[node.output[0]] == 1:
                self.open[node.output[0]] = layer.module
            return layer_step(call, layer, path, self.given(call.op, inputs[0]), node.output[0])
        given = [self.given(call.op, name, place) for place, name in enumerate(inputs)]
        if node.op_type == "Reshape":
            given = self.any_batch(call, inputs, given)
        return Operate(call, OPERATIONS[self.operation(call, inputs)], tuple(given), tuple(node.output))

    def operation(self, call: Call, inputs: list[str]) -> str:
        """The operator to run: a ``Cast`` to the type that is there already must not hinder ``double()``."""
        info = self.infos.get(inputs[0]) if inputs else None
        same = call.op == "Cast" and info is not None and info.type.tensor_type.elem_type == call.get("to")
        return "Identity" if same else call.op

    def call(self, node: Any) -> Call:
        """What a node says, as plain data."""
        attributes = {a.name: _attribute(a) for a in node.attribute if not a.HasField("g")}
        used = [i for i, name in enumerate(node.output) if i == 0 or (name and self.uses[name])]
        return Call(node.op_type, node.name or node.output[0], self.opset, used[-1] + 1, attributes, len(node.output))

    def choice(self, node: Any, call: Call) -> Step:
        """The step of an ``If``."""
        sides = {a.name: a.g for a in node.attribute}
        branches = []
        for side in ("then_branch", "else_branch"):
            steps, results = self.read(sides[side])
            branches.append(Branch(tuple(steps), tuple(results)))
        return Choose(call, self.given("If", node.input[0]), (branches[0], branches[1]), tuple(node.output))

    def fold(self, node: Any, call: Call, inputs: list[str]) -> None:
        """Compute what depends on constants alone."""
        result = OPERATIONS[node.op_type](call, *(self.static(call.op, name, i) for i, name in enumerate(inputs)))
        made_of = next((name for name in inputs if isinstance(self.known[name], Tensor)), None)
        for name, value in zip(node.output, call.results(result), strict=False):
            self.known[name] = (
                plain(value) if isinstance(value, Tensor) and value is not self.known.get(made_of or "") else value
            )
            if made_of is not None:
                self.labels[name] = self.labels.get(made_of, made_of)

    def static(self, op: str, name: str, place: int) -> Value:
        """A constant as an operation wants it: as numbers where it must know them."""
        value = self.known[name]
        return value.tolist() if isinstance(value, Tensor) and place in _STATIC.get(op, ()) else value

    def given(self, op: str, name: str, place: int = 0) -> Any:
        """What a step is to find an input by."""
        if name not in self.known:
            return self.aliases.get(name, Ref(name))
        value = self.static(op, name, place)
        if not isinstance(value, Tensor):
            return value
        if op in _SCALED and value.ndim == 1 and value.numel() == 1:
            return value.item()
        return self.shelf.constant(value, self.labels.get(name, name), learned=op in _LEARNED)

    def layer(self, call: Call, inputs: list[str]) -> Layer | None:
        """The layer that a node with constant weights is; None where it is none."""
        weights = inputs[1:]
        if call.op not in LAYERS or inputs[0] in self.known or any(name not in self.known for name in weights):
            return None
        return LAYERS[call.op](call, *(self.static(call.op, name, i) for i, name in enumerate(weights, 1)))

    def name_of(self, node: Any) -> str:
        """Of a layer: that of its weight without ``.weight``, or the scope of the node where the weight has none."""
        weight = node.input[1] if len(node.input) > 1 else ""
        named = self.labels.get(weight, weight)
        if named and not _MADE_UP.search(named) and not (is_numbers(self.known.get(weight))):
            return _LEAF.sub("", named) or named
        return _scope(node.name, node.op_type) or named or node.op_type.lower()

    def add_bias(self, node: Any) -> bool:
        """Whether what is added to a layer's output, one number a channel, became the bias that the layer lacks."""
        computed, constant = sorted(node.input, key=lambda name: name in self.known)
        layer, value = self.open.get(computed), self.known.get(constant)
        if layer is None or not isinstance(value, Tensor) or not value.is_floating_point():
            return False
        weight = layer.weight
        assert isinstance(weight, Tensor)
        positions = weight.ndim - 2  # dimensions after that of the channels
        channels = getattr(layer, "out_channels", None) or layer.out_features
        if value.numel() != channels or value.ndim <= positions or value.shape[-1 - positions] != channels:
            return False
        layer._parameters["bias"] = nn.Parameter(value.flatten().clone())
        del self.open[computed]
        self.aliases[node.output[0]] = self.aliases.get(computed, Ref(computed))
        return True

    def any_batch(self, call: Call, inputs: list[str], given: list[Any]) -> list[Any]:
        """A ``Reshape`` to a leading 1, of a value that has it and in a file for a batch of 1, keeps what comes in."""
        info = self.infos.get(inputs[0])
        shape = given[1] if len(given) > 1 else None
        if self.of_one and isinstance(shape, list) and shape[:1] == [1] and info is not None and _sizes(info)[:1] == (1,):
            return [given[0], [0, *shape[1:]]] if not call.get("allowzero", 0) else given
        return given


def _scope(name: str, op: str) -> str:
    """The module that a node was exported from, as torch's exporter writes it: ``/a/a.0/conv/Conv`` is ``a.0.conv``."""
    path: list[str] = []
    for part in name.strip("/").split("/"):
        if path and part.startswith(path[-1] + "."):
            path.pop()
        if part.split("_")[0] != op:
            path.append(part)
    return ".".join(path)


def _tensor(proto: Any) -> Tensor:
    """A tensor of the file."""
    from onnx import numpy_helper

    if proto.data_type not in DTYPES or DTYPES[proto.data_type] == torch.bfloat16:
        raise ModelError(f"the ONNX tensor {proto.name!r} has type {proto.data_type}, which is not read; export it as float32")
    return torch.from_numpy(np.array(numpy_helper.to_array(proto)))


def _attribute(proto: Any) -> Any:
    """An attribute as plain data."""
    from onnx import AttributeProto, helper

    value = helper.get_attribute_value(proto)
    if proto.type == AttributeProto.TENSOR:
        return _tensor(value)
    if proto.type == AttributeProto.STRING:
        return value.decode()
    if proto.type == AttributeProto.FLOAT:
        return float(str(np.float32(value)))  # 1e-5, as it was meant, where float32 has 9.999999747e-06
    return list(value) if proto.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value


def _constant(call: Call) -> Value:
    """What a ``Constant`` node holds."""
    for name, value in call.attributes.items():
        if name == "value":
            return plain(value)
        if name in ("value_int", "value_float"):
            return value
        if name in ("value_ints", "value_floats"):
            return plain(as_tensor(value))
    raise call.refuse(f"it holds {', '.join(call.attributes) or 'nothing'}; tensors and numbers can be read")
