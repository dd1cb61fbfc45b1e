"""Dataclasses as schemas: their fields, types, defaults and comments say what a recipe may hold. Nothing is said twice."""

import ast
import functools
import inspect
import io
import json
import textwrap
import tokenize
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Union, get_args, get_type_hints

from penjing.errors import RecipeError, nearest
from penjing.search.budget import NO_DROP, Budget, parse_drop

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

Key = tuple[str, ...]  # ("settings", "training", "lr")
UNREADABLE = "unreadable"  # the type of the mistake that words cannot be read


class Words(NamedTuple):
    """A field that recipes hold in words: how these are read and written, and what they look like."""

    read: Callable[[Any], Any]
    write: Callable[[Any], str]
    schema: dict[str, Any]


WORDS: dict[tuple[type, str], Words] = {
    (Budget, "max_drop"): Words(
        read=lambda said: parse_drop(str(said)),
        write=lambda drop: NO_DROP if drop is None else f"{drop!r} units",
        schema={"type": ["string", "null"], "examples": ["0.5 points", "0.3 dB", "0.3 units", NO_DROP]},
    )
}


@functools.cache
def comments(cls: type) -> dict[str, str]:
    """The comment at the end of the line of each field of a dataclass, of those that it inherits too."""
    inherited = [comments(base) for base in cls.__bases__ if is_dataclass(base)]
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    body = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)).body
    lines = {n.target.id: n.end_lineno for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    own = {name: said[line] for name, line in lines.items() if line in said}
    return {name: told for base in inherited for name, told in base.items()} | own


def json_schema(of: Any) -> dict[str, Any]:
    """The JSON schema of a dataclass, or of an instance, whose values are then the defaults."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | _model(of).model_json_schema()


def keys(of: Any, above: Key = ()) -> Iterator[Key]:
    """Every key that ``of`` knows, of its sections too."""
    for name, kind, _ in _fields(of):
        yield (*above, name)
        if is_dataclass(kind):
            yield from keys(kind, (*above, name))


def instance(of: Any, given: Mapping[str, Any], where: Callable[[Key], str]) -> Any:
    """An instance of a dataclass with what was given in words; what was not is as in ``of``.

    Args:
        of: A dataclass, or an instance of one.
        where: Where a key was given, to begin the error with.

    Raises:
        RecipeError: A key is not known or missing, or a value is of another kind than its field.
    """
    from pydantic import ValidationError

    try:
        # As JSON and strictly: a list is a tuple there, but neither is a word a number nor a truth value.
        checked = _model(of).model_validate_json(json.dumps(given, default=str), strict=True)
    except ValidationError as e:
        wrong = min(
            e.errors(include_url=False), key=lambda w: w["type"] != "extra_forbidden"
        )  # a missing key may be there, misspelled
        raise RecipeError(_mistake(of, wrong, where)) from e
    return _made(of, checked, where)


def _fields(of: Any) -> Iterator[tuple[str, Any, Any]]:
    """For every field of a dataclass: its name, what it is in the schema (an instance where it is a section), its default."""
    cls = of if isinstance(of, type) else type(of)
    hints = get_type_hints(cls)
    for f in fields(cls):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        default = default if isinstance(of, type) else getattr(of, f.name)
        section = next((kind for kind in (default, hints[f.name], *get_args(hints[f.name])) if is_dataclass(kind)), None)
        yield f.name, section or hints[f.name], default


def _model(of: Any) -> "type[BaseModel]":
    from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model

    cls = of if isinstance(of, type) else type(of)
    notes = comments(cls)
    made: dict[str, Any] = {}
    for name, kind, default in _fields(of):
        hint, words = kind, WORDS.get((cls, name))
        if is_dataclass(kind):
            hint = _model(kind) if default is not None else Union[_model(kind), None]  # noqa: UP007 - of values, not of types
            default = default and _model(default)()
        elif words:
            hint = Annotated[Any, BeforeValidator(_told(words.read)), WithJsonSchema(words.schema)]
            default = words.write(default)
        made[name] = (hint, Field(... if default is MISSING else default, description=notes.get(name)))
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    about = (inspect.getdoc(cls) or "").split("\n\n")[0]
    model: type[BaseModel] = create_model(cls.__name__, __config__=config, __doc__=about, **made)
    return model


def _told(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """As ``read``; what it refuses is one of the mistakes that pydantic finds, and so has a place."""
    from pydantic_core import PydanticCustomError

    def told(said: Any) -> Any:
        try:
            return read(said)
        except RecipeError as e:
            raise PydanticCustomError(UNREADABLE, "{said}", {"said": str(e)}) from e

    return told


def _made(of: Any, checked: "BaseModel", where: Callable[[Key], str], above: Key = ()) -> Any:
    kinds = {name: kind for name, kind, _ in _fields(of)}
    given = {name: getattr(checked, name) for name in checked.model_fields_set}
    values = {
        name: _made(kinds[name], v, where, (*above, name)) if is_dataclass(kinds[name]) and v is not None else v
        for name, v in given.items()
    }
    try:
        return of(**values) if isinstance(of, type) else replace(of, **values)
    except RecipeError as e:
        raise RecipeError(_placed(str(e), kinds, above, where)) from e


def _placed(said: str, names: Collection[str], above: Key, where: Callable[[Key], str]) -> str:
    """What a section says of its values, with the place and the whole name of the one that it begins with."""
    first, space, rest = said.partition(" ")
    name = first.rpartition(".")[2]
    key = (*above, name) if name in names else above
    return where(key) + (f"{'.'.join(key)}{space}{rest}" if name in names else said)


def _mistake(of: Any, wrong: "ErrorDetails", where: Callable[[Key], str]) -> str:
    known = set(keys(of))
    said = tuple(str(part) for part in wrong["loc"])
    if wrong["type"] == "extra_forbidden":
        return where(said) + _unknown(said, known)
    key = next(said[:n] for n in range(len(said), -1, -1) if said[:n] in known or not n)  # without the parts of a list or union
    if wrong["type"] == UNREADABLE:
        return _placed(wrong["msg"], [key[-1]], key[:-1], where)
    note = _note(of, key)
    if wrong["type"] == "missing":
        return f"{where(key)}{'.'.join(key)} is missing; give {note}"
    kind = wrong["msg"].removeprefix("Input should be ")
    return f"{where(key)}{'.'.join(key)} is {wrong['input']!r}, which is not {kind}" + (f" ({note})" if note else "")


def _unknown(said: Key, known: set[Key]) -> str:
    here = sorted(key[-1] for key in known if key[:-1] == said[:-1])
    near = nearest(said[-1], here)
    elsewhere = sorted(".".join(key) for key in known if key[-1] == said[-1])
    hint = ".".join((*said[:-1], near)) if near else next(iter(elsewhere), None)
    asked = f"did you mean {hint!r}? " if hint else ""
    return f"{'.'.join(said)} is not known; {asked}{'.'.join(said[:-1]) or 'a recipe'} takes {', '.join(here)}"


def _note(of: Any, key: Key) -> str:
    for name in key[:-1]:
        of = next(kind for n, kind, _ in _fields(of) if n == name)
    return comments(of if isinstance(of, type) else type(of)).get(key[-1], "") if key else ""
