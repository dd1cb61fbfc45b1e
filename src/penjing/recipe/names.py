"""Words to objects: the only place where names are looked up."""

import importlib
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from penjing.errors import ModelError, PenjingError, RecipeError, nearest
from penjing.files import TORCHS, misfits, read_tensors
from penjing.graph import load_onnx
from penjing.task import Task

ONNX = ".onnx"  # what names of files end with that are networks of their own
MOST = 8  # names of functions in an error


def found(where: str, what: str) -> Any:
    """The object that ``pkg.mod:name`` names; modules of the working directory count.

    Args:
        what: The option it was given for, for the error.

    Raises:
        RecipeError: It leads nowhere.
    """
    module_name, colon, name = where.partition(":")
    if Path(where).suffix in TORCHS:
        raise RecipeError(
            f"{what} {where!r} is a file that torch saved; give a function that loads it, package.module:name, as "
            f"def build(): return torch.load({where!r}, weights_only=False)"
        )
    if not (colon and module_name and name):
        raise RecipeError(f"{what} {where!r} is not of the form package.module:name")
    if "/" in module_name or module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").replace("/", ".").strip(".")
        raise RecipeError(f"{what} {where!r} is not of the form package.module:name; did you mean {dotted}:{name}?")
    look_in(Path.cwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        raise RecipeError(
            f"{what} {where!r}: there is no module {e.name!r} in {Path.cwd()} or elsewhere on Python's path"
        ) from e
    except Exception as e:  # whatever the user's module raises while it is imported
        raise RecipeError(f"{what} {where!r}: importing {module_name} fails with {type(e).__name__}: {e}") from e
    if not hasattr(module, name):
        there = sorted(n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n)))
        near = nearest(name, there)
        hint = f"did you mean {near!r}?" if near else f"it has {', '.join(there[:MOST]) or 'nothing'}"
        raise RecipeError(f"{what} {where!r}: {module_name} has no {name!r}; {hint}")
    return getattr(module, name)


def look_in(folder: Path) -> None:
    """From here on modules are also found in ``folder``; it comes first, unless Python looked there already."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def load_model(where: str, weights: Path | None = None, *, what: str = "--model") -> nn.Module:
    """The network that the factory (or module instance) at ``where`` gives, with the weights of a safetensors file.

    Or that of an ONNX file, which has its own weights.

    Args:
        what: The option it was given for, for the error.

    Raises:
        RecipeError: ``where`` leads nowhere or gives something else.
        ModelError: The weights do not fit; names the first that differ. Or an ONNX file cannot be read.
    """
    if where.endswith(ONNX):
        if weights is not None:
            raise RecipeError(f"weights are given for {where!r}, but an ONNX file has its own; leave --weights out")
        return load_onnx(where).eval()
    given = _called(found(where, what), where, what)
    if not isinstance(given, nn.Module):
        raise RecipeError(f"{what} {where!r} gives {type(given).__name__}; give a function that returns a torch.nn.Module")
    if weights is not None:
        load_weights(given, weights)
    return given.eval()


def load_task(where: str, *, what: str = "--data") -> Task:
    """The task that the function (or object) at ``where`` gives.

    Raises:
        RecipeError: It leads nowhere or gives something else.
    """
    given = _called(found(where, what), where, what)
    if not isinstance(given, Task):
        raise RecipeError(f"{what} {where!r} gives {type(given).__name__}; give a function that returns a penjing.Task")
    return given


def load_weights(model: nn.Module, path: Path) -> None:
    """Put the tensors of a safetensors file into the model; 16-bit ones become the model's type.

    Raises:
        ModelError: Names or shapes differ; names the first.
    """
    tensors, _ = read_tensors(path)
    own = model.state_dict()
    if problems := misfits(tensors, own, "the model"):
        raise ModelError(f"the weights in {path} do not fit {type(model).__name__}: {problems}")
    model.load_state_dict({n: _like(t, own[n]) for n, t in tensors.items()})


def _called(given: Any, where: str, what: str) -> Any:
    if isinstance(given, nn.Module | Task) or not callable(given):
        return given
    try:
        return given()
    except PenjingError:
        raise
    except Exception as e:  # whatever the user's function raises
        raise RecipeError(f"{what} {where!r}: calling it without arguments fails with {type(e).__name__}: {e}") from e


def _like(value: Tensor, own: Tensor) -> Tensor:
    return value.to(own.dtype) if own.is_floating_point() else value
