"""What int8 costs in accuracy, ours beside the peers': python benchmarks/quant_accuracy.py --peers FOLDER   (an hour)

Every network of quant_cases.py is exported once; NNCF (presets performance and mixed) and ONNX Runtime's ``quantize_static``
(after ``quant_pre_process``: MinMax, Percentile and Entropy, int8 weights with a scale for each channel) start from that file,
ours from the same module. Entropy as ``quantize_static`` runs it has one range to choose from, that of MinMax, so those two
files are the same. All are calibrated with the same 256 samples and judged as files in their runtime, on the same test samples,
so that differences are paired; layers that stay in float run in fp32, except where a row says *default precision*. For
classifiers it counts answers that are not the float network's. ``agreement`` compares our file with the fake-quantized module:
the share of samples with the same arg-max, and the mean error in steps of 1/255 of the outputs' range. Depthwise networks are
also quantized with one scale for each weight tensor, with equalization and without.

The U-Net's last rows are what ``fastest_mix`` gives that may lose 1 % of the metric, timed in turns with the float file.

Rows are written to benchmarks/quant_accuracy.json and benchmarks/quant_accuracy.md as they are made, and not made again, except
ours when the library's sources have changed. ``--peers`` is the environment of quant_latency.py; ``--cases`` names a folder
with ``realdata.py``.
"""

import argparse
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quant_calibrated import NNCF, ORT
from quant_cases import Case, cases
from quant_latency import environment, sources, versions
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import penjing as pj
from penjing.export import RUNTIMES, Artifact, Runner, agreements
from penjing.files import read_json, whole_file, write_json
from penjing.measure import compare, machine
from penjing.quant import Quantizer, Scheme, target_named
from penjing.search.mix import MixSettings, fastest_mix
from penjing.task import as_a_file, as_tuple

HERE = Path(__file__).parent
AGREED = 1000  # samples that a file is compared with its module on
SHARE, STEPS = 0.999, 1 / 3  # of arg-max, and of a step: what agreement must reach
TEACHER, MOST = "P1 ResNet-20", 0.001  # what int8 may cost there
HEAVY, LOSS, FASTER = "U-Net", 0.01, 2.5
Row = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """How a file is made, and where it is judged.

    Attributes:
        scheme: Ours; None: a peer's, or the float file.
        precision: Of what is not in integers; None for the runtime's default.
    """

    runtime: str
    scheme: Scheme | None = None
    precision: str | None = "f32"


FLOAT = {f"float, {r}": Way(r) for r in RUNTIMES}
PEERS = {**{w: Way("openvino") for w in NNCF}, **{w: Way("onnxruntime") for w in ORT}}
OURS = {f"ours, {r}": Way(r, Scheme()) for r in RUNTIMES}
DEFAULT = {"ours, openvino, default precision": Way("openvino", Scheme(), None)}
TENSOR = {
    "ours, onnxruntime, a scale a tensor": Way("onnxruntime", Scheme(block="tensor")),
    "ours, onnxruntime, a scale a tensor, equalized": Way("onnxruntime", Scheme(block="tensor", equalize=True)),
}


