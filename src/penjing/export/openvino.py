"""OpenVINO, on the CPU: load a file, and read from the runtime's own graph what it really executes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import ExportError, RuntimeMissing
from penjing.export.kernels import Kernel
from penjing.export.profiles import Spent, call_for, calm

WEIGHTED = {"Convolution", "Deconvolution", "FullyConnected", "MatMul", "GroupConvolution"}
SILENT = {"Input", "Output", "Parameter", "Result", "Const", "Constant", "Reorder"}
TICK = 1e-3  # ms: OpenVINO counts whole microseconds and drops the rest
PRECISIONS = {"i8": "int8", "u8": "int8", "I8": "int8", "U8": "int8"}


def load(path: Path, threads: int | None, precision: str | None) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """See ``Runtime.load``. Compiled once for each shape of inputs: fixed sizes let the runtime choose better kernels."""
    core = _module().Core()
    model, settings = _read(core, path), _settings(threads, precision)
    compiled: dict[tuple[tuple[int, ...], ...], Any] = {}

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        shapes = tuple(a.shape for a in arrays)
        if shapes not in compiled:
            compiled[shapes] = _compile(core, model, shapes, settings).create_infer_request()
        outputs = compiled[shapes].infer(arrays, share_inputs=True, share_outputs=True)
        return [np.array(v) for v in outputs.values()]  # copies: the runtime writes the next answer where it wrote this one

    return run


def kernels(path: Path, shapes: Sequence[tuple[int, ...]], precision: str | None) -> list[Kernel]:
    """See ``Runtime.kernels``: the nodes of the compiled model."""
    core = _module().Core()
    compiled = _compile(core, _read(core, path), shapes, _settings(None, precision))
    return [_kernel(op) for op in compiled.get_runtime_model().get_ordered_ops() if not _is_silent(op)]


def profile(path: Path, arrays: list[np.ndarray], threads: int | None, precision: str | None, seconds: float) -> list[Spent]:
    """See ``Runtime.profile``: the runtime's own counters, which give the mean over all calls."""
    core = _module().Core()
    settings = _settings(threads, precision) | {"PERF_COUNT": True}
    compiled = _compile(core, _read(core, path), [a.shape for a in arrays], settings)
    request = compiled.create_infer_request()
    walls = call_for(lambda: request.infer(arrays, share_inputs=True, share_outputs=True), seconds)
    share = calm(walls)
    return [
        Spent(
            i.node_name.partition("/")[0],  # what it makes of a layer has a name with a slash
            i.node_type,
            i.node_type in WEIGHTED or i.node_type.startswith("FullyConnected"),
            share * (i.real_time.total_seconds() * 1e3 + TICK / 2),
        )
        for i in request.get_profiling_info()
        if i.status == type(i.status).EXECUTED
    ]


def version() -> str:
    """See ``Runtime.version``."""
    return str(_module().__version__).split("-", maxsplit=1)[0]


def _settings(threads: int | None, precision: str | None) -> dict[str, Any]:
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    if precision:
        settings["INFERENCE_PRECISION_HINT"] = precision
    return settings


def _kernel(op: Any) -> Kernel:
    layers = [n for n in _info(op, "originalLayersNames").split(",") if n]
    kind = _info(op, "layerType")
    precision = _info(op, "runtimePrecision")
    return Kernel(
        op.get_friendly_name(), kind, PRECISIONS.get(precision, precision.lower()), tuple(layers[1:]), kind in WEIGHTED
    )


def _is_silent(op: Any) -> bool:
    """Whether it computes nothing when the network runs; what reads constants only was computed when it was compiled."""
    sources = [_info(port.get_node(), "layerType") for port in op.input_values()]
    return _info(op, "layerType") in SILENT or (bool(sources) and set(sources) <= {"Const", "Constant"})


def _info(op: Any, key: str) -> str:
    info = op.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""


def _read(core: Any, path: Path) -> Any:
    try:
        return core.read_model(path)
    except RuntimeError as e:
        raise ExportError(f"OpenVINO does not read {path}: {_told(e)}") from e


def _compile(core: Any, model: Any, shapes: Sequence[tuple[int, ...]], settings: dict[str, Any]) -> Any:
    fixed = model.clone()
    for port, shape in zip(fixed.inputs, shapes, strict=False):  # or it takes one size for another, and answers wrongly
        if not port.get_partial_shape().compatible(_module().PartialShape(list(shape))):
            made = port.get_partial_shape()
            raise ExportError(f"the file takes inputs of shape {made}, not {list(shape)}")
    try:
        fixed.reshape({port: list(shape) for port, shape in zip(fixed.inputs, shapes, strict=True)})
        return core.compile_model(fixed, "CPU", settings)
    except (RuntimeError, ValueError) as e:
        raise ExportError(f"OpenVINO does not take inputs of shape {list(shapes)}: {_told(e)}") from e


def _told(error: Exception) -> str:
    """What is wrong: the last line; those before say where in the runtime it was found."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _module() -> Any:
    try:
        import openvino
    except ImportError as e:
        raise RuntimeMissing("OpenVINO is not installed; pip install openvino") from e
    return openvino
