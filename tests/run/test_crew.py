"""A run on two processes: its tables, its choice and its training are those of one, and what one refuses both refuse."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import penjing as pj
from penjing.search import Budget
from tests.run.test_run import SETTINGS, network, task

ROOT = Path(__file__).parents[2]
HOW = replace(SETTINGS, control=False, generalization=0)
RUN = """
import sys
from pathlib import Path
import penjing as pj
from penjing import ranks
from penjing.search import Budget
from tests.run.test_crew import compressed
from tests.run.test_run import network, task

out = Path(sys.argv[1])
ranks.join()
try:
    compressed(out / "refused", macs=10)
except pj.errors.BudgetError as e:
    refused = str(e)
done = compressed(out / "two", bytes="0.5x")
mine = [refused, sorted((p.name, p.stat().st_mtime_ns) for p in done.folder.iterdir())]
assert all(each == mine for each in ranks.gathered(mine))  # all return when all is written
ranks.leave()
"""


def compressed(out: Path, **limits: Any) -> pj.Result:
    return pj.compress(network(), task(), budget=Budget(max_drop=None, **limits), out=out, settings=HOW)


@pytest.mark.slow
def test_two_processes_compress_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run knows the first's times, since these decide and clocks differ."""
    monkeypatch.setenv("PENJING_CACHE", str(tmp_path / "cache"))
    one, two = compressed(tmp_path / "one", bytes="0.5x").folder, tmp_path / "two"
    (tmp_path / "run.py").write_text(RUN)
    told = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", tmp_path / "run.py", tmp_path],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr.decode()[-6000:]
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()}
    for table in ("damage-divergence", "integers-divergence"):
        rows, others = (flat(read(out / "stages" / f"{table}.json")) for out in (one, two))
        assert others == pytest.approx(rows, rel=1e-3, abs=1e-6)
        assert len(rows) > 1
    assert read(two / "plan.json") == read(one / "plan.json")
    trained, others = (read(out / "result.json")["training"] for out in (one, two))
    assert [e["run"] for e in others] == [e["run"] for e in trained]
    assert [e["loss"] for e in others] == pytest.approx([e["loss"] for e in trained], rel=0.02)
    assert trained


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def flat(value: Any, at: str = "") -> dict[str, float]:
    """All numbers of a table, by their place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, each in items for k, v in flat(each, f"{at}/{key}").items()}
    return {at: value}
