"""The folder of a finished run, without the run."""

import json
from pathlib import Path
from typing import Any

import penjing as pj
from penjing.files import digest, write_json

REPORTED = Path(__file__).parents[1] / "report/example.json"


def finished(folder: Path, parts: dict[str, Any]) -> Path:
    """A folder as a run leaves it, with the example's numbers and the given parts of them changed."""
    folder.mkdir(parents=True)
    (folder / "net.onnx").write_bytes(b"a network")
    pj.ChannelPlan({}).save(folder / "plan.json")
    data = json.loads(REPORTED.read_text())
    data["files"] |= {"inputs": [[1, 1, 28, 28]], "dynamic": True, "digest": digest(folder / "net.onnx")}
    write_json(folder / "result.json", data | {k: data[k] | v if isinstance(v, dict) else v for k, v in parts.items()})
    return folder
