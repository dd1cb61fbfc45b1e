import hashlib
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from penjing.errors import PenjingError
from penjing.files import (
    alone,
    check_writable,
    digest,
    finite,
    read_json,
    read_tensors,
    remove_parts,
    whole_file,
    write_json,
    write_tensors,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with whole_file(path) as part:
        part.write_text("half")
        assert not path.exists()
        part.write_text("whole")
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_what_was_there_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as part:
        part.write_text("after")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    with whole_file(tmp_path / "inside" / "kept.txt") as part:
        left = part.with_name(part.name.replace("kept", "other"))
        left.write_text("half")
    remove_parts(tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["kept.txt"]


@given(JSON)
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}])
def test_json_that_others_cannot_read_is_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, value)
    assert read_json(path) == 1


@pytest.mark.parametrize("text", [None, "", "{", "\0"])
def test_what_is_not_json_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "value.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PenjingError, match=r"value\.json"):
        read_json(path)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4, 5)])
def test_tensors_come_back(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.rand(shape).mul(100).to(dtype)
    write_tensors(tmp_path / "t.safetensors", {"t": tensor}, {"epoch": 3, "names": ["å", None]})
    tensors, about = read_tensors(tmp_path / "t.safetensors")
    assert tensors["t"].dtype == dtype
    assert torch.equal(tensors["t"], tensor)
    assert about == {"epoch": 3, "names": ["å", None]}


def test_tensors_of_any_layout_come_back(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    given = {"last": x.to(memory_format=torch.channels_last), "transposed": x.mT, "part": x[:, 1], "all": x, "again": x}
    write_tensors(tmp_path / "t.safetensors", given)
    tensors, about = read_tensors(tmp_path / "t.safetensors")
    assert tensors.keys() == given.keys()
    assert all(torch.equal(tensors[name], value) for name, value in given.items())
    assert about == {}


def test_tensors_of_another_program_come_without_a_note(tmp_path: Path) -> None:
    save_file({"t": torch.ones(2)}, tmp_path / "t.safetensors")
    assert read_tensors(tmp_path / "t.safetensors")[1] == {}


@pytest.mark.parametrize("note", ["weights of my network", "3", "[]"])
def test_a_note_of_another_program_is_passed_over(tmp_path: Path, note: str) -> None:
    save_file({"t": torch.ones(2)}, tmp_path / "t.safetensors", metadata={"about": note})
    tensors, about = read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(tensors["t"], torch.ones(2))
    assert about == {}


@pytest.mark.parametrize("content", [None, b"", b"hello", b"\xff" * 100])
def test_what_is_not_safetensors_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "t.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PenjingError, match=r"t\.safetensors"):
        read_tensors(path)


def test_a_folder_is_not_safetensors(tmp_path: Path) -> None:
    with pytest.raises(PenjingError, match="cannot read tensors"):
        read_tensors(tmp_path)


def test_a_cut_file_is_not_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"t": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PenjingError, match=r"t\.safetensors"):
        read_tensors(path)


@given(st.binary(max_size=1000))
def test_digest_is_that_of_the_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(content)
    assert digest(path) == hashlib.sha256(content).hexdigest()


def test_weights_that_torch_saved_are_told_how_to_become_safetensors(tmp_path: Path) -> None:
    torch.save({"t": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(PenjingError, match=r"give a \.safetensors file, which") as told:
        read_tensors(tmp_path / "w.pt")
    line = str(told.value).rpartition("it: ")[2]
    exec(line.replace('"w.', f'"{tmp_path}/w.'), {"save_file": save_file, "torch": torch})  # the very line that is printed
    assert torch.equal(read_tensors(tmp_path / "w.safetensors")[0]["t"], torch.ones(2))
    with pytest.raises(PenjingError, match=r"give a \.safetensors file$"):
        read_tensors(tmp_path / "absent.pt")


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for place in ("file/a.json", "folder"):
        with pytest.raises(PenjingError, match=f"cannot write .*{place}.*can be written to"):
            write_json(tmp_path / place, 1)
        with pytest.raises(PenjingError, match=f"cannot write .*{place}"):
            write_tensors(tmp_path / place, {"a": torch.zeros(1)})
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}


def test_files_are_as_open_as_the_user_wants_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", 1)
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_one_process_works_in_a_folder_at_a_time(tmp_path: Path) -> None:
    held = f"from pathlib import Path; from penjing.files import alone\nwith alone(Path({str(tmp_path)!r})): pass"
    with alone(tmp_path):
        told = subprocess.run([sys.executable, "-c", held], capture_output=True, text=True, check=False)
        assert "another process is at work" in told.stderr
    assert subprocess.run([sys.executable, "-c", held], check=False).returncode == 0


def test_json_has_no_word_for_infinity() -> None:
    assert finite({"a": [1.0, float("inf")], "b": (float("nan"), "c")}) == {"a": [1.0, None], "b": [None, "c"]}


def test_what_cannot_be_written_is_told_before_the_work_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for place in ("file/a.json", "file/below/a.json", "folder"):
        with pytest.raises(PenjingError, match=f"cannot write .*{place}.*can be written to"):
            check_writable(tmp_path / place)
    check_writable(tmp_path / "new" / "a.json")
    check_writable(tmp_path / "file")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}
