"""A run as a file: everything that ``penjing compress`` can be told, in YAML."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from penjing.errors import RecipeError
from penjing.files import whole_file
from penjing.recipe.marked import parse_yaml, read_yaml, yaml_value
from penjing.recipe.names import ONNX
from penjing.recipe.schema import WORDS, Key, comments, instance, json_schema
from penjing.search import Budget
from penjing.settings import Settings

RECIPE, SCHEMA = "recipe.yaml", "recipe.schema.json"
PATHS = ("out", "weights", "modules")  # the keys that hold paths


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What ``penjing compress`` is asked for; relative paths start from the folder of the recipe."""

    model: str  # the network's factory, as package.module:function, or an ONNX file
    data: str  # a function that returns a penjing.Task, as package.module:function
    out: Path  # a new or empty folder for the results, or that of the run to go on with
    weights: Path | None = None  # of the network, as safetensors; or what `penjing prune` wrote
    modules: Path | None = None  # the folder of the modules of model and data; by default that of the recipe
    target: str = "onnxruntime"  # the runtime it is for: onnxruntime or openvino
    budget: Budget = field(default_factory=Budget)  # the limits
    settings: Settings = field(default_factory=Settings)  # how it goes about it


def read_recipe(path: Path | None, *options: Mapping[str, Any]) -> Recipe:
    """The recipe of a YAML file, or of options alone.

    Args:
        options: What was given besides, in the same words and sections; the last goes before the others, and all before
            the file. Their relative paths start from the working directory.

    Raises:
        RecipeError: The file is not YAML, a key is not known or missing, or a value does not fit.
    """
    said, places, given = _said(path, options)

    def where(key: Key) -> str:
        if path is None or _holds(given, key):
            return ""
        return f"{path}, line {places[key]}: " if key in places else f"{path}: "

    made: Recipe = instance(Recipe, _over(said, given), where)
    return made


def drop_in_words(path: Path | None, *options: Mapping[str, Any]) -> str | None:
    """What may be lost of the metric, as the recipe or the options say it; None where none does."""
    said, _, given = _said(path, options)
    words = _over(said, given)
    budget = words.get("budget") if isinstance(words, dict) else None
    drop = budget.get("max_drop") if isinstance(budget, dict) else None
    return None if drop is None else str(drop)


def _said(path: Path | None, options: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[Key, int], dict[str, Any]]:
    """What a file says, with the lines of its keys, and what options say over it."""
    said, places = read_yaml(path) if path else ({}, {})
    if not isinstance(said, dict | None):
        raise RecipeError(f"{path} holds {said!r}; give keys such as model, data and out, as penjing recipe prints them")
    said = said or {}
    given: dict[str, Any] = functools.reduce(_over, options, {})
    if path:
        said["modules"] = "." if said.get("modules") is None else said["modules"]
        said |= {k: str((path.parent / said[k]).resolve()) for k in _paths(said) if isinstance(said.get(k), str)}
    return said, places, given


def _paths(said: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys whose values are paths."""
    return (*PATHS, "model") if str(said.get("model", "")).endswith(ONNX) else PATHS


def option(text: str) -> dict[str, Any]:
    """``"settings.training.momentum=0.8"`` as what ``read_recipe`` takes.

    Raises:
        RecipeError: The text is something else.
    """
    key, equals, value = text.partition("=")
    if not (equals and all(key.split("."))):
        raise RecipeError(f"{text!r} is not of the form key=value, for example settings.attempts=2")
    held, _ = parse_yaml(value, f"the value of {key}")
    for name in reversed(key.split(".")):
        held = {name: held}
    return dict(held)


def dump_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe, whole or not at all, with every default: it means the same in a later version with others.

    Its paths are relative to its own folder, so that it moves together with what it names.
    """
    folder = path.parent.resolve()
    said = {f.name: getattr(recipe, f.name) for f in fields(recipe)}
    moved = {k: os.path.relpath(Path(said[k]).resolve(), folder) for k in _paths(said) if said[k] is not None}
    with whole_file(path) as part:
        part.write_text("\n".join(_lines(recipe, moved)) + "\n", encoding="utf-8")


def starting_recipe() -> str:
    """A recipe to begin with: every key, its default and what it is."""
    recipe = Recipe(model="my_net:build", data="my_net:task", out=Path("runs/mine"))
    head = (
        f"# yaml-language-server: $schema={SCHEMA}",
        f"# For an editor that knows the schema: penjing recipe --schema > {SCHEMA}",
        "# What is as you want it by default can be left out.",
    )
    return "\n".join((*head, *_lines(recipe, {}))) + "\n"


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipes."""
    return json_schema(Recipe)


def _lines(of: Any, instead: Mapping[str, str], indent: str = "") -> list[str]:
    """A dataclass as lines of YAML, with the comments of its fields."""
    cls: type = type(of)
    lines, notes = [], comments(cls)
    for f in fields(of):
        value, words = instead.get(f.name, getattr(of, f.name)), WORDS.get((cls, f.name))
        note = f"  # {notes[f.name]}" if f.name in notes else ""
        if is_dataclass(value):
            lines += [f"{indent}{f.name}:{note}", *_lines(value, {}, indent + "  ")]
        else:
            lines.append(f"{indent}{f.name}: {yaml_value(words.write(value) if words else _plain(value))}{note}")
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _over(below: Any, above: Mapping[str, Any]) -> Any:
    """``below`` with the values of ``above`` put into its sections; one that was said to be null begins with these."""
    if below is None:
        below = {}
    if not isinstance(below, dict):
        return below  # a mistake, to be told as such
    put = {k: _over(below.get(k, {}), v) if isinstance(v, Mapping) else v for k, v in above.items()}
    return below | put


def _holds(options: Any, key: Key) -> bool:
    """Whether a key is among the options."""
    for name in key:
        if not isinstance(options, Mapping) or name not in options:
            return False
        options = options[name]
    return True