class Judge:
    """One case, its files and what they gave."""

    def __init__(self, name: str, case: Case, folder: Path, python: Path) -> None:
        self.name, self.case, self.python = name, case, python
        self.folder = folder / name.replace(" ", "_").replace(",", "")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = case.build()
        self.calibration = case.calibration()
        self.example = tuple(x[:2] for x in self.calibration[0])

    def row(self, name: str, way: Way) -> Row:
        """Make the file, judge it and keep what every sample gave."""
        began = time.perf_counter()
        row: Row = {}
        if way.scheme is not None:
            path, row = self._ours(way)
        elif name in PEERS:
            path = self._peers(name)
        else:
            path = self._float()
        made = time.perf_counter() - began
        row |= self.judged(name, RUNTIMES[way.runtime].load(path, 1, way.precision))
        return row | {"seconds": round(made, 1)}

    def judged(self, name: str, call: Any) -> Row:
        run, answers = Runner(call, ""), list[np.ndarray]()

        def watched(*inputs: Tensor) -> Tensor:
            output: Tensor = run(*inputs)
            answers.append(output.argmax(1).numpy())
            return output

        score = self.case.metric(watched, self.case.test())
        picked = np.concatenate(answers) if self.case.classes else np.zeros(0)
        with whole_file(self._kept(name)) as part, part.open("wb") as f:
            np.savez(f, each=score.per_sample, answers=picked)
        return {"score": score.value, "samples": score.samples}

    def each(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The score of every sample, and its answer."""
        found = np.load(self._kept(name))
        return found["each"], found["answers"]

    def has(self, name: str) -> bool:
        """Whether what it answered is kept here; rows of other machines come without."""
        return self._kept(name).exists()

    def _kept(self, name: str) -> Path:
        return self.folder / f"{name.replace(', ', '-').replace(' ', '_')}.npz"

    def _float(self) -> Path:
        path = self.folder / "float.onnx"
        if not path.exists():
            pj.export(self.model, self.example, path)
        return path

    def _peers(self, way: str) -> Path:
        calibration = self.folder / "calibration.npz"
        with whole_file(calibration) as part, part.open("wb") as f:
            np.savez(f, *(torch.cat(parts).numpy() for parts in zip(*self.calibration, strict=True)))
        out = self.folder / (way + (".xml" if way in NNCF else ".onnx"))
        command = [str(self.python), str(HERE / "quant_calibrated.py"), way, *map(str, (self._float(), calibration, out))]
        settings = {**os.environ, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(command, capture_output=True, text=True, env=settings)
        if ran.returncode:
            raise SystemExit(f"{way} on {self.name}: {ran.stderr.strip().splitlines()[-1]}")
        return out

    def _ours(self, way: Way) -> tuple[Path, Row]:
        module = pj.quantize(self.model, self.example, self.calibration, target=way.runtime, scheme=way.scheme)
        artifact = pj.export(module, self.example, self.folder / f"ours-{way.runtime}.onnx", target=way.runtime)
        told = {"sources": sources(), "observer": way.scheme.observer if way.scheme else ""}
        agreed = self._agreement(artifact, module, way)
        return artifact.path, told | {"agreement": agreed, "float layers": len(artifact.reasons)}

    def _agreement(self, artifact: Artifact, module: nn.Module, way: Way) -> Row:
        batches, samples = list[tuple[Tensor, ...]](), 0
        for inputs, _ in self.case.test():
            batches.append(as_tuple(inputs))
            samples += len(batches[-1][0])
            if samples >= AGREED:
                break
        answer = as_a_file(module.eval())
        outputs = torch.cat([tree_leaves(answer(*inputs))[0].flatten() for inputs in batches])
        step = float(outputs.max() - outputs.min()) / 255
        found = agreements({"it": artifact.load(1, way.precision)}, module, batches)["it"]
        told: Row = {"samples": found.samples, "error": found.mean / step}
        return told | ({"argmax": found.argmax} if self.case.classes else {})


# Comparing.


def paired(one: np.ndarray, two: np.ndarray) -> Row:
    """What the first has more than the second, with half the width of a 95 % interval."""
    each = one - two
    return {"difference": float(each.mean()), "interval": float(1.96 * each.std() / len(each) ** 0.5)}


def compared(judge: Judge, rows: Mapping[str, Row]) -> None:
    """Write into the rows how they stand to the float file, and ours also to the best peer, of its runtime and of all."""
    ways = FLOAT | PEERS | OURS | DEFAULT | TENSOR
    rows = {name: row for name, row in rows.items() if judge.has(name)}
    for name in rows.keys() & ways.keys():
        row, way = rows[name], ways[name]
        each, answers = judge.each(name)
        base, said = judge.each(f"float, {way.runtime}")
        row["float"] = paired(each, base) | ({"flips": int((answers != said).sum())} if judge.case.classes else {})
        if name in OURS:
            present = [p for p in PEERS if p in rows]
            for kind, peers in {"runtime": [p for p in present if PEERS[p].runtime == way.runtime], "all": present}.items():
                if peers:
                    best = max(peers, key=lambda p: rows[p]["score"])
                    row[f"best of {kind}"] = {"peer": best, **paired(each, judge.each(best)[0])}


# The mix.


def mixed(judge: Judge, runtime: str, threads: int, batch: int) -> Row:
    """What ``fastest_mix`` gives, judged and timed beside float."""
    began = time.perf_counter()
    test, target = judge.case.test(), target_named(runtime)
    least = judge.case.metric(judge.model, test).value * (1 - LOSS)
    mix = fastest_mix(
        Quantizer(judge.model, judge.example, judge.calibration, target=target),
        judge.model,
        judge.example,
        judge.folder / f"mix-{runtime}-{batch}.onnx",
        evaluate=lambda run: judge.case.metric(run, test).value,
        least=least,
        settings=MixSettings(threads=threads, batch=batch),
    )
    load, path = RUNTIMES[runtime].load, judge._float()
    runs = {
        "fp32": Runner(load(path, threads, "f32"), ""),
        "float": Runner(load(path, threads, None), ""),
        "mix": mix.chosen.artifact.load(threads, mix.chosen.precision),
    }
    inputs = [x[:1].repeat(batch, *[1] * (x.ndim - 1)) for x in judge.example]
    times = {name: m.value for name, m in compare(runs, *inputs, seconds=3).items()}
    kernels = [k for k in mix.kernels() if k.weighted]
    return {
        "sources": sources(),
        "score": mix.chosen.score,
        "least": least,
        "chosen": mix.chosen.name,
        "floats": list(mix.chosen.floats),
        "int8": [sum(k.precision == "int8" for k in kernels), len(kernels)],
        "ms": times,
        "threads": threads,
        "tried": {t.name: [t.score, t.latency and t.latency.value] for t in mix.tried},
        "seconds": round(time.perf_counter() - began, 1),
    }


# The tables.


def table(results: Mapping[str, Any]) -> str:
    lines = [
        "# What int8 costs in accuracy",
        "",
        "Written by `python benchmarks/quant_accuracy.py`, whose docstring says how, from",
        "[quant_accuracy.json](quant_accuracy.json).",
        "Loss: float minus int8, on the same samples, ± half a 95 % interval. Flips: answers that are not the float network's.",
        "",
    ]
    for name, found in results["cases"].items():
        lines += [*_case(name, found), ""]
    return "\n".join([*lines, *_verdicts(results["cases"])]) + "\n"


def _case(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    rows, (unit, per) = found["rows"], found["unit"]
    samples = max(r["samples"] for r in rows.values())
    yield f"**{name}**, {samples} samples; loss in {unit}"
    yield ""
    yield "| | score | loss | flips | agreement: arg-max | mean error, steps | layers in float | observer |"
    yield "|---|---:|---:|---:|---:|---:|---:|---|"
    for way in (w for w in (*FLOAT, *PEERS, *OURS, *DEFAULT, *TENSOR) if w in rows):
        row = rows[way]
        loss, agreed = row.get("float"), row.get("agreement", {})
        cells = [
            f"{per * row['score']:.2f}",
            f"{-per * loss['difference']:.3f} ± {per * loss['interval']:.3f}" if loss and way not in FLOAT else "",
            str(loss["flips"]) if loss and "flips" in loss and way not in FLOAT else "",
            f"{agreed['argmax']:.2%}" if "argmax" in agreed else "",
            f"{agreed['error']:.3f}" if agreed else "",
            str(row.get("float layers", "")),
            row.get("observer", ""),
        ]
        yield f"| {way} | " + " | ".join(cells) + " |"
    if found.get("mix"):
        yield from _mixes(found["mix"], per)


def _mixes(mixes: Mapping[str, Row], per: float) -> Iterator[str]:
    yield ""
    yield "| the fastest mix | score | least | chosen | int8 | fp32, ms | float, ms | mix, ms | times fp32 |"
    yield "|---|---:|---:|---|---:|---:|---:|---:|---:|"
    for name, m in mixes.items():
        fp32, default, mix = (m["ms"][k] for k in ("fp32", "float", "mix"))
        scores = f"{per * m['score']:.2f} | {per * m['least']:.2f}"
        yield (
            f"| {name} | {scores} | {m['chosen']} | {m['int8'][0]}/{m['int8'][1]} | {fp32:.2f} | {default:.2f} | {mix:.2f} "
            f"| {fp32 / mix:.2f} |"
        )


def _verdicts(found: Mapping[str, Any]) -> Iterator[str]:
    """Ours against the best peer, and what does not hold."""
    yield "**Ours minus the best peer** of the same runtime, and of all"
    yield ""
    yield "| | in | best there | difference | best of all | difference |"
    yield "|---|---|---|---:|---|---:|"
    for name, case in found.items():
        for way, row in case["rows"].items():
            if way in OURS and "best of all" in row:
                cells = [_against(row.get(f"best of {kind}"), case["unit"]) for kind in ("runtime", "all")]
                yield f"| {name} | {OURS[way].runtime} | " + " | ".join(cells) + " |"
    yield ""
    failed = [line for name, case in found.items() for line in _failed(name, case)]
    yield "Does not hold: " + ("; ".join(failed) if failed else "nothing of what is here") + "."


def _against(found: Row | None, unit: Sequence[Any]) -> str:
    if found is None:
        return " | "
    return f"{found['peer']} | {unit[1] * found['difference']:+.3f} ± {unit[1] * found['interval']:.3f}"


def _failed(name: str, case: Mapping[str, Any]) -> Iterator[str]:
    for way, row in case["rows"].items():
        best, agreed = row.get("best of all"), row.get("agreement")
        if best and best["difference"] < 0:
            yield f"{name}, {way}: {best['peer']} is better by {-best['difference'] * case['unit'][1]:.3f} {case['unit'][0]}"
        if agreed and way in OURS and (agreed.get("argmax", 1) < SHARE or agreed["error"] > STEPS):
            yield f"{name}, {way}: agreement {agreed.get('argmax', 1):.2%}, {agreed['error']:.2f} steps"
        if name == TEACHER and way in OURS and row["float"]["difference"] < -MOST:
            yield f"{name}, {way}: loses {-100 * row['float']['difference']:.2f} points"
    for way, m in case.get("mix", {}).items():
        if m["score"] < m["least"] or m["ms"]["fp32"] < FASTER * m["ms"]["mix"]:
            yield f"{name}, mix, {way}: {m['ms']['fp32'] / m['ms']['mix']:.2f} times as fast as fp32, score {m['score']:.4f}"


# The command.


def _wanted(row: Row | None, way: Way) -> bool:
    """Whether the row is missing, or is ours and made by other sources."""
    return row is None or (way.scheme is not None and row.get("sources") != sources())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="the peers' virtual environment; made where there is none")
    parser.add_argument("--cases", type=Path, help="a folder with realdata.py; P2 to P4 are left out without")
    parser.add_argument("--files", type=Path, default=HERE.parent / "runs" / "quant_accuracy", help="where files are kept")
    parser.add_argument("--only", action="append", metavar="CASE", help="a case; all by default")
    parser.add_argument("--way", action="append", help="a row; all by default")
    parser.add_argument("--threads", type=int, default=2, help="of what is timed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    python, kept = environment(given.peers.absolute()), HERE / "quant_accuracy.json"
    results: Row = read_json(kept) if kept.exists() else {"cases": {}}
    results |= {"machine": machine(), "peers": versions(python)}

    def keep(name: str, found: Row) -> None:
        results["cases"] = (read_json(kept) if kept.exists() else results)["cases"] | {name: found}  # others may write beside
        write_json(kept, results)
        with whole_file(HERE / "quant_accuracy.md") as part:
            part.write_text(table(results), encoding="utf-8")

    for name, case in cases(given.cases, given.files).items():
        if given.only and name not in given.only:
            continue
        ways = FLOAT | PEERS | OURS | DEFAULT | (TENSOR if name.startswith("depthwise") else {})
        found = results["cases"].get(name, {"unit": case.unit, "rows": {}})
        judge = Judge(name, case, given.files, python)
        made = {w for w in ways if judge.has(w) and not _wanted(found["rows"].get(w), ways[w])}
        for way in [w for w in ways if w not in made and (not given.way or w in given.way or w in FLOAT)]:
            found["rows"][way] = judge.row(way, ways[way])
            compared(judge, found["rows"])
            print(name, way, found["rows"][way], flush=True)
            keep(name, found)
        if name == HEAVY and not given.way:
            mixes = found.setdefault("mix", {})
            for runtime, batch in ((r, b) for r in RUNTIMES for b in (1, 8)):
                if mixes.get(key := f"{runtime}, batch {batch}", {}).get("sources") != sources():
                    mixes[key] = mixed(judge, runtime, given.threads, batch)
                    print(name, key, mixes[key], flush=True)
                    keep(name, found)


if __name__ == "__main__":
    main()
