"""Kill a run at five random moments and start it again each time: python benchmarks/killed.py [--seed N]   (about 5 minutes)

The demo's network on a quarter of the demo's training, once without interruption and once killed with SIGKILL at five random
moments, drawn over the length of the first run. Both must end with the same file. It writes killed.json and killed.md.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from penjing.files import write_json
from penjing.measure import machine
from penjing.result import load_result

HERE = Path(__file__).parent
KILLS = 5
RUN = """
import sys
from dataclasses import replace
from pathlib import Path
import penjing as pj
from penjing.cli.compress import demo_settings, demo_task
settings = replace(demo_settings(), epochs=2, attempts=2, probes=2, control=False, generalization=0)
budget = pj.Budget(max_drop=0.03)
pj.compress(pj.zoo.fashion_resnet20(), demo_task(), budget=budget, target="openvino", out=Path(sys.argv[1]), settings=settings)
"""


def started(out: Path, cache: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", RUN, str(out)], env={**os.environ, "PENJING_CACHE": str(cache)})


def killed(out: Path, cache: Path, length: float, chance: random.Random) -> list[float]:
    """Run with interruptions; after how many seconds of running each came, all starts together."""
    moments = sorted(chance.uniform(0.0, length) for _ in range(KILLS))
    for before, moment in pairwise([0.0, *moments]):
        process = started(out, cache)
        try:
            process.wait(moment - before)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        else:
            sys.exit("the run ended before it could be killed")
    if started(out, cache).wait():
        sys.exit("the run that goes on failed")
    return [round(m, 1) for m in moments]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    chance = random.Random(parser.parse_args().seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken, cache = (Path(folder) / name for name in ("whole", "broken", "cache"))
        began = time.perf_counter()
        if started(whole, cache).wait():
            sys.exit("the run failed")
        length = time.perf_counter() - began
        moments = killed(broken, cache, length, chance)
        results = [load_result(out) for out in (whole, broken)]
    found: dict[str, Any] = {
        "seconds": round(length, 1),
        "killed_after": moments,
        "digests": [r.artifact.digest for r in results],
        "machine": machine(),
    }
    write_json(HERE / "killed.json", found)
    same = found["digests"][0] == found["digests"][1]
    ends = " and ".join(f"`{d[:16]}`" for d in found["digests"])
    text = (
        f"# A run killed at {len(moments)} random moments\n\n"
        f"The run takes {length:.0f} s without interruption. It was killed with SIGKILL after "
        f"{', '.join(f'{m:g}' for m in moments)} s of running, and started again each time.\n"
        f"The files of both are **{'the same' if same else 'NOT the same'}**: {ends}.\n"
    )
    (HERE / "killed.md").write_text(text)
    sys.stdout.write(text)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
