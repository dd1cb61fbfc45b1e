"""Write docs/benchmarks.md from the committed results: python benchmarks/page.py [--check]

For each benchmark: its question, how to run it, its table, where it was measured, what its spread is, and its raw files. Every
number is copied from a result file. With ``--check`` nothing is written, and a page that differs is told.
"""

import re
import sys
from typing import Any

from run_all import HERE, ROOT, Benchmark, benchmarks

from penjing.files import read_json, whole_file

PAGE = ROOT / "docs/benchmarks.md"
LINES = 45  # of a table that the page shows; the rest is in its file
PENDING = "No result is committed yet.\n"
SPREAD = {  # what is known of how much its numbers vary
    "cases": "None: the error is that of one proof in float64, and the seconds are of one run.",
    "coverage": "None: one network each; seconds are of one run on a core that was not idle.",
    "demo": "Times: medians of interleaved turns, with the 10th and 90th percentile in the JSON. Accuracy: a paired interval.",
    "distill_losses": "The largest difference over 20 draws; times are medians of turns.",
    "distillation": "Half of the range over the seeds, where there are three; one seed has none.",
    "finetune": "Half of the range over three seeds; the original is one.",
    "frontier": "Times: taken in turns in one process. Accuracy: 10,000 images, once for each row.",
    "headline": "Times: medians of turns in one process. Accuracy: a paired 95 % interval.",
    "killed": "None wanted: the files are compared by their SHA-256.",
    "allocation": "Times: medians of turns in one process. Accuracy: a paired 95 % interval.",
    "others": "Accuracy: a paired 95 % interval. Times: medians of turns in one process.",
    "prices": "The errors of all networks: median, 90th percentile and largest.",
    "pruning": "Half of the range over the draws of images, where there are several.",
    "quant_accuracy": "Half of a 95 % interval of the paired difference.",
    "quant_cost": "Every turn is in the JSON; the table has medians.",
    "quant_latency": "Quartiles of the ratios over turns and loads.",
    "quant_rounding": "None: one run each; 0.3 points of 10,000 images are chance.",
    "quant_training": "Half of the range over the seeds, where there are several; one seed has none.",
    "slow_tests": "None wanted: a test passes or does not.",
    "sparsity": "Latency: the 10th and 90th percentile of turns in the JSON. Accuracy: one run each, unless said otherwise.",
    "training_overhead": "Quartiles of the ratios over turns.",
}
SEVERAL = ("headline",)  # that were measured on more than one machine
RESULTS = (".md", ".json", ".csv", ".png")
PARTS = ("python", "torch", "onnxruntime", "openvino", "timm", "nncf", "torchdistill")


def page() -> str:
    """The whole page."""
    found = benchmarks()
    head = (
        "# Benchmarks\n\n"
        "Every number here is copied from a result file in [benchmarks](../benchmarks) by `python benchmarks/page.py`, and\n"
        "stands below the command that made the file. `make bench` runs them all, `python benchmarks/run_all.py --only NAME`\n"
        "some, and `--list` tells what each needs. What was compared was measured in turns in one process: read times as\n"
        "ratios, and do not compare those of two machines.\n"
    )
    rows = [f"| [{b.name}](#{_anchor(b.name)}) | {b.question} | {b.minutes or 'not stated'} | {_needs(b)} |" for b in found]
    table = "\n".join(["| benchmark | question | time | needs |", "|---|---|---|---|", *rows])
    return "\n".join([head, table, "", *(_section(b) for b in found)]).rstrip() + "\n"


def _section(b: Benchmark) -> str:
    files = [HERE / (b.name + end) for end in RESULTS if (HERE / (b.name + end)).is_file()]
    raw = ", ".join(f"[{f.name}](../benchmarks/{f.name})" for f in files)
    command = f"```console\n$ {b.command}\n```\n"
    about = f"{b.question}. Time: {b.minutes or 'not stated'}. What it does: [{b.name}.py](../benchmarks/{b.name}.py).\n"
    parts = [f"## {b.name}\n", about, command]
    if not files:
        return "\n".join([*parts, PENDING])
    where = "named in the table" if b.name in SEVERAL else _machine(b.name)
    facts = [f"- Raw results: {raw}", f"- Machine: {where}", f"- Spread: {SPREAD.get(b.name, 'not stated')}"]
    return "\n".join([*parts, "\n".join(facts) + "\n", _shown(b.name)])


def _machine(name: str) -> str:
    """Where it was measured, as far as the result file says."""
    path = HERE / f"{name}.json"
    data: dict[str, Any] = read_json(path) if path.is_file() else {}
    held = data.get("machine") or data.get("about", {}).get("machine") or {}
    versions = held | data.get("versions", {}) | {f"{k} of the peers": v for k, v in data.get("peers", {}).items()}
    where = [str(held["cpu"]), f"{held['cores']} cores", " ".join(held["features"])] if "cpu" in held else []
    known = [k for k in versions if k.removesuffix(" of the peers") in PARTS and versions[k] != "not installed"]
    said = [*where, *(f"{k} {versions[k]}" for k in known)]
    return ", ".join(said) if where else ", ".join([*said, "the processor was not recorded"])


def _shown(name: str) -> str:
    """The table of a benchmark, cut where it is long, with its links and headings fitted to this page."""
    if name in MADE:
        return MADE[name](read_json(HERE / f"{name}.json"))
    path = HERE / f"{name}.md"
    if not path.is_file():
        return ""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# ")]
    kept = lines
    if len(lines) > LINES:
        ends = [i for i, line in enumerate(lines) if not line.strip() and i <= LINES]
        kept = lines[: ends[-1]] if ends and ends[-1] > 5 else lines[:LINES]
        kept += ["", f"The rest is in [{path.name}](../benchmarks/{path.name})."]
    text = re.sub(r"!\[([^\]]*)\]\(", r"[\1](", "\n".join(kept).strip())
    text = re.sub(r"\]\((?!https?:|#|\.\./)([^)]+)\)", r"](../benchmarks/\1)", text)
    return re.sub(r"^#+ ", "### ", text, flags=re.MULTILINE) + "\n"


def _demo(data: dict[str, Any]) -> str:
    a, size, fast = data["accuracy"], data["size"], data["speedup"]
    rows = [f"| {what} | {before:,} | {after:,} |" for what, (before, after) in size.items()]
    return "\n".join(
        [
            "| | original | compressed |",
            "|---|---:|---:|",
            f"| accuracy on {a['samples']:,} images | {100 * a['before']:.2f} % | {100 * a['after']:.2f} % |",
            *rows,
            "",
            f"At batch {fast['batch']}, in the faster runtime of each, {fast['value']:.1f} times faster than in fp32 and "
            f"{fast['versus_default']:.1f} times faster than in the runtime's default precision.",
            "",
        ]
    )


def _cases(data: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {r['groups']} | {r['macs_share']:.3f} | {r['error']:.1e} | {r['seconds']:.1f} |"
        for name, r in data["networks"].items()
    ]
    head = ["| network | groups of channels | MACs that stay, share | error, float64 | seconds |", "|---|---:|---:|---:|---:|"]
    return "\n".join([*head, *rows, ""])


MADE = {"demo": _demo, "cases": _cases}  # of those that write no Markdown themselves


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def _needs(b: Benchmark) -> str:
    return ", ".join(f"`{n}`" for n in b.needs)


def main() -> None:
    if "--check" in sys.argv:
        held = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
        sys.exit(0 if held == page() else "docs/benchmarks.md differs from the results; run python benchmarks/page.py")
    with whole_file(PAGE) as part:
        part.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
