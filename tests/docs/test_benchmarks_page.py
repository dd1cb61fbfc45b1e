"""The page of benchmarks is made from their results; the runner knows them from their docstrings."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """``run_all`` and ``page`` as modules."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import page
    import run_all

    return run_all, page


def test_the_page_is_that_of_the_committed_results() -> None:
    done = subprocess.run([sys.executable, "benchmarks/page.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_benchmark_is_on_it_with_command_time_machine_and_spread(both: tuple[Any, Any]) -> None:
    run_all, page = both
    found = run_all.benchmarks()
    scripts = {
        p.stem for p in (ROOT / "benchmarks").glob("*.py") if "python benchmarks/" in p.read_text()[:200].partition("\n")[0]
    }
    assert {b.name for b in found} == scripts - set(run_all.NO_BENCHMARK)
    text = page.page()
    for b in found:
        section = text.split(f"\n## {b.name}\n")[1].split("\n## ")[0]
        assert f"$ {b.command}" in section
        assert b.name in page.SPREAD
        results = [f for f in (ROOT / "benchmarks").glob(f"{b.name}.*") if f.suffix in page.RESULTS]
        assert all(f"(../benchmarks/{f.name})" in section for f in results)
        assert (page.PENDING in section) == (not results)


def test_links_of_the_page_lead_somewhere(both: tuple[Any, Any]) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", both[1].page())
    assert len(links) > 30
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_a_result_appears_on_the_page_when_it_is_made(
    both: tuple[ModuleType, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all, page = both
    (tmp_path / "new.py").write_text('"""What is new: python benchmarks/new.py [--peers FOLDER]   (a minute)\n\nMore.\n"""\n')
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    monkeypatch.setattr(page, "HERE", tmp_path)
    assert page.PENDING in page.page()
    machine = {"cpu": "A processor", "cores": 3, "features": ["avx2"], "torch": "2.0"}
    (tmp_path / "new.json").write_text(json.dumps({"machine": machine}))
    rows = "\n".join(f"| {n} | [raw](new.json) |" for n in range(80))
    (tmp_path / "new.md").write_text(
        f"# New\n\nShort.\n\n## Part\n\n| a | b |\n|---|---|\n| 1 | ![drawn](new.png) |\n\n{rows}\n"
    )
    text = page.page()
    assert page.PENDING not in text
    assert "A processor, 3 cores, avx2, torch 2.0" in text
    assert "### Part" in text and "| 1 | [drawn](../benchmarks/new.png) |" in text
    assert "| 79 |" not in text and "The rest is in [new.md](../benchmarks/new.md)" in text


def test_the_runner_goes_on_after_a_failure_and_says_so(
    both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_all, _ = both
    wrong, right = tmp_path / "wrong.py", tmp_path / "right.py"
    wrong.write_text("raise SystemExit(3)")
    right.write_text("import sys; print('given', sys.argv[1:])")
    made = [
        run_all.Benchmark("wrong", "Fails", f"python {wrong}", "a minute", ""),
        run_all.Benchmark("right", "Works", f"python {right} --peers FOLDER [--cases FOLDER] [--full]", None, ""),
        run_all.Benchmark("poor", "Lacks", f"python {right} --peer-python PYTHON", None, ""),
    ]
    ended = run_all.run(made, {"--peers": "a b", "--pruner": "x"})
    assert ended["wrong"].startswith("FAILED with exit code 3")
    assert ended["right"].startswith("done")
    assert ended["poor"] == "left out: give --peer-python"
    assert "given ['--peers', 'a b']" in capfd.readouterr().out
    assert run_all.words(made[1], {"--peers": "p", "--cases": "c"})[2:] == ["--peers", "p", "--cases", "c"]
    monkeypatch.setattr(run_all, "benchmarks", lambda: made[:1])
    monkeypatch.setattr(sys, "argv", ["run_all.py"])
    assert run_all.main() == 1
    assert "wrong: FAILED" in capfd.readouterr().out


def test_the_list(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_all, _ = both
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--list", "--only", "finetune"])
    assert run_all.main() == 0
    assert "| finetune | Who recovers better | half an hour on 2 cores | --peer-python |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--only", "none"])
    with pytest.raises(SystemExit):
        run_all.main()
