"""Write a network as ONNX: float as it is, or int8 with QuantizeLinear and DequantizeLinear where the grids are."""

import contextlib
import copy
import io
import logging
import operator
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn

from penjing.errors import ExportError
from penjing.export.artifact import Artifact
from penjing.export.floats import keep_floats
from penjing.export.lower import lower
from penjing.export.names import name_layers
from penjing.export.pads import pads_into_convolutions
from penjing.export.pools import means_to_pools
from penjing.export.reductions import apart, biases_in_one_dimension, products_in_float
from penjing.export.spell import spell_out
from penjing.files import digest, whole_file
from penjing.graph import as_inputs, capture, free_batch, is_captured, takes_any_batch
from penjing.quant import target_named
from penjing.quant.editable import set_tensor
from penjing.quant.grids import BITS
from penjing.quant.learned import settle
from penjing.quant.norms import norms_over_channels

FEW = 64  # integers that are not worth packing
_OPERATORS: dict[tuple[tuple[str, Any], ...], Any] = {}  # torch's tables, by what was asked for


def export(model: nn.Module, example: Tensor | Sequence[Tensor], path: str | Path, *, target: str = "onnxruntime") -> Artifact:
    """Write ``model`` (any module, or what ``quantize`` gave) as one ONNX file, whole or not at all.

    Weights that have a grid are stored as the integers they are, learned grids as they are by now. The batch size is free if
    the model's is.

    Raises:
        ExportError: The network holds an operation that ONNX does not have, or the file cannot be written.
        RecipeError: The target is not known.
    """
    profile = target_named(target)
    runtime = profile.runtime
    given = as_inputs(example)
    module = settle(model) if is_captured(model) else capture(model, given).module
    dynamic = takes_any_batch(module)
    inputs = free_batch(given) if dynamic else given
    dims = tuple({0: torch.export.Dim.AUTO} if dynamic and x.ndim and x.shape[0] == inputs[0].shape[0] else {} for x in inputs)
    destination = Path(path)
    if runtime == "openvino":
        _check_resizing(module)
    copied = copy.deepcopy(module).eval()
    lower(copied)
    spell_out(copied)
    if profile.channels_first:
        norms_over_channels(copied)
    proto = _converted(copied, inputs, dims)
    if runtime == "onnxruntime":
        means_to_pools(proto)
    _store_integers(proto)
    _zeros_of_their_own(proto)
    _once(proto)
    biases_in_one_dimension(proto)
    apart(proto, runtime)
    if runtime == "openvino" and profile.weight_bits < max(BITS):  # where a bit is spared, sums of 8-bit products overflow
        products_in_float(proto)
    _integer_biases(proto)
    pads_into_convolutions(proto)
    if runtime == "onnxruntime":
        keep_floats(proto)
    _drop_unread(proto)
    reasons = name_layers(proto, module)
    _strip(proto)
    with whole_file(destination, ExportError) as part:
        part.write_bytes(proto.SerializeToString())
    return Artifact(destination, runtime, tuple(tuple(x.shape) for x in given), dynamic, digest(destination), reasons)


def _converted(module: fx.GraphModule, inputs: tuple[Tensor, ...], dims: Any) -> Any:
    _rename_made_up(module)
    names = ["input"] if len(inputs) == 1 else [f"input_{i}" for i in range(len(inputs))]
    try:
        with _quiet(), _fake_quantize_shapes(), _operators_read_once(), _traced_once(), torch.no_grad():
            program = torch.onnx.export(module, inputs, dynamo=True, dynamic_shapes=dims, input_names=names, verbose=False)
    except Exception as e:  # the exporter wraps whatever went wrong; its last cause says what
        cause: BaseException = e
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ExportError(f"the network cannot be written as ONNX: {str(cause).strip().splitlines()[0]}") from e
    assert program is not None
    return program.model_proto


def _check_resizing(module: fx.GraphModule) -> None:
    """Refuse what OpenVINO computes otherwise.

    Raises:
        ExportError: A map is made smaller with antialiasing.
    """
    for node in module.graph.nodes:
        if (
            node.op == "call_function"
            and "_aa" in str(node.target)
            and node.meta["val"].numel() < node.args[0].meta["val"].numel()
        ):
            raise ExportError(
                f"OpenVINO makes maps smaller with antialiasing otherwise than torch ({node.name}); resize without "
                "antialias=True, or before the network"
            )


