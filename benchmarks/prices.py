"""How well prices of layers foretell whole networks: python benchmarks/prices.py --peers FOLDER   (an hour)

Every net (the zoo's, and timm's with random weights) is priced from a few of its networks of other widths; then networks with
widths that the prices have not seen are timed in turns and compared with what was predicted. The whole net takes its turns
again, and times are divided by how much slower it has become since the prices were taken ("drift"). It writes
benchmarks/prices.json and benchmarks/prices.md after each net and goes on where it was stopped; ``--again`` measures all anew.

``--peers`` is a virtual environment with timm, onnxruntime and openvino, in which each net is measured in a process of its own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from quant_peers import build
from torch import Tensor, nn

from penjing.export import RUNTIMES
from penjing.files import read_json, whole_file, write_json
from penjing.measure import machine
from penjing.search.ledger import Ledger
from penjing.search.price_fit import rows_of
from penjing.search.price_samples import PRECISIONS, Sample, draw_widths
from penjing.search.prices import PriceSettings, Pricing, fit_prices
from penjing.zoo import ZOO, fashion_resnet20

HERE = Path(__file__).parent
GOAL = 0.10  # the median of |predicted / measured - 1| over all
UNSEEN, SEED = 3, 7  # networks that the prices have not seen, beside the whole and the narrowest
SIZE = 128  # pixels a side that timm's nets are given: the shorter a kernel the harder to foretell
THREADS = 1
LARGE = (
    *("resnet18", "mobilenetv2_100", "regnetx_004", "mobilenetv3_small_100", "repvgg_a0", "tf_efficientnet_lite0"),
    *("resnet50", "ghostnet_100", "densenet121"),
)
CASES = [
    *((net, runtime, 1) for net in (*LARGE[:4], *ZOO, *LARGE[4:]) for runtime in RUNTIMES),
    *((net, runtime, 32) for net in ("resnet20", "mobilenet") for runtime in RUNTIMES),
]
Row = dict[str, Any]


def made(net: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if net == "resnet20":
        return fashion_resnet20(), torch.randn(1, 1, 28, 28)
    if net in ZOO:
        factory, shape = ZOO[net]
        return factory().eval(), torch.randn(1, *shape)
    model, _ = build(net, None)
    return model, torch.randn(1, 3, SIZE, SIZE)


def watched(net: str, runtime: str, batch: int, ledger: Ledger) -> Row:
    """Price one net, then time what the prices have not seen: all that was measured."""
    model, example = made(net)
    settings = PriceSettings(batch=batch, threads=THREADS)
    pricing = Pricing(model, example, target=runtime, settings=settings, ledger=ledger)
    expected = pricing.cost.seconds
    began = time.perf_counter()
    pricing.prices()
    seconds = time.perf_counter() - began
    drawn = draw_widths(pricing.sampler.channels, UNSEEN + 2, pricing.sampler.target.lanes, seed=SEED)
    timed = pricing.sampler.samples([drawn[0], *drawn[2:]])
    return {
        "lanes": pricing.sampler.target.lanes,
        "layers": len(pricing.sites),
        "groups": len(pricing.sampler.channels.groups),
        "seconds": round(seconds, 1),
        "expected_seconds": round(expected, 1),
        "seen": [s.to_json() for s in pricing.samples()],
        "again": [s.to_json() for s in timed[: len(PRECISIONS)]],
        "unseen": [s.to_json() for s in timed[len(PRECISIONS) :]],
    }


def row(held: Mapping[str, Any]) -> Row:
    """What is told of one case: prices from the networks that were seen, of those that were not."""
    seen, again, unseen = ([Sample.from_json(s) for s in held[k]] for k in ("seen", "again", "unseen"))
    prices = fit_prices(seen, rows_of(seen), held["lanes"])
    drift = {now.precision: now.wall / then.wall for now, then in zip(again, seen, strict=False)}
    predicted = [prices.of_sites(s.sites, s.precision) for s in unseen]
    found = [
        {"precision": s.precision, "measured": round(s.wall / drift[s.precision], 4), "predicted": round(p, 4)}
        for s, p in zip(unseen, predicted, strict=True)
    ]
    told = {k: held[k] for k in ("layers", "groups", "seconds", "expected_seconds")}
    return told | {"networks": prices.networks, "in_sample": round(prices.error, 4), "drift": drift, "unseen": found}


def errors(rows: Sequence[Row], precision: str | None = None) -> list[float]:
    return [
        abs(r["predicted"] / r["measured"] - 1) for row in rows for r in row["unseen"] if precision in (None, r["precision"])
    ]


def table(results: Mapping[str, Any]) -> str:
    rows = list(results["rows"].values())
    every = errors(rows)
    lines = [
        f"Predicted against measured time of whole networks whose widths the prices had not seen, {THREADS} thread; the zoo's",
        f"nets at their own size, timm's at {SIZE} x {SIZE}.",
        f"Medians of |predicted / measured - 1|; the goal is {GOAL:.0%} over all.",
        "Drift is how much slower the whole net had become (int8, float) when these were timed; times are divided by it.",
        "Float is the runtime's default: bfloat16 in OpenVINO where the CPU has it, float32 in ONNX Runtime.",
        "",
        f"**All: median {statistics.median(every):.1%}, 90th percentile {_high(every):.1%}, largest {max(every):.1%}, "
        f"{len(every)} networks of {len({k.split()[0] for k in results['rows']})} nets.**",
        "",
        "| runtime | networks | median | 90 % below |",
        "|---|---:|---:|---:|",
        *_by_runtime(results["rows"]),
        "",
        "| net | runtime | batch | layers | int8 | float | largest | measured ms | drift | pricing took, s | foretold, s |",
        "|---|---|---:|---:|---:|---:|---:|---|---|---:|---:|",
    ]
    return "\n".join([*lines, *(_line(name, row) for name, row in results["rows"].items()), ""])


def _by_runtime(rows: Mapping[str, Row]) -> Iterator[str]:
    for runtime in sorted({name.split()[1] for name in rows}):
        for precision in ("int8", "float"):
            found = errors([r for name, r in rows.items() if name.split()[1] == runtime], precision)
            yield f"| {runtime}, {precision} | {len(found)} | {statistics.median(found):.1%} | {_high(found):.1%} |"


def _line(name: str, row: Row) -> str:
    net, runtime, batch = name.split()
    times = [r["measured"] for r in row["unseen"]]
    by = [f"{statistics.median(errors([row], p)):.1%}" for p in ("int8", "float")]
    cells = [net, runtime, batch, row["layers"], *by, f"{max(errors([row])):.1%}", f"{min(times):.2f} to {max(times):.2f}"]
    drift = " ".join(f"{v:.2f}" for v in row["drift"].values())
    return "| " + " | ".join(str(c) for c in [*cells, drift, row["seconds"], row["expected_seconds"]]) + " |"


def _high(values: Sequence[float]) -> float:
    return sorted(values)[int(0.9 * (len(values) - 1))]


def one(net: str, runtime: str, batch: int, out: Path) -> None:
    """Watch one case in this process."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        write_json(out, watched(net, runtime, batch, Ledger(Path(folder))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="a virtual environment with timm; without it only the zoo's nets are done")
    parser.add_argument("--files", type=Path, default=HERE.parent / "runs" / "prices", help="where what was measured is kept")
    parser.add_argument("--case", nargs=3, metavar=("NET", "RUNTIME", "BATCH"), help="one case only, in this process")
    parser.add_argument("--again", action="store_true", help="measure what has been measured")
    given = parser.parse_args()
    if given.case:
        one(given.case[0], given.case[1], int(given.case[2]), given.files / f"{' '.join(given.case)}.json")
        return
    results: Row = {"machine": machine(), "rows": {}}
    python = given.peers / "bin" / "python" if given.peers else Path(sys.executable)
    for net, runtime, batch in CASES:
        name = f"{net} {runtime} {batch}"
        kept = given.files / f"{name}.json"
        if (given.again or not kept.exists()) and (net in ZOO or given.peers):
            command = [str(python), __file__, "--files", str(given.files), "--case", net, runtime, str(batch)]
            settings = {**os.environ, "PYTHONPATH": str(HERE.parent / "src"), "OMP_NUM_THREADS": "1"}
            ran = subprocess.run(command, capture_output=True, text=True, env=settings)
            if ran.returncode:
                print(name, ran.stderr.strip().splitlines()[-1], flush=True)
                continue
        if not kept.exists():
            continue
        found = results["rows"][name] = row(read_json(kept))
        print(name, f"{statistics.median(errors([found])):.1%}, largest {max(errors([found])):.1%}", flush=True)
        write_json(HERE / "prices.json", results)
        with whole_file(HERE / "prices.md") as part:
            part.write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
