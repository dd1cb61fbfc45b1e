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
from penjing.export.integers import grids_once, integer_biases, store_integers, zeros_of_their_own
from penjing.export.lower import lower
from penjing.export.names import name_layers
from penjing.export.pads import pads_into_convolutions
from penjing.export.pools import means_to_pools
from penjing.export.proto import drop_unread
from penjing.export.reductions import apart, biases_in_one_dimension, products_in_float
from penjing.export.spell import spell_out
from penjing.files import digest, whole_file
from penjing.graph import as_inputs, capture, free_batch, is_captured, takes_any_batch
from penjing.quant import target_named
from penjing.quant.editable import set_tensor
from penjing.quant.grids import BITS
from penjing.quant.learned import settle
from penjing.quant.norms import norms_over_channels
from penjing.task import samples_of

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
    dims = tuple({0: torch.export.Dim.AUTO} if dynamic and x.ndim and x.shape[0] == samples_of(inputs) else {} for x in inputs)
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
    store_integers(proto)
    zeros_of_their_own(proto)
    grids_once(proto)
    biases_in_one_dimension(proto)
    apart(proto, runtime)
    if runtime == "openvino" and profile.weight_bits < max(BITS):  # where a bit is spared, sums of 8-bit products overflow
        products_in_float(proto)
    integer_biases(proto)
    pads_into_convolutions(proto)
    if runtime == "onnxruntime":
        keep_floats(proto)
    drop_unread(proto)
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


def _strip(proto: Any) -> None:
    """Drop what only a debugger reads (stack traces of every node), which outweighs a small network's weights."""
    for holder in (proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        del holder.metadata_props[:]
        holder.doc_string = ""
    del proto.graph.value_info[:]
    del proto.functions[:]
    proto.producer_name, proto.producer_version = "penjing", ""
