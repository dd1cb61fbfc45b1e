"""Read what a model computes, with ``torch.export``. The graph is a reading: the model is left alone."""

import builtins
import copy
import inspect
import re
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils._pytree import TreeSpec

from penjing.errors import ModelError, first_line
from penjing.graph.einsum import EINSUM, by_products
from penjing.graph.functional import make_functional, restore_norms
from penjing.graph.kept import once, own_tensors
from penjing.graph.quiet import without_torchs_own_noise

# Code that is not the user's: a line in it does not say what to mend.
_NOT_THEIRS = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
_STDLIB = sysconfig.get_path("stdlib")
_CURES = {  # words in torch's complaint -> what to do about it
    "data-dependent": "what is computed depends on values there; write it with torch.where, or take it out of forward",
    "numpy": "numpy cannot be read; write it in torch",
}


@dataclass(frozen=True)
class Graph:
    """What a model computes in eval mode.

    Attributes:
        module: Functional ``aten`` operations in order, as a trainable module with the model's parameter names.
        example: The inputs it was read with; a batch of 1 may have become one of 2, since torch takes a size of 1 as fixed.
        dynamic: Whether any batch size will do.
        constants: Tensors in ``module`` that are neither parameters nor buffers of the model.
        unread: Parameters of the model that take no part in eval mode, as those of heads for training.
    """

    module: fx.GraphModule
    example: tuple[Tensor, ...]
    dynamic: bool
    constants: frozenset[str] = frozenset()
    unread: tuple[str, ...] = ()


def as_inputs(example: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The example as a tuple of tensors.

    Raises:
        ModelError: It is something else.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example) if isinstance(example, Sequence) else ()
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise ModelError(f"example is {type(example).__name__}; give a tensor or a tuple of tensors, as the model takes them")
    for x in inputs:
        if not x.numel():
            raise ModelError(f"example has shape {tuple(x.shape)}, and so no values; give one sample at least")
    # torch.export takes one tensor that is given twice for one input.
    return tuple(x.clone() if any(x is y for y in inputs[:i]) else x for i, x in enumerate(inputs))


