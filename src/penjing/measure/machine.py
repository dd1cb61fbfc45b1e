"""The machine that a number was taken on."""

import os
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import Any

import torch

from penjing.processor import FEATURES, processor

PACKAGES = ("torch", "onnxruntime", "openvino", "onnx", "numpy")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Processor, cores, the vector features that int8 needs, system and versions."""
    name, features = processor()
    return {
        "cpu": name,
        "cores": cores(),
        "features": [f for f in FEATURES if f in features],
        "system": platform.system(),
        "python": platform.python_version(),
        **{p: _version(p) for p in PACKAGES},
    }


def version(package: str) -> str:
    """The version of a package; torch's says what it was built for, which its metadata may leave out.

    Raises:
        PackageNotFoundError: It is not installed.
    """
    return str(torch.__version__) if package == "torch" else package_version(package)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
