"""How fast int8 runs, ours beside the peers': python benchmarks/quant_latency.py --peers FOLDER --cases FOLDER   (three hours)

Every net (timm's with random weights, and FFDNet) is exported once; NNCF (presets performance and mixed) and ONNX Runtime's
``quantize_static`` (several settings, after ``quant_pre_process``) start from that file, ours from the same module. Within a
runtime all files are timed in one process, in turns, loaded the same way; every net is loaded anew several times, since the
same file differs by a few percent from one load to the next. It writes benchmarks/quant_latency.json and
benchmarks/quant_latency.md after each net and goes on where it was stopped; ``--again`` times all anew.

``--peers`` is a virtual environment with timm, nncf, onnxruntime and openvino; it is made with pip where there is none.
``--cases`` names a folder with ``realdata.py``, which fetches FFDNet; without it FFDNet is left out. Files are kept in
``--files``; ours are made again when the library's sources have changed.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quant_peers import DENOISER, NETS, NNCF, OURS, QUANTIZE_STATIC

from penjing.errors import PenjingError
from penjing.export import RUNTIMES, Kernel, left_in_float
from penjing.export.profiles import named
from penjing.files import digest, read_json, whole_file, write_json
from penjing.measure import machine

HERE = Path(__file__).parent
PACKAGES = (
    *("torch==2.13.0", "timm==1.0.31", "onnxruntime==1.32.0", "openvino==2026.4.1", "nncf"),
    *("onnx", "onnxscript", "numpy", "scipy", "sympy", "pillow", "scikit-image"),
    *("safetensors", "lightning-fabric", "pydantic", "typer", "rich", "Jinja2", "plotly", "PyYAML", "torchmetrics"),  # ours
)
WAYS: dict[str, tuple[str, ...]] = {  # runtime -> the files it is timed with
    "openvino": ("float", *NNCF, OURS[0]),
    "onnxruntime": ("float", *QUANTIZE_STATIC, OURS[1]),
}
PEERS: dict[str, tuple[str, ...]] = {  # the better of these is the one to beat
    "openvino": NNCF,
    "onnxruntime": tuple(QUANTIZE_STATIC),
}
FLOAT32 = "float, f32"  # beside "float", which runs at the runtime's default precision
THREADS, LOADS, SECONDS = 2, 3, 1.5  # seconds for each load of each file
TURN = 0.02  # seconds that a turn lasts, at least two calls
BEFORE = 2  # untimed calls at the start of a turn, whose caches hold what another file left
GEOMEAN, WORST = 0.95, 1.05
Row = dict[str, Any]
Arrays = list[np.ndarray]
Call = Callable[[Arrays], Any]


# Files.


def environment(folder: Path) -> Path:
    """The interpreter of the peers' environment, made where there is none."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def versions(python: Path) -> dict[str, str]:
    asked = ("timm", "nncf", "onnxruntime", "openvino")
    code = f"import json; from importlib.metadata import version; print(json.dumps({{p: version(p) for p in {asked}}}))"
    found: dict[str, str] = json.loads(
        subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout
    )
    return found


def sources() -> str:
    """A digest of all that ours are made by."""
    code = hashlib.sha256()
    for path in sorted((HERE.parent / "src" / "penjing").rglob("*.py")):
        code.update(path.read_bytes())
    return code.hexdigest()


