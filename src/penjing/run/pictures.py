"""The images that the small network forgot, as pictures a page can show, with the names of their classes."""

import base64
import io
import re
from typing import Any

import torch
from torch import Tensor

from penjing.task import Task, as_tuple


def forgotten(found: dict[str, Any], task: Task) -> dict[str, Any]:
    """What ``generalization`` found, with labels as words where the task has ``classes``, and images where these are images."""
    names = () if task.classes is None else tuple(task.classes)

    def word(label: int) -> str:
        return str(names[label]) if 0 <= label < len(names) else str(label)

    per_class = [{**row, "label": word(row["class"])} for row in found["per_class"] or ()]
    images = _images(task, [row["index"] for row in found["forgotten"] or ()])
    rows = [
        {**row, **{k: word(row[k]) for k in ("label", "now")}, "image": images.get(row["index"])}
        for row in found["forgotten"] or ()
    ]
    warnings = [re.sub(r"^Class (\d+) ", lambda m: f"Class {word(int(m[1]))} ", said) for said in found["warnings"]]
    return {**found, "per_class": per_class, "forgotten": rows, "warnings": warnings}


def _images(task: Task, wanted: list[int]) -> dict[int, str]:
    """The first inputs of some samples of the confirm split as data URLs; nothing where they are not images."""
    found: dict[int, str] = {}
    seen = 0
    for inputs, _ in task.confirm:
        images = as_tuple(inputs)[0]
        for index in wanted:
            if seen <= index < seen + len(images) and (url := _url(images[index - seen])):
                found[index] = url
        seen += len(images)
    return found


def _url(image: Tensor) -> str | None:
    """An image ``(1 or 3, H, W)`` of any scale as a PNG; None for anything else."""
    from PIL import Image

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        return None
    low, high = image.min(), image.max()
    levels = ((image - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    pixels = levels.permute(1, 2, 0).squeeze(2).contiguous().numpy()
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, format="PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
