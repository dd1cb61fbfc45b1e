"""What was decided, as plain frozen data: it can be printed, saved, replayed and tested without the model."""

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penjing.errors import PlanError
from penjing.files import write_json

Keep = Mapping[str, Mapping[int, tuple[int, ...]]]


@dataclass(frozen=True)
class ChannelPlan:
    """Which indices of which parameters and buffers stay: ``keep[name][dim]`` is what ``index_select`` would take.

    ``blocks`` are residual blocks that go as a whole, before anything else is cut.
    """

    keep: Keep
    blocks: tuple[str, ...] = ()

    def then(self, later: "ChannelPlan") -> "ChannelPlan":
        """One plan for this one followed by ``later``, which was made for the smaller network."""
        keep = {name: dict(dims) for name, dims in self.keep.items()}
        for name, dims in later.keep.items():
            for dim, index in dims.items():
                before = keep.setdefault(name, {}).get(dim)
                keep[name][dim] = index if before is None else tuple(before[i] for i in index)
        return ChannelPlan(keep, self.blocks + tuple(b for b in later.blocks if b not in self.blocks))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        keep = {name: {str(d): list(index) for d, index in dims.items()} for name, dims in self.keep.items()}
        return {"keep": keep, "blocks": list(self.blocks)}

    @classmethod
    def from_json(cls, value: Any) -> "ChannelPlan":
        """Read what ``to_json`` gave.

        Raises:
            PlanError: The value is something else.
        """
        try:
            keep = {
                str(name): {int(d): tuple(operator.index(i) for i in index) for d, index in dims.items()}
                for name, dims in value["keep"].items()
            }
            blocks = tuple(str(b) for b in value.get("blocks", ()))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise PlanError(f"this is not a channel plan ({e!r}); give what ChannelPlan.save wrote") from e
        return cls(keep, blocks)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "ChannelPlan":
        """Read a plan.

        Raises:
            PlanError: The file is missing or holds something else.
        """
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise PlanError(f"cannot read a channel plan from {path}: {e}") from e
        return cls.from_json(value)
