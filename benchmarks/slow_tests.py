"""Do the tests that are too slow for every change still pass: python benchmarks/slow_tests.py   (about 6 minutes)

``make test`` leaves out what is marked ``slow``: runs on several processes, runs that are killed, all kinds of networks on both
runtimes, the code of the longer pages, and most of many cases alike. This runs exactly those (``make slow``) and writes
slow_tests.json and slow_tests.md. The exit code is that of pytest.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from penjing.files import whole_file, write_json
from penjing.measure import machine

HERE = Path(__file__).parent
WORKERS = ("-n", "auto", "--dist", "loadfile")


def ran(report: Path) -> list[dict[str, Any]]:
    """What pytest told of each test."""
    rows = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        rows.append({"test": name, "outcome": outcome, "seconds": round(float(case.get("time", 0)), 1)})
    return sorted(rows, key=lambda row: row["test"])


def together(rows: list[dict[str, Any]]) -> list[tuple[str, str, float]]:
    """Each test once, however many cases it has: its name, how they ended, and their seconds."""
    tests: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        tests.setdefault(row["test"].partition("[")[0], []).append(row)
    found = []
    for name, cases in tests.items():
        ended = Counter(case["outcome"] for case in cases)
        outcome = ", ".join(f"{n} {how}" if len(cases) > 1 else how for how, n in ended.items())
        found.append((name, outcome, sum(case["seconds"] for case in cases)))
    return found


def told(kept: dict[str, Any]) -> str:
    m, rows = kept["machine"], kept["rows"]
    passed = sum(row["outcome"] == "passed" for row in rows)
    lines = [
        "# The slow tests",
        "",
        f"Written by `python benchmarks/slow_tests.py`, whose docstring says how, from [its data](slow_tests.json). {passed} "
        f"of {len(rows)} passed.",
        "",
        "| test | outcome | s |",
        "|---|---|---:|",
        *(f"| `{name}` | {outcome} | {seconds:.1f} |" for name, outcome, seconds in together(rows)),
        "",
        f"On {m['cpu']}, {m['cores']} core(s); torch {m['torch']}, onnxruntime {m['onnxruntime']}, openvino {m['openvino']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = [sys.executable, "-m", "pytest", "-q", *WORKERS, "-m", "slow", f"--junitxml={report}"]
        done = subprocess.run(words, cwd=HERE.parent, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
        kept = {"machine": machine(), "rows": ran(report)}
    write_json(HERE / "slow_tests.json", kept)
    with whole_file(HERE / "slow_tests.md") as part:
        part.write_text(told(kept), encoding="utf-8")
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
