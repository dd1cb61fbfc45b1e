"""ONNX Runtime, on the CPU: load a file, and read from the optimized graph what it really executes."""

import json
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import ExportError, RuntimeMissing
from penjing.export.kernels import Kernel
from penjing.export.profiles import Spent, call_for
from penjing.export.proto import attribute, makers

INTEGER = {
    "QLinearConv",
    "ConvInteger",
    "QGemm",
    "QLinearMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
}
WEIGHTED = INTEGER | {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "NhwcFusedConv"}
ADDED = re.compile(r"(_token_\d+|_nchwc)+$")  # what it appends to the names of nodes that it rewrites


def load(path: Path, threads: int | None, precision: str | None) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """See ``Runtime.load``; on a CPU, ONNX Runtime's default for float is float32, so ``precision`` changes nothing."""
    del precision
    session = _session(path, threads)
    names = [i.name for i in session.get_inputs()]

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        try:
            outputs: list[np.ndarray] = session.run(None, dict(zip(names, arrays, strict=True)))
        except Exception as e:  # the runtime's exceptions share no base class
            shapes = [a.shape for a in arrays]
            raise ExportError(f"ONNX Runtime does not take inputs of shape {shapes}: {' '.join(str(e).split())}") from e
        return outputs

    return run


def kernels(path: Path, shapes: Sequence[tuple[int, ...]], precision: str | None) -> list[Kernel]:
    """See ``Runtime.kernels``: the nodes of the graph as ONNX Runtime rewrote it."""
    del shapes, precision
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        _session(path, None, optimized)
        proto = onnx.load(optimized)
    made = makers(proto)
    return [_kernel(n, made) for n in proto.graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]


def profile(path: Path, arrays: list[np.ndarray], threads: int | None, precision: str | None, seconds: float) -> list[Spent]:
    """See ``Runtime.profile``: the mean of the middle half of all calls, from the runtime's trace."""
    del precision
    with tempfile.TemporaryDirectory() as folder:
        session = _session(path, threads, trace=Path(folder) / "trace")
        feeds = dict(zip((i.name for i in session.get_inputs()), arrays, strict=True))
        call_for(lambda: session.run(None, feeds), seconds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    for e in events:
        if e["cat"] == "Node" and e["name"].endswith("_kernel_time"):
            name = e["name"].removesuffix("_kernel_time")
            times[int(e["args"]["node_index"]), name, e["args"]["op_name"]].append(e["dur"] / 1e3)
    return [Spent(ADDED.sub("", name), op, op in WEIGHTED, _middle(t)) for (_, name, op), t in times.items()]


def version() -> str:
    """See ``Runtime.version``."""
    return str(_module().__version__)


def _middle(times: list[float]) -> float:
    """The mean of the middle half: steadier than the median, whose steps are whole microseconds."""
    quarter = len(times) // 4
    return statistics.fmean(sorted(times)[quarter : len(times) - quarter])


def _kernel(node: Any, made: dict[str, Any]) -> Kernel:
    integer = node.op_type.startswith("QLinear") or node.op_type in INTEGER
    # A node that only moves or picks elements has no integer form of its own: it reads what is already there.
    moved = not integer and node.op_type in ("MaxPool", "Reshape", "Flatten", "Transpose") and _reads_integers(node, made)
    activation = attribute(node, "activation", b"").decode()
    return Kernel(
        node.name or node.output[0],
        node.op_type,
        "int8" if integer or moved else "f32",
        (activation,) if activation else (),
        node.op_type in WEIGHTED,
    )


def _reads_integers(node: Any, made: dict[str, Any]) -> bool:
    source = made.get(node.input[0])
    return source is not None and (source.op_type.startswith("QLinear") or source.op_type == "QuantizeLinear")


def _session(path: Path, threads: int | None, optimized: Path | None = None, trace: Path | None = None) -> Any:
    runtime = _module()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or it slows whatever runs next
    if optimized is not None:
        # One level below the highest, whose rewrites to the CPU's memory layout have no names outside this machine.
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized)
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(trace)
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # the runtime's exceptions share no base class
        raise ExportError(f"ONNX Runtime does not load {path}: {str(e).splitlines()[0]}") from e


def _module() -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise RuntimeMissing("ONNX Runtime is not installed; pip install onnxruntime") from e
    onnxruntime.disable_telemetry_events()  # nobody asked the user
    return onnxruntime
