"""What a training was like, epoch by epoch, for other programs: a CSV file and TensorBoard's events."""

import csv
from pathlib import Path
from types import TracebackType
from typing import Any

from penjing import ranks
from penjing.files import whole_file

FIELDS = ("epoch", "loss", "metric", "lr", "seconds")


class Logs:
    """``log.csv`` in a folder, whole at any time, and events where tensorboardX is installed; nothing without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder if ranks.is_writer() else None
        self.events = _events(self.folder)

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if self.events is not None:
            self.events.close()

    def write(self, history: list[dict[str, Any]]) -> None:
        """Tell of the last epoch of ``history``; the file holds all of them, whatever was there before."""
        if self.folder is None:
            return
        with whole_file(self.folder / "log.csv") as part, part.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, FIELDS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(history)
        if self.events is not None:
            last = history[-1]
            for name in FIELDS[1:]:
                if last[name] is not None:
                    self.events.add_scalar(f"training/{name}", last[name], last["epoch"])
            self.events.flush()


def _events(folder: Path | None) -> Any:
    if folder is None:
        return None
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    # What a run that was interrupted wrote is told again from the first epoch on.
    return SummaryWriter(str(folder), purge_step=0)
