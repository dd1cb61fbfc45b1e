"""YAML with the lines where its keys stand, so that a mistake can be shown where it is."""

import re
from pathlib import Path
from typing import Any

import yaml

from penjing.errors import RecipeError

Places = dict[tuple[str, ...], int]  # the line of every key, from 1
_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")  # 1e-3, as in YAML 1.2; in 1.1 that is a word


class _Loader(yaml.SafeLoader):
    """Plain data only, without aliases."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_event().start_mark  # type: ignore[no-untyped-call]  # the stubs lack its types
            raise yaml.MarkedYAMLError(problem="a value that begins with * must be in quotes", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes the words that ``_Loader`` takes for numbers."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def read_yaml(path: Path) -> tuple[Any, Places]:
    """The content of a YAML file, and where its keys stand.

    Raises:
        RecipeError: The file cannot be read, is not YAML (says the line and column), or has a key twice.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise RecipeError(f"cannot read the recipe {path}: {e}") from e


def parse_yaml(text: str, name: str) -> tuple[Any, Places]:
    """As ``read_yaml``, of a text.

    Args:
        name: What the text is called in errors.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        places = _places(node, (), name)
        return (loader.construct_document(node) if node is not None else None), places
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        said = " ".join(part for part in (e.context, e.problem) if part)
        raise RecipeError(f"{name}{at}: this is not YAML: {said}") from e
    except (yaml.YAMLError, ValueError) as e:  # characters that YAML does not allow; a date such as 2026-99-99
        raise RecipeError(f"{name}: this is not YAML: {' '.join(str(e).split())}") from e


def yaml_value(value: Any) -> str:
    """A number, a word, ``None`` or a flat list as YAML in one line."""

    def written(style: str | None) -> str:
        text: str = yaml.dump(
            value, Dumper=_Dumper, default_flow_style=True, default_style=style, width=2**31, allow_unicode=True
        )
        return text.removesuffix("\n").removesuffix("\n...")

    text = written(None)
    return written('"') if len(text.splitlines()) > 1 else text


def _places(node: yaml.Node | None, above: tuple[str, ...], name: str) -> Places:
    found: Places = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        path, line = (*above, str(key.value)), key.start_mark.line + 1
        if path in found:
            raise RecipeError(
                f"{name}, line {line}: {'.'.join(path)} is there already, in line {found[path]}; keep one of the two"
            )
        found |= {path: line} | _places(value, path, name)
    return found