def repeated(example: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
    """The first sample of the inputs as a batch of so many; what is not batched as the first of them, such as a step, stays."""
    size = next((x.shape[:1] for x in example if x.ndim), None)
    return tuple(x[:1].repeat(batch, *[1] * (x.ndim - 1)) if x.shape[:1] == size else x for x in example)


def check_weights(model: nn.Module) -> None:
    """Refuse what is no network, and weights that are not there or not finite.

    Raises:
        ModelError: Some are not; names the first.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"model is {type(model).__name__}; give a torch.nn.Module")
    names = dict(model.named_parameters(remove_duplicate=False))
    strict = {n for n in model.state_dict() if n in names or n.endswith(("running_mean", "running_var"))}
    for name, value in model.state_dict().items():
        if nn.parameter.is_lazy(value):
            raise ModelError(f"{name} has no shape yet; run the model once on an example")
        if isinstance(value, Tensor) and value.is_meta:
            raise ModelError(f"{name} is on the meta device, without values; load the weights first")
        if isinstance(value, Tensor) and value.is_floating_point() and not _finite(value):
            if name not in strict and not value.isnan().any():
                continue  # what masks attention, say
            bad = int((~value.isfinite()).sum())
            raise ModelError(f"{bad} of {value.numel()} values of {name} are NaN or infinite; load sound weights")


def _finite(value: Tensor) -> bool:
    """Whether all values are finite; by the least and the largest, which takes no memory."""
    return not value.numel() or all(bool(end.isfinite()) for end in value.aminmax())


def capture(model: nn.Module, example: Tensor | Sequence[Tensor]) -> Graph:
    """Read ``model`` in eval mode, with any batch size if it can be.

    Raises:
        ModelError: ``torch.export`` cannot read it.
    """
    inputs = as_inputs(example)
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("the model is scripted or traced, and cannot be read; give the torch.nn.Module that it was made from")
    try:
        still = _not_in_place(copy.deepcopy(model).eval())
    except Exception as e:  # deepcopy raises whatever the parts of the model raise
        raise ModelError(f"{type(model).__name__} cannot be copied: {first_line(e)}") from e
    try:
        graph = _read(still, free_batch(inputs))
        if graph.dynamic or free_batch(inputs) is inputs:
            return graph
    except ModelError:
        if free_batch(inputs) is inputs:
            raise
    return _read(still, inputs)  # it wants the very batch that was given


def _not_in_place(model: nn.Module) -> nn.Module:
    """Layers that need not write into their inputs don't, so that the graph is functional as it is read."""
    for module in model.modules():
        if getattr(module, "inplace", None) is True:
            module.inplace = False  # type: ignore[assignment]
    return model


def free_batch(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs with a batch that torch does not take as fixed: of 2 where it is 1."""
    if {x.shape[0] for x in inputs if x.ndim} != {1}:
        return inputs
    return tuple(torch.cat([x, x]) if x.ndim else x for x in inputs)


def is_captured(model: nn.Module) -> TypeGuard[fx.GraphModule]:
    """Whether the network is a graph that ``capture`` read, or what became of one: its values are known."""
    if not isinstance(model, fx.GraphModule):
        return False
    return all("val" in n.meta for n in model.graph.nodes if n.op == "placeholder")


def takes_any_batch(module: fx.GraphModule) -> bool:
    """Whether a captured graph was read with a free batch size."""
    values = (n.meta["val"] for n in module.graph.nodes if n.op == "placeholder")
    batched = next((v for v in values if isinstance(v, Tensor) and v.ndim), None)
    return batched is not None and not is_concrete_int(batched.shape[0])


def _read(still: nn.Module, inputs: tuple[Tensor, ...]) -> Graph:
    module = once(still, inputs, lambda: _traced(still, inputs))
    read = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    own = own_tensors(still)
    used = {id(own[str(n.target)]) for n in module.graph.nodes if n.op == "get_attr" and n.users and n.target in own}
    unread = tuple(n for n, p in still.named_parameters(remove_duplicate=False) if id(p) not in used)
    return Graph(module, inputs, takes_any_batch(module), frozenset(read - own.keys()), unread)


def _traced(still: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    batch = next((x.shape[0] for x in inputs if x.ndim), None)  # a single number, as a time step, has none
    dims = tuple({0: torch.export.Dim.AUTO} if x.ndim and x.shape[0] == batch else {} for x in inputs)
    try:
        with torch.no_grad(), without_torchs_own_noise(), lengths_of_any_batch():
            program = torch.export.export(still, inputs, dynamic_shapes=_nested(still, dims), strict=False)
            module = _plain(program.module(check_guards=False))
            if any(n.target is EINSUM for n in module.graph.nodes):
                program = program.run_decompositions({EINSUM: by_products})
                module = _plain(program.module(check_guards=False))
                restore_norms(module)
            if not make_functional(module):
                module = _plain(program.run_decompositions({}).module(check_guards=False))
                restore_norms(module)
    except Exception as e:  # torch.export raises many types; the reason is in its first line
        shapes = [tuple(x.shape) for x in inputs]
        raise ModelError(
            f"{type(still).__name__} cannot be read with inputs of shape {shapes}: {first_line(e)}{_source(e)}{_cure(e)}"
        ) from e
    _check_sizes(module, still)
    _views_of_any_layout(module)
    return module


@contextmanager
def lengths_of_any_batch() -> Iterator[None]:
    """Let ``len(x)`` of a tensor be as free as ``x.shape[0]`` while the block runs; Python's own makes a number of it.

    Nothing else has another length for it.
    """
    length = builtins.len

    def free(x: Any) -> Any:
        return x.shape[0] if isinstance(x, Tensor) and x.ndim else length(x)

    with mock.patch.object(builtins, "len", free):
        yield


def _views_of_any_layout(module: fx.GraphModule) -> None:
    """``x.view(...)`` as ``x.reshape(...)``, which takes values that lie in memory as convolutions want them, too."""
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    module.recompile()


def _check_sizes(module: fx.GraphModule, still: nn.Module) -> None:
    """Refuse sizes that only the values of the inputs tell: there are no labels for such channels."""
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and any(isinstance(n, torch.SymInt) and not n.node.has_hint() for n in value.shape):
            places = re.findall(r'File "(.+?)", line (\d+), in .+\n\s*(.+)', node.meta.get("stack_trace") or "")
            theirs = [f", at {file}:{line}: {code}" for file, line, code in places if _is_theirs(file)]
            raise ModelError(
                f"{type(still).__name__} has a value whose size is data-dependent ({node.target})"
                f"{theirs[-1] if theirs else ''}; {_CURES['data-dependent']}"
            )


def _source(error: Exception) -> str:
    """The innermost line of the user's code that led to an error; empty where there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_theirs(frame.filename):
            return f", at {frame.filename}:{frame.lineno}: {frame.line}"
    return ""


def _is_theirs(file: str) -> bool:
    return not file.startswith(_NOT_THEIRS) and ("site-packages" in file or not file.startswith(_STDLIB))


def _cure(error: Exception) -> str:
    return next((f"; {cure}" for words, cure in _CURES.items() if words in str(error)), "")


def _plain(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph as an ordinary module, which can be copied, trained and put in eval mode.

    What torch.export gives refuses ``eval()`` and describes its arguments in a way that only nested outputs need.
    """
    graph, spec = module.graph, module._out_spec
    assert isinstance(spec, TreeSpec)
    if spec.is_leaf() or (spec.type in (tuple, list) and all(child.is_leaf() for child in spec.children())):
        graph.set_codegen(fx.graph.CodeGen())
        output = graph.output_node()
        values = output.args[0]
        assert isinstance(values, tuple | list)
        output.args = (values[0] if spec.is_leaf() else tuple(values) if spec.type is tuple else list(values),)
    plain = fx.GraphModule(module, graph)
    plain.eval()
    return plain


def _nested(model: nn.Module, dims: tuple[Any, ...]) -> tuple[Any, ...]:
    """The dynamic shapes as torch wants them: those that ``forward`` takes as ``*inputs`` nested one level deeper."""
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return dims
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*dims[:named], dims[named:])
