"""How small and fast the demo's network gets on all of Fashion-MNIST: python benchmarks/headline.py   (forty minutes)

The demo's teacher (ResNet-20 of width 32) in two ways, each allowed a share of its fp32 latency at batch 32, which depends on
what integers of this processor can do. **Trained**: within an hour of one core (``--cpu-minutes`` says how much of it); 55,000
of the 60,000 training images are trained on, 5,000 choose, and the original is trained on for as many steps, to stand beside
it. **Without labels or training**: 512 images, for which what the original says stands in for labels. The 10,000 test images
are looked at once for each; what ``compress`` says of its own file is what counts.

It writes headline.json and headline.md, which keep what was measured on other processors: there other integers are fast. A
killed run goes on from what it kept in ``--work``; what was measured on this processor stays until it is taken out of
headline.json. ``--quick`` tries the same on 2,000 images and writes into ``--work`` alone.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from frontier import HERE, TRAIN_BATCH, Bench

import penjing as pj
from penjing.data import fashion_batches
from penjing.export import RUNTIMES
from penjing.files import read_json, whole_file, write_json
from penjing.measure import cores, machine
from penjing.processor import processor
from penjing.settings import Settings
from penjing.zoo import fashion_resnet20

Row = dict[str, Any]
TRAINED, UNTRAINED = "an hour of one core", "512 images, no labels, no training"


def shares() -> dict[str, float]:
    """Of the original's fp32 latency: what is asked for where integers are multiplied in tiles, four at once, and else."""
    _, features = processor()
    if "amx_int8" in features:
        return {TRAINED: 1 / 12, UNTRAINED: 1 / 10}
    if features & {"avx512_vnni", "avx_vnni"}:
        return {TRAINED: 1 / 10, UNTRAINED: 1 / 5}
    return {TRAINED: 1 / 5, UNTRAINED: 1 / 3}


def here() -> str:
    """This processor, with the widest integers that it multiplies."""
    name, features = processor()
    known = (("amx_int8", "AMX"), ("avx512_vnni", "AVX-512 VNNI"), ("avx_vnni", "AVX VNNI"), ("avx2", "AVX2"))
    widest = next((told for feature, told in known if feature in features), "no vectors known")
    return f"{name}, {widest}"


def runs(bench: Bench, target: str, cpu_minutes: float) -> dict[str, Callable[[Path, float], pj.Result]]:
    """Both ways, as functions of a folder and the share of the latency."""
    minutes = cpu_minutes / torch.get_num_threads()
    hour = replace(bench.settings, epochs=None, minutes=minutes, attempts=1, qat=Settings().qat, control=True)
    none = replace(bench.settings, epochs=0, labels=0.0)
    images = [x for x, _ in fashion_batches(bench.unlabelled(), TRAIN_BATCH)]
    with torch.no_grad():
        said = [(x, fashion_resnet20()(x).argmax(1)) for x in images]

    def trained(out: Path, share: float) -> pj.Result:
        budget = pj.Budget(max_drop=None, latency=share)
        return pj.compress(fashion_resnet20(), bench.task, budget=budget, target=target, out=out, settings=hour)

    def untrained(out: Path, share: float) -> pj.Result:
        budget, task = pj.Budget(max_drop=None, latency=share), replace(bench.task, train=said, search=said)
        return pj.compress(fashion_resnet20(), task, budget=budget, target=target, out=out, settings=none)

    return {UNTRAINED: untrained, TRAINED: trained}


def row(data: Mapping[str, Any], share: float, target: str) -> Row:
    found = {k: 100 * data["accuracy"][k] for k in ("before", "after", "drop", "low", "high")} | {"target": target}
    found |= {"share": share, "batch": data["speedup"]["batch"]}
    found |= {"faster": data["speedup"]["value"], "faster_than_default": data["speedup"]["versus_default"]}
    found |= {"verdict": data["verdict"]["sentence"], "control": data["control"], "size": data["size"]}
    spent = [e["seconds"] for e in data["training"] if e["run"] != "control"]
    return found | {"cpu_minutes": sum(spent) * torch.get_num_threads() / 60}


def told(kept: Row) -> str:
    heads = (
        "processor", "way", "before, %", "after, %", "points lost", "faster than fp32", "than default", "MACs", "bytes",
        "CPU-minutes", "control, %",
    )  # fmt: skip
    lines = [
        "# The headline",
        "",
        "Written by `python benchmarks/headline.py`, whose docstring says how, from [its data](headline.json). Points are of "
        "10,000 test images, with a paired 95 % interval; latency is of batch 32 in the better runtime of each, 2 threads. "
        "Control: the original, trained on with labels for as many steps.",
        "",
        f"| {' | '.join(heads)} |",
        "|---|---|" + "---:|" * (len(heads) - 2),
        *(_line(where, name, r) for where, rows in kept.items() for name, r in rows.items()),
        "",
    ]
    return "\n".join(lines)


def _line(where: str, name: str, r: Row) -> str:
    control = f"{100 * r['control']['score']:.2f}" if r["control"] else ""
    lost = f"{r['drop']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
    cells = [
        where,
        name,
        f"{r['before']:.2f}",
        f"{r['after']:.2f}",
        lost,
        f"{r['faster']:.2f}",
        f"{r['faster_than_default']:.2f}",
    ]
    minutes = f"{r['cpu_minutes']:.1f}{', the control included' if r.get('control_counted') else ''}"
    cells += [f"{r['size'][k][0] / r['size'][k][1]:.1f}x less" if "size" in r else "" for k in ("macs", "bytes")]
    return f"| {' | '.join([*cells, minutes, control])} |"


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", type=Path, help="a folder with the IDX files of Fashion-MNIST")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "headline", help="where files are kept")
    parser.add_argument("--cpu-minutes", type=float, default=24.0, help="of training, over all threads; an hour may be spent")
    parser.add_argument("--target", choices=RUNTIMES, default="openvino", help="that is compressed for")
    parser.add_argument("--quick", action="store_true", help="try the way on few images; results go into --work")
    given = parser.parse_args(words)
    torch.set_num_threads(cores())
    work = (given.work / ("quick" if given.quick else "full")).absolute()
    bench = Bench(work, Path(), Path(), given.fashion, 1, given.quick)
    out = work if given.quick else HERE
    kept: Row = read_json(out / "headline.json") if (out / "headline.json").exists() else {}
    rows = kept.setdefault(here(), {})
    for name, run in runs(bench, given.target, 2.0 if given.quick else given.cpu_minutes).items():
        if name not in rows:
            share = shares()[name]
            rows[name] = row(run(work / name, share).data, share, given.target) | {"machine": machine()}
            print(name, rows[name], flush=True)
            write_json(out / "headline.json", kept)
    with whole_file(out / "headline.md") as part:
        part.write_text(told(kept), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