class Files:
    """The files of every net, made when they are asked for; a failure is kept, with its last line."""

    def __init__(self, folder: Path, python: Path, cases: Path | None) -> None:
        self.folder, self.python, self.cases, self.sources = folder, python, cases, sources()

    def path(self, net: str, way: str) -> Path:
        return self.folder / net / (way + (".xml" if way in NNCF else ".onnx"))

    def failure(self, net: str, way: str) -> str | None:
        """Make the file if it must be made; what went wrong, if anything did."""
        path, note = self.path(net, way), self.folder / net / f"{way}.made"
        of = self.sources if way in OURS else ""
        if note.exists():
            made: Row = read_json(note)
            if made["sources"] == of and (made["failure"] is not None or path.exists()):
                return made["failure"]  # type: ignore[no-any-return]
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [str(self.python), str(HERE / "quant_peers.py"), net, way, str(path.parent)]
        command += ["--cases", str(self.cases)] if self.cases else []
        settings = {**os.environ, "PYTHONPATH": str(HERE.parent / "src"), "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(command, capture_output=True, text=True, env=settings)
        failure = (ran.stderr.strip() or f"exit code {ran.returncode}").splitlines()[-1] if ran.returncode else None
        write_json(note, {"sources": of, "failure": failure})
        return failure

    def told(self, net: str, way: str) -> dict[str, Any]:
        """What was said when a file of ours was made: what it is, and why a layer was left in float."""
        return read_json(self.path(net, way).with_suffix(".json")) if way in OURS else {}

    def shapes(self, net: str) -> list[tuple[int, ...]]:
        return [tuple(s) for s in read_json(self.folder / net / "float.json")["inputs"]]


# Timing.


def turns(runs: Mapping[str, Call], arrays: Arrays, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of one call, for each turn: all take turns, and a turn's time is the median over its calls."""
    once = {name: min(_timed(run, arrays) for _ in range(3)) for name, run in runs.items()}
    calls = {name: int(min(20, max(2, TURN * 1e3 / t))) for name, t in once.items()}
    lasts = sum((calls[name] + BEFORE) * t for name, t in once.items()) / 1e3
    rounds = int(min(100, max(5, seconds * len(runs) / lasts)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs)[:: 1 if i % 2 else -1]:
            for _ in range(BEFORE):
                runs[name](arrays)
            times[name].append(statistics.median(_timed(runs[name], arrays) for _ in range(calls[name])))
    return times


def _timed(run: Call, arrays: Arrays) -> float:
    began = time.perf_counter()
    run(arrays)
    return (time.perf_counter() - began) * 1e3


def measured(net: str, runtime: str, batch: int, files: Files, seconds: float) -> Row:
    """Times and coverage of one net's files in one runtime."""
    failed = {way: f for way in WAYS[runtime] if (f := files.failure(net, way)) is not None}
    shapes = [(batch * s[0], *s[1:]) for s in files.shapes(net)]
    arrays = [np.random.default_rng(0).random(s, dtype=np.float32) for s in shapes]
    ways = [w for w in WAYS[runtime] if w not in failed]
    pooled: dict[str, list[float]] = {}
    for _ in range(LOADS):
        runs = dict(_loaded(net, runtime, ways, files))
        for name in list(runs):
            try:
                runs[name](arrays)
            except (PenjingError, RuntimeError) as e:
                failed[name] = str(e).splitlines()[0]
                del runs[name]
        for name, times in turns(runs, arrays, seconds).items():
            pooled.setdefault(name, []).extend(times)
    row: Row = {"failed": failed, "times": {n: _spread(t) for n, t in pooled.items()}}
    row["chosen"] = {w: {k: files.told(net, w)[k] for k in ("chosen", "placement", "precision")} for w in ways if w in OURS}
    row["digests"] = {w: digest(files.path(net, w)) for w in ways}
    row |= _ratios(runtime, pooled)
    row["int8"] = {w: _coverage(net, runtime, w, shapes, files) for w in (row["peer"], *OURS) if w in pooled}
    return row


def _loaded(net: str, runtime: str, ways: Sequence[str], files: Files) -> Iterator[tuple[str, Call]]:
    load = RUNTIMES[runtime].load
    for way in ways:
        if way == "float" and runtime == "openvino":
            yield FLOAT32, load(files.path(net, way), THREADS, "f32")
        yield way, load(files.path(net, way), THREADS, files.told(net, way).get("precision"))


def _ratios(runtime: str, times: Mapping[str, Sequence[float]]) -> Row:
    """Ours over the better peer and over the unquantized net, turn by turn."""
    (ours,) = [w for w in WAYS[runtime] if w in OURS]
    peer = min((w for w in PEERS[runtime] if w in times), key=lambda w: statistics.median(times[w]), default=None)
    over = {"over_peer": peer, "over_float": "float"}
    present = {k: w for k, w in over.items() if w in times and ours in times}
    return {"peer": peer, **{k: _spread(list(np.divide(times[ours], times[str(w)]))) for k, w in present.items()}}


def _spread(values: Sequence[float]) -> Row:
    low, middle, high = (round(float(v), 4) for v in np.percentile(values, (25, 50, 75)))
    return {"median": middle, "quartiles": [low, high], "turns": len(values)}


def _coverage(net: str, runtime: str, way: str, shapes: Sequence[tuple[int, ...]], files: Files) -> Row:
    path = files.path(net, way)
    run = RUNTIMES[runtime].kernels(path, shapes, None)
    found = [k for k in (named(path, run) if path.suffix == ".onnx" else run) if k.weighted]  # NNCF writes OpenVINO's own
    rest, reasons = left_in_float(found), files.told(net, way).get("reasons", {})
    return {"int8": len(found) - len(rest), "of": len(found), "left": {k.layer: _reason(k, reasons) for k in rest}}


def _reason(kernel: Kernel, reasons: Mapping[str, str]) -> str:
    names = {kernel.layer, *kernel.fused}
    said = [why for layer, why in reasons.items() if any(layer in n for n in names)]
    return f"{kernel.precision}: {said[0]}" if said else kernel.precision


# The table.


def table(results: Mapping[str, Any]) -> str:
    """All batches and runtimes as Markdown."""
    lines = [
        f"int8 latency, {THREADS} threads, medians in ms; `ours / peer` is the median over turns [quartiles]. The goal:",
        f"geometric mean {GEOMEAN}, none above {WORST}, none above the unquantized net at the runtime's default precision.",
        "",
    ]
    for batch, runtimes in results["batches"].items():
        for runtime, nets in runtimes.items():
            lines += [f"**{runtime}, batch {batch}**", "", *_part(runtime, nets), ""]
    return "\n".join(lines)


def _part(runtime: str, nets: Mapping[str, Row]) -> Iterator[str]:
    (ours,) = [w for w in WAYS[runtime] if w in OURS]
    floats = {FLOAT32: "f32", "float": "default precision"} if runtime == "openvino" else {"float": "float"}
    heads = ("net", *floats.values(), "peer", "", "ours", "ours / peer", "ours / float", "int8, peer", "int8, ours")
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * (len(heads) - 1)
    for net, row in nets.items():
        times = [_ms(row, way) for way in (*floats, row["peer"])]
        ratios = [_ms(row, ours), _ratio(row, "over_peer"), _ratio(row, "over_float")]
        yield (
            "| "
            + " | ".join([net, *times, row["peer"] or "none", *ratios, *(_covered(row, w) for w in (row["peer"], ours))])
            + " |"
        )
    for key, name in (("over_peer", "peer"), ("over_float", "float")):
        found = {n: row[key]["median"] for n, row in nets.items() if key in row}
        if found:
            worst = max(found, key=lambda n: found[n])
            mean = statistics.geometric_mean(found.values())
            yield f"\nours / {name}: geometric mean {mean:.3f} over {len(found)} nets, worst {found[worst]:.3f} ({worst})"
    chosen = {n: row["chosen"][ours] for n, row in nets.items() if ours in row["chosen"]}
    if chosen:
        yield "\nOurs: " + "; ".join(f"{n} {c['chosen']} ({c['placement']} placement)" for n, c in chosen.items())
    if left := [told for net, row in nets.items() for told in _left(net, row["int8"].get(ours))]:
        yield "\nOurs leaves in float: " + "; ".join(left)
    failed = {(n, way): why for n, row in nets.items() for way, why in row["failed"].items()}
    if failed:
        yield "\nFailed: " + "; ".join(f"{n} {way} ({why})" for (n, way), why in failed.items())


def _left(net: str, found: Row | None) -> Iterator[str]:
    """The layers in float, by the reason; all names are in the JSON."""
    whys: dict[str, list[str]] = {}
    for layer, why in found["left"].items() if found else ():
        whys.setdefault(why, []).append(layer)
    for why, layers in whys.items():
        whole = found is not None and len(layers) == found["of"]
        yield f"{net} {'all of it' if whole else ', '.join(f'`{layer}`' for layer in layers)} ({why})"


def _ms(row: Row, way: str) -> str:
    return f"{row['times'][way]['median']:.2f}" if way in row["times"] else ""


def _ratio(row: Row, key: str) -> str:
    if key not in row:
        return ""
    low, high = row[key]["quartiles"]
    return f"{row[key]['median']:.3f} [{low:.3f}, {high:.3f}]"


def _covered(row: Row, way: str) -> str:
    return f"{row['int8'][way]['int8']}/{row['int8'][way]['of']}" if way in row["int8"] else ""


# The command.


def timed_already(row: Row | None, net: str, runtime: str, files: Files) -> bool:
    if row is None:
        return False
    ways = [w for w in WAYS[runtime] if files.failure(net, w) is None]
    return bool(row["digests"] == {w: digest(files.path(net, w)) for w in ways})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="the peers' virtual environment; made where there is none")
    parser.add_argument("--cases", type=Path, help="a folder with realdata.py")
    parser.add_argument("--files", type=Path, default=HERE.parent / "runs" / "quant_latency", help="where made files are kept")
    parser.add_argument("--only", action="append", choices=NETS, help="a net; all by default")
    parser.add_argument("--runtime", action="append", choices=WAYS, help="a runtime; both by default")
    parser.add_argument("--batch", action="append", type=int, help="a batch size; 1 by default")
    parser.add_argument("--make", action="store_true", help="make the peers' files alone and time nothing")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="to time each load of each file")
    parser.add_argument("--again", action="store_true", help="time what has been timed")
    given = parser.parse_args()
    python = environment(given.peers.absolute())
    files = Files(given.files, python, given.cases and given.cases.absolute())
    kept = HERE / "quant_latency.json"
    results: Row = read_json(kept) if kept.exists() else {"batches": {}}
    results |= {"machine": machine(), "peers": versions(python), "threads": THREADS, "loads": LOADS}
    for net in given.only or [n for n in NETS if n != DENOISER or given.cases]:
        if failure := files.failure(net, "float"):
            print(f"{net}: {failure}", flush=True)
            continue
        if given.make:
            ways = [w for runtime in given.runtime or WAYS for w in WAYS[runtime] if w not in OURS]
            told = {w: f for w in ways if (f := files.failure(net, w)) is not None}
            print(net, told or "made", flush=True)
            continue
        for batch in given.batch or [1]:
            for runtime in given.runtime or WAYS:
                rows = results["batches"].setdefault(str(batch), {}).setdefault(runtime, {})
                if not given.again and timed_already(rows.get(net), net, runtime, files):
                    continue
                rows[net] = measured(net, runtime, batch, files, given.seconds)
                print(
                    net,
                    runtime,
                    f"batch {batch}",
                    {k: rows[net].get(k) for k in ("peer", "over_peer", "over_float")},
                    flush=True,
                )
                write_json(kept, results)
                with whole_file(HERE / "quant_latency.md") as part:
                    part.write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
