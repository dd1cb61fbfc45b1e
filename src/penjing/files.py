"""Files that are there whole or not at all: every file we write appears under its name only when it is complete."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from penjing.errors import PenjingError, RecipeError

PART = ".part"  # what names of unfinished files end with
PLACE = "give a file in a folder that can be written to"
LOCK = ".lock"  # what is locked by the process that works in a folder
SHOWN = 3  # names in an error
PATIENCE = 10.0  # seconds that a process waits for another that writes the same file
TORCHS = (".pt", ".pth", ".bin", ".ckpt")  # what names of files end with that torch.save wrote


@contextmanager
def whole_file(path: Path, error: type[PenjingError] = PenjingError) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it there when the block ends well, remove it when it does not.

    Raises:
        PenjingError: It cannot be written: a file where a folder should be, no permission, no room. ``error``, where given.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        os.close(handle)
        part = Path(name)
        try:
            yield part
            with part.open("rb") as f:
                os.fsync(f.fileno())
            part.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner reads
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as e:
        why = e.strerror if isinstance(e, OSError) and e.strerror else e
        raise error(f"cannot write {path}: {why}; {PLACE} and has room") from e


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before the work is done that would go into it; nothing is made.

    Raises:
        PenjingError: A folder has its name, a file is where a folder should be, or there is no permission.
    """
    there = next(p for p in path.absolute().parents if p.exists())
    why = ""
    if path.is_dir():
        why = "Is a directory"
    elif not there.is_dir():
        why = f"{there} is no directory"
    elif not os.access(there, os.W_OK):
        why = "Permission denied"
    if why:
        raise PenjingError(f"cannot write {path}: {why}; {PLACE}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def finite(value: Any) -> Any:
    """JSON values without what is infinite or not a number, for which JSON has no word: None stands there."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN and infinity are refused, since no other reader takes them."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """What ``write_json`` wrote.

    Raises:
        PenjingError: The file is not there or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise PenjingError(f"cannot read {path}: {e}") from e


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> None:
    """Write tensors as safetensors, with ``about`` as JSON in the file's header, so that both appear together."""
    held = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    with whole_file(path) as part:
        save_file(held, part, metadata={"about": json.dumps(about or {})})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``write_tensors`` wrote: the tensors and ``about`` (empty when another program wrote the file).

    Raises:
        PenjingError: The file is not there or is not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as f:
            names = list(f.keys())
            return {name: f.get_tensor(name) for name in names}, _about((f.metadata() or {}).get("about", ""))
    except (OSError, SafetensorError) as e:
        raise PenjingError(f"cannot read tensors from {path}: {e}; give a .safetensors file{_of_torchs(path)}") from e


def misfits(held: Mapping[str, Tensor], own: Mapping[str, Tensor], network: str) -> str:
    """Where a file's tensors do not fit a network's, the first of them by name; nothing where all do.

    Args:
        network: What it is called.
    """
    shapes = [
        f"{n} is {tuple(held[n].shape)} in the file and {tuple(t.shape)} in {network}"
        for n, t in own.items()
        if n in held and held[n].shape != t.shape
    ]
    problems = {
        "the file lacks ": [n for n in own if n not in held],
        f"{network} lacks ": [n for n in held if n not in own],
        "": shapes,
    }
    return "; ".join(said + _first(names) for said, names in problems.items() if names)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _about(note: str) -> dict[str, Any]:
    """Our own note; of another program's, which may be any text, nothing."""
    try:
        found = json.loads(note)
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _of_torchs(path: Path) -> str:
    """How a file that torch saved becomes one of safetensors; nothing of other files."""
    if not path.is_file() or path.suffix not in TORCHS:
        return ""
    made = path.with_suffix(".safetensors").name
    load = f'torch.load("{path.name}", weights_only='
    whole = f"  # of a whole module: {load}False).state_dict()"
    return f', which safetensors.torch makes of it: save_file({load}True), "{made}"){whole}'


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Work in a folder that no other process works in meanwhile.

    Raises:
        RecipeError: One does.
    """
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as e:
        raise RecipeError(f"another process is at work in {folder}; wait until it has ended, or give another folder") from e
    except (OSError, NotImplementedError):
        pass  # files cannot be locked here; where none can be written, that is told by who writes
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from a folder while a file in it is read and written; where files cannot be locked, hope."""
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
    except (OSError, NotImplementedError, Timeout):
        pass
    try:
        yield
    finally:
        lock.release()


def is_only_locked(folder: Path) -> bool:
    """Whether a folder holds nothing but the lock of a process that works in it or did."""
    return folder.is_dir() and all(p.name == LOCK for p in folder.iterdir())


def remove_parts(folder: Path) -> None:
    """Remove what a killed process left unfinished."""
    for part in list(folder.rglob(f".*{PART}")):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def is_part(path: Path) -> bool:
    """Whether a killed process left this file unfinished."""
    return path.name.startswith(".") and path.suffix == PART


def digest_of(held: Mapping[str, Tensor | bytes], told: str = "") -> str:
    """SHA-256 of names and values, their types and shapes, and of what else is told, in hexadecimal."""
    sha = hashlib.sha256(told.encode())
    for name, value in held.items():
        kind = "" if isinstance(value, bytes) else f"{value.dtype}{tuple(value.shape)}"
        sha.update(f"{name} {kind} ".encode() + (value if isinstance(value, bytes) else _bytes(value)))
    return sha.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
