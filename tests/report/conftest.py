"""A result as a run writes it, for every test of the report; each test has its own copy to change."""

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def result() -> dict[str, Any]:
    example: dict[str, Any] = json.loads((Path(__file__).parent / "example.json").read_text(encoding="utf-8"))
    return example


@pytest.fixture
def denoiser(result: dict[str, Any]) -> dict[str, Any]:
    """A net whose metric is not a share, and that knows no classes."""
    result["accuracy"] |= {"metric": "PSNR", "before": 31.274, "after": 30.964, "drop": 0.31, "low": 0.27, "high": 0.352}
    result["accuracy"] |= {"samples": 68, "test": "paired bootstrap", "percent": False, "unit": "dB", "worse": 66, "better": 2}
    result["control"] |= {"score": 31.301, "drop": -0.027, "versus": -0.337}
    result["budget"] |= {"max_drop": 0.5}
    result["verdict"] |= {"sentence": "Holds: 0.31 dB of PSNR lost."}
    result["original_candidate"]["score"] = 31.3
    for candidate in result["candidates"]:
        if candidate["score"] is not None:
            candidate |= {"score": 31.3 - 10 * candidate["drop"], "drop": 10 * candidate["drop"], "note": ""}
    general = result["generalization"]
    general |= {"per_class": [], "flips": None, "calibration": None, "forgotten": [], "warnings": []}
    general["corruptions"] = [
        row | {"before": 29 - row["severity"], "after": 28.5 - row["severity"]} for row in general["corruptions"]
    ]
    result["stages"] = [stage | {"gave": ""} for stage in result["stages"]]
    return result
