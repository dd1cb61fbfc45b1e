"""What could be cut from a model, what could not, and why; nothing is changed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penjing.graph import Channels, Group, as_inputs, capture, check_weights, find_channels
from penjing.measure.footprint import Layer, layers, parameters

ROOM = 72  # characters that the names of layers may take in a line
LINES = 16  # of a table, before it says that there are more
LEAVES = (".weight", ".bias", ".running_mean", ".running_var")  # what a layer's own tensors are called


@dataclass(frozen=True)
class Inspection:
    """A reading of a model. As text it is a summary of some lines; ``listing`` gives every group and every fixed dimension.

    Attributes:
        channels: Groups of channels that live or die together, and the dimensions that must stay, with the reason.
        layers: Convolutions and linear layers, in the order they run.
        parameters: How many numbers are trained.
        macs: Multiply-accumulates for one sample.
        dynamic: Whether any batch size will do.
        cuttable: How many of the parameters belong to a channel that can be cut.
    """

    channels: Channels
    layers: tuple[Layer, ...]
    parameters: int
    macs: int
    dynamic: bool
    cuttable: int

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that can be cut: of one channel none may go."""
        return tuple(g for g in self.channels.groups if g.channels > 1)

    @property
    def reasons(self) -> dict[str, tuple[str, ...]]:
        """``{reason: layers}``: what must stay, and why; the reasons that keep most layers first."""
        found: dict[str, dict[str, None]] = {}
        for (name, _), why in self.channels.fixed.items():
            found.setdefault(why, {})[_layer(name)] = None
        return {why: tuple(found[why]) for why in sorted(found, key=lambda w: (-len(found[w]), w))}

    def __str__(self) -> str:
        groups, share = self.groups, self.cuttable / max(1, self.parameters)
        lines = [
            f"{self.parameters:,} parameters, {self.macs:,} multiply-accumulates a sample, {len(self.layers)} layers, "
            f"{'any batch size' if self.dynamic else 'the batch size of the example only'}",
            "",
            f"{len(groups)} groups of channels can be cut; {share:.1%} of the parameters belong to them",
        ]
        lines += _columns(
            [(f"{len(alike)} x" if len(alike) > 1 else "", str(alike[0].channels), _notes(alike[0]), _where(alike))
             for alike in _alike(groups)]
        )  # fmt: skip
        reasons = self.reasons
        lines += ["", f"{len(self.channels.fixed)} dimensions of weights must stay"]
        lines += _columns([(str(len(names)), "layers" if len(names) > 1 else "layer", f"{why}:", _few(names))
                           for why, names in reasons.items()])  # fmt: skip
        return "\n".join(lines)

    def listing(self) -> str:
        """Every group, every place that it is cut from, and every fixed dimension, a line each."""
        lines = []
        for group in self.groups:
            lines.append(f"{group.channels} channels of {group.name}{_notes(group) and ', '}{_notes(group)}")
            lines += [f"  cut from {name} dim {dim}, {each} each" for name, dim, each in group.places]
        lines += [f"fixed: {name} dim {dim}: {why}" for (name, dim), why in sorted(self.channels.fixed.items())]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, except the indices of the channels."""
        return {
            "parameters": self.parameters,
            "cuttable": self.cuttable,
            "macs": self.macs,
            "dynamic": self.dynamic,
            "layers": [
                {"name": x.name, "kind": x.kind, "widths": list(x.widths), "groups": x.groups, "macs": x.macs}
                for x in self.layers
            ],
            "groups": [
                {
                    "name": g.name,
                    "channels": g.channels,
                    "blocks": g.equal,
                    "summed": g.summed,
                    "places": [{"name": name, "dim": dim, "each": each} for name, dim, each in g.places],
                }
                for g in self.groups
            ],
            "fixed": [{"name": n, "dim": d, "reason": why} for (n, d), why in sorted(self.channels.fixed.items())],
            "reasons": {why: list(names) for why, names in self.reasons.items()},
        }


def inspect(model: nn.Module, example: Tensor | Sequence[Tensor]) -> Inspection:
    """Read a model.

    Args:
        example: Inputs as the model takes them; only their shapes matter.

    Raises:
        ModelError: The model cannot be read, or its weights are not finite.
    """
    check_weights(model)
    graph = capture(model, as_inputs(example))
    found, channels = tuple(layers(graph)), find_channels(graph)
    cost = sum(x.macs for x in found)
    return Inspection(channels, found, parameters(model), cost, graph.dynamic, _cuttable(model, channels))


def _cuttable(model: nn.Module, channels: Channels) -> int:
    """How many numbers of the parameters lie in a channel of some group."""
    held = dict(model.named_parameters(remove_duplicate=False))
    free: dict[int, dict[int, Tensor]] = {}  # by identity, since a shared parameter has several names
    for group in channels.groups:
        for axis in group.axes if group.channels > 1 else ():
            if axis.name in held:
                parameter = held[axis.name]
                masks = free.setdefault(id(parameter), {})
                masks.setdefault(axis.dim, torch.zeros(parameter.shape[axis.dim], dtype=torch.bool))[axis.index.flatten()] = (
                    True
                )
    total = 0
    for parameter in model.parameters():
        masks = free.get(id(parameter), {})
        stays = [int((~masks[d]).sum()) if d in masks else n for d, n in enumerate(parameter.shape)]
        total += parameter.numel() - math.prod(stays)
    return total


def _alike(groups: Iterable[Group]) -> list[list[Group]]:
    """Groups that read alike in one line, in order of the first of them."""
    found: dict[tuple[int, str], list[Group]] = {}
    for group in groups:
        found.setdefault((group.channels, _notes(group)), []).append(group)
    return list(found.values())


def _notes(group: Group) -> str:
    blocks = "" if group.blocks is None else f"in {len(group.blocks)} blocks"
    return ", ".join(note for note in (blocks, "summed" if group.summed else "") if note)


def _where(alike: Sequence[Group]) -> str:
    """The layers that one group is cut from; of several groups the layer that names each."""
    if len(alike) > 1:
        return _few([_layer(g.name) for g in alike])
    return "cut from " + _few(tuple(dict.fromkeys(_layer(a.name) for a in alike[0].axes)))


def _layer(name: str) -> str:
    """The layer that a tensor belongs to; the tensor itself where it belongs to none."""
    for leaf in LEAVES:
        head, found, rest = name.rpartition(leaf)
        if found and (not rest or rest.startswith("[")):
            return head + rest
    return name


def _few(names: Sequence[str]) -> str:
    """As many of the names as have room, and how many more there are."""
    shown = 1
    while shown < len(names) and len(", ".join(names[: shown + 1])) <= ROOM:
        shown += 1
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines of aligned text, numbers to the right; what is too many is counted."""
    shown = rows[:LINES]
    widths = [max((len(row[i]) for row in shown), default=0) for i in range(len(rows[0]))] if rows else []
    lines = []
    for row in shown:
        cells = [
            c.rjust(w) if i < 2 and c[:1].isdigit() else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(c for c, w in zip(cells, widths, strict=True) if w).rstrip())
    if len(rows) > LINES:
        lines.append(f"  and {len(rows) - LINES} lines more, all of them in listing()")
    return lines
