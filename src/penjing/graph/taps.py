"""Taps: what modules inside a network give, by their paths, together with the network's output."""

import copy
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from penjing.errors import ModelError
from penjing.graph.capture import as_inputs
from penjing.graph.kept import copied

Keep = Callable[[str, Any], None]  # what is called with the path of a module and its output


class Taps:
    """``taps(*inputs)`` gives the output and ``{path: what the module gave}``; gradients flow through both.

    Args:
        model: The network whose modules are tapped. Of a captured one (``quantize`` gives such), which does not run modules,
            the values are those of the last node of each. Whoever changes a value in place changes a copy.
        paths: As in ``model.named_modules()``.
        call: What is called in place of ``model``, e.g. a wrapper that calls it.

    Raises:
        ModelError: There is no such module; names the nearest. Or, when called, a module gives no tensor or is not run.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str], call: Callable[..., Any] | None = None) -> None:
        self.paths = tuple(dict.fromkeys(paths))
        self.call: Callable[..., Any] = call or model
        self.values: dict[str, Any] = {}
        self.handles = _watch(model, self.paths, self.values.__setitem__)

    def __call__(self, *inputs: Any) -> tuple[Any, dict[str, Tensor]]:
        self.values.clear()
        output = self.call(*inputs)
        features: dict[str, Tensor] = {}
        for path in self.paths:
            value = self.values.get(path)
            if path not in self.values:
                raise ModelError(
                    f"the module {path!r} is not run by the network's forward, so it shows nothing; name one that is"
                )
            if not isinstance(value, Tensor):
                raise ModelError(f"the module {path!r} gives {type(value).__name__}, not a tensor; name one inside it")
            features[path] = value
        self.values.clear()  # else the graph of a batch would stay until the next
        return output, features

    def close(self) -> None:
        """Take the taps out again."""
        while self.handles:
            self.handles.pop().remove()


def last_map(model: nn.Module, example: Tensor | Sequence[Tensor]) -> str:
    """Path of the module whose output is the last that still has positions, i.e. a map before it is pooled.

    Of modules that give the same map, the outermost.

    Args:
        example: Inputs as the network takes them.

    Raises:
        ModelError: There is none.
    """
    net, found = copy.deepcopy(model).eval(), list[str]()

    def keep(path: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim > 2 and output[0, 0].numel() > 1:
            found.append(path)

    paths = last_nodes(net.graph) if isinstance(net, fx.GraphModule) else [path for path, _ in net.named_modules() if path]
    _watch(net, paths, keep)
    with torch.no_grad():
        net(*as_inputs(example))
    if not found:
        raise ModelError("no module of the network gives a map (N, C, positions ...); name the module to compare")
    return found[-1]


def last_nodes(graph: fx.Graph) -> dict[str, fx.Node]:
    """The last node of every module that a captured graph was made of, by the module's path; a module before those inside."""
    found: dict[str, fx.Node] = {}
    for node in graph.nodes:
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            if path:
                found[str(path).removeprefix("L['self'].")] = node
    return found


def _watch(model: nn.Module, paths: Iterable[str], keep: Keep) -> "list[RemovableHandle | _Nodes]":
    """Have every module under ``paths`` hand its path and its output to ``keep`` whenever it is run."""
    modules, nodes = dict(model.named_modules()), dict[str, fx.Node]()
    if isinstance(model, fx.GraphModule):  # its modules may be there and yet not be run: their parameters are read by nodes
        nodes = last_nodes(model.graph)
    for path in paths:
        if path not in modules and path not in nodes:
            raise ModelError(_no_module(path, nodes or modules))
    handles: list[RemovableHandle | _Nodes] = [
        modules[path].register_forward_hook(_hook(path, keep)) for path in paths if path not in nodes
    ]
    if isinstance(model, fx.GraphModule) and any(path in nodes for path in paths):
        handles.append(_Nodes(model, {path: nodes[path] for path in paths if path in nodes}, keep))
    return handles


def _hook(path: str, keep: Keep) -> Callable[..., Tensor | None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
        keep(path, output)
        return output.clone() if isinstance(output, Tensor) else None  # an in-place ReLU may come next

    return hook


class _Nodes:
    """Taps of a captured network: nodes that hand their value on while the graph runs, until ``remove``."""

    def __init__(self, module: fx.GraphModule, nodes: Mapping[str, fx.Node], keep: Keep) -> None:
        self.module, self.whole = module, module.graph
        tapped, places = copied(module.graph)
        for path, node in nodes.items():
            with tapped.inserting_after(places[node]):  # before those inserted so far: a module after those inside
                tapped.call_function(_Shown(path, keep), (places[node],))
        module.graph = tapped

    def remove(self) -> None:
        self.module.graph = self.whole


class _Shown:
    """A function for the graph: hands the value to ``keep`` under its path."""

    def __init__(self, path: str, keep: Keep) -> None:
        self.path, self.keep = path, keep
        self.__name__ = "keep_" + path.replace(".", "_")
        self.__module__ = __name__

    def __call__(self, value: Any) -> None:
        self.keep(self.path, value)


def _no_module(path: str, there: Iterable[str]) -> str:
    names = [name for name in there if name]
    near = difflib.get_close_matches(path, names, n=3, cutoff=0.4) or names[:8]
    return f"the network has no module {path!r}; nearest: {', '.join(near) or 'it has none'}"