def _rename_made_up(module: fx.GraphModule) -> None:
    """Give other names to weights that are called what the exporter calls values of its own; in files that it made some are."""
    for node in module.graph.nodes:
        if node.op == "get_attr" and re.fullmatch(r"val_\d+", str(node.target)):
            held, node.target = getattr(module, str(node.target)), f"weight_of_{node.target}"
            set_tensor(module, node.target, held)
    module.recompile()


@contextlib.contextmanager
def _fake_quantize_shapes() -> Iterator[None]:
    """Tell torch the output shapes of two operations inside fake-quantize, while the block runs.

    Without them torch 2.13 cannot trace fake-quantize with a free batch size.
    """

    def like(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)

    library = torch.library.Library("aten", "IMPL")
    try:
        for name in ("fake_quantize_per_tensor_affine_cachemask", "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams"):
            library.impl(name, like, "Meta")
        yield
    finally:
        library._destroy()


@contextlib.contextmanager
def _operators_read_once() -> Iterator[None]:
    """Let torch read its table of ONNX operators once a process, not for every file: 40 % of a small network's export.

    Where another torch has no such table, nothing is changed.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        read = ONNXRegistry.from_torchlib
    except (ImportError, AttributeError):
        yield
        return

    def once(**given: Any) -> Any:
        key = tuple(sorted(given.items()))
        if key not in _OPERATORS:
            _OPERATORS[key] = read(**given)
        return _OPERATORS[key]

    with mock.patch.object(ONNXRegistry, "from_torchlib", staticmethod(once)):
        yield


@contextlib.contextmanager
def _traced_once() -> Iterator[None]:
    """Keep torch from tracing a network anew for decompositions that it does not need: half of what is left of an export.

    Where another torch has no such step, nothing is changed.
    """
    try:
        from torch.onnx._internal.exporter import _decomp, _fx_passes

        decompose, implemented = _fx_passes.decompose_with_registry, _decomp.get_onnx_implemented_overloads
    except (ImportError, AttributeError):
        yield
        return

    def where_needed(program: torch.export.ExportedProgram, registry: Any) -> torch.export.ExportedProgram:
        known: set[Any] = {operator.getitem, *implemented(registry)}
        called = {n.target for n in program.graph.nodes if n.op == "call_function"}
        return program if called <= known else decompose(program, registry)

    with mock.patch.object(_fx_passes, "decompose_with_registry", where_needed):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which logs that torchvision is missing and warns about torch's own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _store_integers(proto: Any) -> None:
    """Replace ``QuantizeLinear(weight)`` by the integers it gives, so that the file holds one byte a weight."""
    from onnx import numpy_helper

    held = {t.name: t for t in proto.graph.initializer}
    for node in [n for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in held]:
        weight, scale, zero = (torch.from_numpy(numpy_helper.to_array(held[i]).copy()) for i in node.input[:3])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if d == axis else 1 for d in range(weight.ndim)] if scale.ndim else []
        limits = torch.iinfo(zero.dtype)
        # As torch's fake-quantize does it: multiply by the inverse, round half to even, then shift.
        integers = torch.round(weight * (1 / scale).view(shape)) + zero.view(shape)
        stored = integers.clamp(limits.min, limits.max).to(zero.dtype)
        proto.graph.node.remove(node)
        _store(proto, node.output[0], stored)


def _zeros_of_their_own(proto: Any) -> None:
    """Give every stored weight zero points that no other one has.

    torch keeps equal constants once. Where a matrix product shares its zeros with convolutions, OpenVINO keeps them, and with
    them the weights of all of these, in float, and runs none of them in integers.
    """
    from onnx import TensorProto

    held = {t.name: t for t in proto.graph.initializer}
    computed = {o for n in proto.graph.node if n.op_type != "Cast" for o in n.output} | {i.name for i in proto.graph.input}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[0] not in computed:
            zero = TensorProto()
            zero.CopyFrom(held[node.input[2]])
            zero.name = node.input[2] = f"{node.input[0]}.zero_point"
            if zero.name not in held:  # else two read the same weight
                proto.graph.initializer.append(zero)
                held[zero.name] = zero


def _once(proto: Any) -> None:
    """Leave out a grid right behind the same one, as behind a slice that takes all: OpenVINO breaks down over two."""
    from onnx import numpy_helper

    held = {t.name: numpy_helper.to_array(t).tobytes() for t in proto.graph.initializer}
    made = {o: n for n in proto.graph.node for o in n.output}
    for node in [n for n in proto.graph.node if n.op_type == "DequantizeLinear"]:
        quantize = made.get(node.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        before = made.get(quantize.input[0])
        if before is None or before.op_type != "DequantizeLinear":
            continue
        if [held.get(i, i) for i in before.input[1:]] == [held.get(i, i) for i in quantize.input[1:]]:
            node.input[0] = before.input[0]
    _drop_unread(proto)


def _drop_unread(proto: Any) -> None:
    """Leave out the operations and weights that nothing reads any more and that are no output; a runtime would run them."""
    used = {o.name for o in proto.graph.output}
    for node in reversed(list(proto.graph.node)):
        if used.isdisjoint(node.output):
            proto.graph.node.remove(node)
        else:
            used |= _reads(node)
    for held in [t for t in proto.graph.initializer if t.name not in used]:
        proto.graph.initializer.remove(held)


def _reads(node: Any) -> set[str]:
    """What an operation reads, its branches and bodies too."""
    inner = [n for a in node.attribute for graph in (a.g, *a.graphs) for n in graph.node]
    outputs = {o.name for a in node.attribute for graph in (a.g, *a.graphs) for o in graph.output}
    return set(node.input) | outputs | {name for n in inner for name in _reads(n)}


def _store(proto: Any, name: str, integers: Tensor) -> None:
    """Keep integers under that name: two in a byte where all have 4 bits, which a runtime widens when it loads the file."""
    from onnx import TensorProto, helper, numpy_helper

    signed = integers.dtype == torch.int8
    low, high = (-8, 7) if signed else (0, 15)
    if integers.numel() < FEW or int(integers.min()) < low or int(integers.max()) > high:
        proto.graph.initializer.append(numpy_helper.from_array(integers.numpy(), name))
        return
    kind, wide = (TensorProto.INT4, TensorProto.INT8) if signed else (TensorProto.UINT4, TensorProto.UINT8)
    packed = helper.make_tensor(f"{name}.packed", kind, list(integers.shape), integers.flatten().tolist())
    proto.graph.initializer.append(packed)
    proto.graph.node.insert(0, helper.make_node("Cast", [packed.name], [name], name=packed.name, to=wide))
    _need_opset(proto, 21)  # the first that has 4-bit integers


def _need_opset(proto: Any, version: int) -> None:
    main = next(o for o in proto.opset_import if not o.domain)
    main.version = max(main.version, version)


def _integer_biases(proto: Any) -> None:
    """Store the bias of an int8 Gemm as the int32 it is added as.

    ONNX Runtime does so itself for convolutions; a Gemm with a float bias it would run in float.
    """
    from onnx import helper, numpy_helper

    held = {t.name: t for t in proto.graph.initializer}
    made = {o: n for n in proto.graph.node for o in n.output}
    for node in [n for n in proto.graph.node if n.op_type == "Gemm" and len(n.input) == 3 and n.input[2] in held]:
        sources = [made.get(i) for i in node.input[:2]]
        if not all(s is not None and s.op_type == "DequantizeLinear" for s in sources):
            continue
        scales = [torch.from_numpy(numpy_helper.to_array(held[s.input[1]]).copy()) for s in sources if s is not None]
        scale = scales[0] * scales[1]
        bias = torch.from_numpy(numpy_helper.to_array(held[node.input[2]]).copy())
        limits = torch.iinfo(torch.int32)
        stored = torch.round(bias.double() / scale.double()).clamp(limits.min, limits.max).to(torch.int32)
        names = [f"{node.name}.bias.{leaf}" for leaf in ("integers", "scale", "zero_point")]
        for name, value in zip(names, (stored, scale, torch.zeros_like(stored)), strict=True):
            proto.graph.initializer.append(numpy_helper.from_array(value.numpy(), name))
        node.input[2] = f"{node.name}.bias"
        dequantize = helper.make_node("DequantizeLinear", names, [node.input[2]], name=node.input[2], axis=0)
        proto.graph.node.insert(list(proto.graph.node).index(node), dequantize)


def _strip(proto: Any) -> None:
    """Drop what only a debugger reads (stack traces of every node), which outweighs a small network's weights."""
    for holder in (proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        del holder.metadata_props[:]
        holder.doc_string = ""
    del proto.graph.value_info[:]
    del proto.functions[:]
    proto.producer_name, proto.producer_version = "penjing", ""
