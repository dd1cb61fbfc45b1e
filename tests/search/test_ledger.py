import subprocess
import sys
from pathlib import Path

import pytest

from penjing.search.ledger import FOLDER, Ledger

HERE = {"cpu": "a", "threads": 1}


def test_a_new_ledger_is_empty_and_makes_no_folder(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "new").read(HERE) == {}
    assert not (tmp_path / "new").exists()


def test_the_first_number_stays(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.write(HERE, {"x": 1.5}) == {"x": 1.5}
    assert ledger.write(HERE, {"x": 2.5, "y": 3.5}) == {"x": 1.5, "y": 3.5}
    assert Ledger(tmp_path).read(HERE) == {"x": 1.5, "y": 3.5}


def test_fresh_numbers_replace_those_of_their_name_alone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write(HERE, {"x": 1.5, "y": 3.5})
    assert ledger.write(HERE, {"x": 2.5}, fresh=True) == {"x": 2.5, "y": 3.5}
    assert ledger.read(HERE) == {"x": 2.5, "y": 3.5}


def test_other_conditions_are_another_shelf(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write(HERE, {"x": 1.5})
    assert ledger.read(HERE | {"threads": 2}) == {}
    assert ledger.read(dict(reversed(HERE.items()))) == {"x": 1.5}


@pytest.mark.parametrize("text", ["{", "[]", '{"entries": 3}'])
def test_a_damaged_file_counts_as_empty_and_is_replaced(tmp_path: Path, text: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.write(HERE, {"x": 1.5})
    (path,) = tmp_path.glob("*.json")
    path.write_text(text)
    assert ledger.read(HERE) == {}
    assert ledger.write(HERE, {"x": 2.5}) == {"x": 2.5}


def test_processes_that_write_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from penjing.search.ledger import Ledger; ledger = Ledger(Path(sys.argv[1]))\n"
        "for i in range(60): ledger.write({'cpu': 'a', 'threads': 1}, {f'{sys.argv[2]} {i}': 1.0})"
    )
    writing = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    assert [process.wait() for process in writing] == [0, 0]
    assert len(Ledger(tmp_path).read(HERE)) == 120


def test_it_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "there"))
    Ledger().write(HERE, {"x": 1.5})
    assert Ledger(tmp_path / "there").read(HERE) == {"x": 1.5}


def test_a_folder_that_cannot_be_written_to_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=f"times are not kept for later runs: cannot write .*{FOLDER}"):
        assert Ledger(tmp_path / "file").write(HERE, {"x": 1.5}) == {"x": 1.5}
