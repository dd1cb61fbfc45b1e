"""What was measured on this machine, kept outside of any run: measured once, every later run decides by the same numbers.

That is what makes runs repeatable although clocks are not: a second run, or one that was killed and started again, finds the
times of the first.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penjing.errors import PenjingError
from penjing.files import locked, read_json, write_json

FOLDER = "PENJING_CACHE"  # the variable that says where the ledger lies


class Ledger:
    """Shelves of numbers in a folder, each shelf one JSON file for what was measured under the same conditions."""

    def __init__(self, folder: Path | None = None) -> None:
        """Open the ledger in ``folder``; by default in ``$PENJING_CACHE``, or ``~/.cache/penjing``."""
        self.folder = folder or Path(os.environ.get(FOLDER) or Path.home() / ".cache" / "penjing")

    def read(self, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Everything on a shelf, by name; empty where nothing was measured, or where the file is damaged."""
        path = self._path(conditions)
        try:
            held = read_json(path) if path.is_file() else {}
        except PenjingError:
            return {}
        entries = held.get("entries", {}) if isinstance(held, dict) else {}
        return entries if isinstance(entries, dict) else {}

    def write(self, conditions: Mapping[str, Any], entries: Mapping[str, Any], *, fresh: bool = False) -> dict[str, Any]:
        """Add entries to a shelf; what is there under the same name stays, so that all runs see the first number.

        Where the folder cannot be written to, this is a warning, and they are known to the caller alone.

        Args:
            fresh: Whether what is there is replaced all the same.

        Returns:
            Everything on the shelf.
        """
        try:
            with locked(self.folder):  # another run may write to the same shelf
                held = self.read(conditions)
                merged = {**held, **entries} if fresh else {**entries, **held}
                write_json(self._path(conditions), {"conditions": dict(conditions), "entries": merged})
            return merged
        except PenjingError as e:  # no reason to lose what was measured
            warnings.warn(f"times are not kept for later runs: {e}, named by {FOLDER}", stacklevel=2)
        held = self.read(conditions)
        return {**held, **entries} if fresh else {**entries, **held}

    def _path(self, conditions: Mapping[str, Any]) -> Path:
        text = json.dumps(conditions, sort_keys=True, default=str)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
