"""Run the demo, keep its numbers and put them into README: python benchmarks/demo.py [RUN FOLDER]   (about 4 minutes)

Without a folder the demo is run in a new temporary one. It writes benchmarks/demo.json, the table and the example in README.md
and, where Chromium is installed, docs/report.png. ``--check`` writes nothing and fails if README differs from demo.json.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from penjing.files import write_json
from penjing.result import DEFAULT, FP32, SMALL, points

ROOT = Path(__file__).parent.parent
KEPT, README, PICTURE = ROOT / "benchmarks/demo.json", ROOT / "README.md", ROOT / "docs/report.png"
LEFT_OUT = ("training", "kernels", "layers", "load", "generalization")  # long, and not in README


def table(d: dict[str, Any]) -> str:
    """The demo's numbers as Markdown."""
    size, a, fast = d["size"], d["accuracy"], d["speedup"]
    times = {(r["runtime"], r["batch"], r["net"]): r["median"] for r in d["latency"]}
    rows = [
        "| | original, fp32 | original, runtime's default | compressed | against fp32 | against default |",
        "|---|---:|---:|---:|---:|---:|",
        f"| accuracy, {a['samples']:,} images | {100 * a['before']:.2f} % | | {100 * a['after']:.2f} % "
        f"| {points(-a['drop'])} points (95 % sure on each side: {points(-a['high'])} to {points(-a['low'])}) | |",
    ]
    if c := d["control"]:
        rows.append(f"| {c['name']} | {100 * c['score']:.2f} % | | {100 * a['after']:.2f} % | {points(c['versus'])} points | |")
    for name, unit in (("parameters", ""), ("macs", ""), ("bytes", ""), ("memory", "")):
        was, now = size[name]
        rows.append(f"| {name} | {was:,}{unit} | | {now:,}{unit} | {was / now:.1f}x smaller | |")
    for runtime, batch in sorted({(r, b) for r, b, _ in times}, key=lambda k: (k[1], k[0])):
        full, default, small = (times[runtime, batch, net] for net in (FP32, DEFAULT, SMALL))
        rows.append(
            f"| {runtime}, batch {batch} | {full:.2f} ms | {default:.2f} ms | {small:.2f} ms "
            f"| {full / small:.1f}x faster | {default / small:.1f}x faster |"
        )
    best = f"| **{fast['value']:.1f}x** | **{fast['versus_default']:.1f}x** |"
    rows.append(f"| **faster runtime of each, batch {fast['batch']}** | | | {best}")
    m = d["machine"]
    where = (
        f"{m['cpu']}, {m['threads']} threads, {', '.join(m['features'])}; torch {m['torch']}, onnxruntime {m['onnxruntime']}"
    )
    return "\n".join([*rows, "", f"On {where}, openvino {m['openvino']}."])


def with_parts(readme: str, d: dict[str, Any]) -> str:
    """README with the table and the example in their places."""
    example = (ROOT / "examples/own_model.py").read_text()
    parts = {"demo table: benchmarks/demo.py": table(d), "example: examples/own_model.py": f"```python\n{example}```"}
    for mark, text in parts.items():
        end = f"<!-- end of {mark.split(':')[0]} -->"
        readme = re.sub(
            f"<!-- {re.escape(mark)} -->.*?{end}",
            lambda _, m=mark, t=text, e=end: f"<!-- {m} -->\n{t}\n{e}",
            readme,
            flags=re.S,
        )
    return readme


def photograph(page: Path) -> None:
    """Render the page with headless Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync --hide-scrollbars"
    )
    with tempfile.TemporaryDirectory() as profile:
        command = [
            chromium,
            *flags.split(),
            f"--user-data-dir={profile}",
            "--window-size=1280,1500",
            "--virtual-time-budget=5000",
            f"--screenshot={PICTURE}",
        ]
        subprocess.run([*command, page.resolve().as_uri()], check=True, capture_output=True)


def main(words: list[str]) -> None:
    if words == ["--check"]:
        if with_parts(README.read_text(), json.loads(KEPT.read_text())) != README.read_text():
            sys.exit("README.md differs from benchmarks/demo.json or examples/own_model.py; run python benchmarks/demo.py")
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(words[0]) if words else Path(folder) / "demo"
        subprocess.run([sys.executable, "-m", "penjing", "demo", "--out", str(out)], check=True)
        data = json.loads((out / "result.json").read_text())
        write_json(KEPT, {k: v for k, v in data.items() if k not in LEFT_OUT})
        README.write_text(with_parts(README.read_text(), data))
        photograph(out / "report.html")


if __name__ == "__main__":
    main(sys.argv[1:])
