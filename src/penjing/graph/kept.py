"""Networks of one structure are read once: the graph that is there gets the weights of the next one.

Reading is what takes most of the time of looking at small networks, and one run reads the same network many times: to cut, to
prove, to repair, to count. A structure is all that tracing sees, down to the functions that modules hold; a network that holds
something whose state cannot be told is read anew every time.
"""

import copy
import dataclasses
import enum
import functools
import operator
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, fx, nn

from penjing.graph.quiet import without_torchs_own_noise

MOST = 32  # graphs that are kept, the last ones; without weights
_VALUES = {  # exactly these: what is derived from them may hold more
    type(None), bool, int, float, complex, str, bytes, types.BuiltinFunctionType,
    torch.dtype, torch.device, torch.Size, torch.memory_format, torch.layout,
}  # fmt: skip
_HELD_APART = ("_parameters", "_buffers", "_modules")


@dataclasses.dataclass(frozen=True)
class _Kept:
    graph: fx.Graph
    constants: dict[str, Tensor]
    sizes: tuple[str, ...]  # of what goes in, as they were read

    @property
    def whole(self) -> bool:
        """Whether its free sizes are still free: who asks a symbolic size for its number fixes it, in all copies."""
        return _sizes(self.graph) == self.sizes

    def module(self, model: nn.Module) -> fx.GraphModule:
        """The graph with a model's parameters and buffers."""
        tensors = {n: t.clone() for n, t in self.constants.items()} | own_tensors(model)
        return fx.GraphModule(tensors, copied(self.graph)[0]).eval()


_kept: ContextVar["OrderedDict[Hashable, _Kept] | None"] = ContextVar("kept", default=None)


@contextmanager
def reading_once() -> Iterator[None]:
    """Within, ``capture`` reads networks of one structure once. Code that ``forward`` calls is not to be changed meanwhile."""
    token = _kept.set(OrderedDict()) if _kept.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _kept.reset(token)


def once(model: nn.Module, inputs: tuple[Tensor, ...], read: Callable[[], fx.GraphModule]) -> fx.GraphModule:
    """What ``read`` gives, or what it gave for a model of the same structure, with this one's weights."""
    kept = _kept.get()
    key = None if kept is None else structure(model, inputs)
    if kept is None or key is None:
        return read()
    if key in kept and kept[key].whole:
        kept.move_to_end(key)
        return kept[key].module(model)
    module = read()
    found = {str(n.target): operator.attrgetter(str(n.target))(module) for n in module.graph.nodes if n.op == "get_attr"}
    if all(isinstance(value, Tensor) for value in found.values()):  # else it has graphs within
        own = own_tensors(model)
        constants = {n: t.clone() for n, t in found.items() if n not in own}
        kept[key] = _Kept(copied(module.graph)[0], constants, _sizes(module.graph))
        while len(kept) > MOST:
            kept.popitem(last=False)
    return module


def structure(model: nn.Module, inputs: tuple[Tensor, ...]) -> Hashable | None:
    """All that decides what a model's graph is, but the values of its weights; None if that cannot be told."""
    seen: dict[int, int] = {}  # what is shared, by the order in which it comes

    def one(name: str, module: nn.Module) -> Hashable:
        rest = {k: v for k, v in vars(module).items() if k not in _HELD_APART}
        tensors = [(k, t) for held in (module._parameters, module._buffers) for k, t in held.items()]
        if any(t is not None and nn.parameter.is_lazy(t) for _, t in tensors):
            raise _CannotBeTold
        told = tuple((k, None if t is None else (seen.setdefault(id(t), len(seen)), *_kind(t))) for k, t in tensors)
        return name, seen.setdefault(id(module), len(seen)), type(module), type(module).forward, _value(rest), told

    try:
        modules = tuple(one(name, module) for name, module in model.named_modules(remove_duplicate=False))
    except (_CannotBeTold, RecursionError, ValueError):  # the last two: what holds itself, and a closure not filled yet
        return None
    return modules, tuple(map(_kind, inputs)), torch.get_default_dtype(), torch.is_autocast_enabled("cpu")


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers, also those that its state dict leaves out; what is shared, under each of its names."""
    return {name: t for held in (model.named_parameters, model.named_buffers) for name, t in held(remove_duplicate=False)}


def copied(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of a graph, and which of its nodes is whose copy."""
    with without_torchs_own_noise():
        new = copy.deepcopy(graph)
    return new, dict(zip(graph.nodes, new.nodes, strict=True))


class _CannotBeTold(Exception):
    """Something has a state that is not seen from outside."""


def _kind(x: Tensor) -> tuple[Hashable, ...]:
    return type(x), x.shape, x.stride(), x.dtype, x.device, x.requires_grad


def _value(value: Any) -> Hashable:
    """A value that is equal for equal ones only, and stays as it is if they are changed."""
    if type(value) in _VALUES or isinstance(value, enum.Enum | type):
        return type(value), value
    if isinstance(value, dict | tuple | list | set | frozenset):
        items = value.items() if isinstance(value, dict) else value
        return type(value), tuple(map(_value, items)), _value(vars(value)) if getattr(value, "__dict__", None) else None
    if isinstance(value, types.FunctionType):
        return value, tuple(_value(cell.cell_contents) for cell in value.__closure__ or ())
    if isinstance(value, functools.partial):
        return functools.partial, _value(value.func), _value(value.args), _value(value.keywords)
    if dataclasses.is_dataclass(value):
        return type(value), _value(vars(value))
    raise _CannotBeTold


def _sizes(graph: fx.Graph) -> tuple[str, ...]:
    return tuple(str(list(n.meta["val"].shape)) for n in graph.nodes if n.op == "placeholder" and "val" in n.meta)
