"""Run the benchmarks, one after the other: python benchmarks/run_all.py [--list] [--only NAME ...] [what they need]

Which there are, what each asks, its command and its time are read from the first line of its docstring. What a command needs
that is not part of the repository is given once: ``--peers FOLDER`` (an environment for the peers, made with pip where there
is none), ``--peer-python PYTHON`` (an interpreter with torch-pruning and timm; also frontier's ``--pruner``) and ``--cases
FOLDER`` (with ``realdata.py``, which fetches networks and data). A benchmark whose needs are not given is left out, and named.
One that fails does not stop the others; in the end it is named, and the exit code is 1. Then docs/benchmarks.md is renewed.
Benchmarks that keep their rows do not measure them again; remove the result file to measure all anew.
"""

import argparse
import ast
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
FIRST = re.compile(r"^(?P<question>.+?): (?P<command>python benchmarks/\S+\.py.*?)(?:   \((?P<minutes>[^)]+)\))?$")
NO_BENCHMARK = ("figures", "page", "quant_nets", "quantization", "run_all")  # they write pages, train for others or call others
OPTIONAL = re.compile(r"\s*\[([^\]]*)\]")
NEED = re.compile(r"(--[\w-]+) (FOLDER|PYTHON)")


@dataclass(frozen=True)
class Benchmark:
    """What the docstring of a benchmark says."""

    name: str
    question: str
    command: str  # as it is typed, with placeholders for what it needs
    minutes: str | None  # in words; None where it does not say
    about: str  # the rest of the docstring

    @property
    def needs(self) -> tuple[str, ...]:
        """The options that lead out of the repository."""
        return tuple(option for option, _ in NEED.findall(OPTIONAL.sub("", self.command)))


def benchmarks() -> list[Benchmark]:
    """All benchmarks of the folder, by name."""
    found = []
    for path in sorted(HERE.glob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first, _, rest = doc.partition("\n")
        said = FIRST.match(first)
        if said and path.stem not in NO_BENCHMARK:
            found.append(Benchmark(path.stem, said["question"], said["command"], said["minutes"], rest.strip()))
    return found


def words(benchmark: Benchmark, given: dict[str, str]) -> list[str]:
    """The command with what was given in the places of what it needs; of its parts in brackets, those whose need is given."""

    def wanted(part: re.Match[str]) -> str:
        need = NEED.fullmatch(part[1])
        return f" {part[1]}" if need and need[1] in given else ""

    filled = NEED.sub(lambda m: f"{m[1]} {shlex.quote(given[m[1]])}", OPTIONAL.sub(wanted, benchmark.command))
    return [sys.executable, *shlex.split(filled)[1:]]


def run(chosen: list[Benchmark], given: dict[str, str]) -> dict[str, str]:
    """Run each that has what it needs; ``{name: how it ended}``."""
    ended: dict[str, str] = {}
    for b in chosen:
        missing = [need for need in b.needs if need not in given]
        if missing:
            ended[b.name] = f"left out: give {' and '.join(missing)}"
            continue
        print(f"== {b.name}: {b.question} ({b.minutes or 'time not stated'})", flush=True)
        began = time.monotonic()
        code = subprocess.run(words(b, given), cwd=ROOT).returncode
        how = "done" if code == 0 else f"FAILED with exit code {code}"
        ended[b.name] = f"{how} after {(time.monotonic() - began) / 60:.1f} minutes"
    return ended


def told(found: list[Benchmark]) -> str:
    """The benchmarks as a table."""
    rows = ["| benchmark | question | time | needs |", "|---|---|---|---|"]
    rows += [f"| {b.name} | {b.question} | {b.minutes or 'not stated'} | {', '.join(b.needs)} |" for b in found]
    return "\n".join(rows) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the benchmarks, one after the other.")
    parser.add_argument("--list", action="store_true", help="print what there is, and run nothing")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these")
    for option in ("--peers", "--peer-python", "--cases"):
        parser.add_argument(option)
    options = parser.parse_args()
    found = {b.name: b for b in benchmarks()}
    unknown = set(options.only or ()) - set(found)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    chosen = [found[name] for name in options.only or found]
    if options.list:
        sys.stdout.write(told(chosen))
        return 0
    python = options.peer_python
    given = {"--peers": options.peers, "--peer-python": python, "--pruner": python, "--cases": options.cases}
    ended = run(chosen, {name: str(Path(value).absolute()) for name, value in given.items() if value})
    print("\n".join(["", *(f"{name}: {how}" for name, how in ended.items())]), flush=True)
    if any(how.startswith("done") for how in ended.values()):
        subprocess.run([sys.executable, "benchmarks/page.py"], cwd=ROOT, check=True)
    return int(any(how.startswith("FAILED") for how in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
