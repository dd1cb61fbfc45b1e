"""Write the parts of the docs that say what the code says: ``python docs/generate.py``; ``--check`` only compares.

The pages of ``docs/api``, the keys in ``recipes.md`` and the profiles in ``runtimes.md``.
"""

import argparse
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

import penjing
from penjing.cli.app import app
from penjing.quant import TARGETS, Target
from penjing.recipe import recipe_schema

DOCS = Path(__file__).parent
API = DOCS / "api"
PACKAGES = {  # in the order in which data takes them
    "data": "Labelled images in memory, and batches of them.",
    "zoo": "Networks to try things on.",
    "score": "How much a channel or a weight matters.",
    "prune": "The steps of pruning.",
    "quant": "Grids, ranges and where integers go.",
    "distill": "Losses that know a teacher, and students.",
    "train": "What the training loop takes and tells.",
    "measure": "How well, how large, how fast.",
    "export": "Files, and what runtimes make of them.",
    "search": "Budgets, prices and the choice of widths.",
    "ranks": "Several processes.",
    "errors": "What can go wrong.",
}
MARK, END = "<!-- {}: docs/generate.py -->", "<!-- end of {} -->"
Rows = Sequence[Sequence[str]]


def pages() -> dict[Path, str]:
    """Every generated file with its text."""
    found = {API / "index.md": _index(), API / "penjing.md": _top(), API / "commands.md": _commands()}
    found |= {API / f"{name}.md": _package(name, about) for name, about in PACKAGES.items()}
    for page, name, rows in (("recipes.md", "keys", _keys()), ("runtimes.md", "profiles", _profiles())):
        found[DOCS / page] = put(rows, name, (DOCS / page).read_text(encoding="utf-8"))
    return found


def put(part: str, name: str, page: str) -> str:
    """The page with the part between the marks of that name."""
    before, begin, rest = page.partition(MARK.format(name))
    old, end, after = rest.partition(END.format(name))
    if not (begin and end):
        raise SystemExit(f"the page lacks {MARK.format(name)} ... {END.format(name)}")
    del old
    return f"{before}{begin}\n\n{part}\n\n{end}{after}"


def table(head: Sequence[str], rows: Rows) -> str:
    """A table in Markdown."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


# The reference.


def _index() -> str:
    rows = [[f"[`penjing.{name}`]({name}.md)", about] for name, about in PACKAGES.items()]
    tree = "\n".join(("```{toctree}", ":hidden:", "", "penjing", "commands", *PACKAGES, "```"))
    head = "# Reference\n\nEvery public name, from its docstring. Most programs need [`penjing`](penjing.md) "
    head += "alone, and people who write no Python [the command line](commands.md)."
    return f"{head}\n\n{table(('package', 'what it is for'), rows)}\n\n{tree}\n"


def _top() -> str:
    """The names of ``penjing`` itself, by the folder they come from."""
    held: dict[str, list[str]] = {}
    for name in penjing.__all__:
        value = getattr(penjing, name)
        if not isinstance(value, ModuleType | str):
            held.setdefault(value.__module__.split(".")[1], []).append(name)
    order = ["run", "settings", "task", "result", "plan", "graph", *PACKAGES]
    parts = [
        "# `penjing`\n\n`import penjing as pj`: what most programs need. The order is that in which data takes the folders. "
        "`penjing.__version__` is the version."
    ]
    for part in sorted(held, key=order.index):
        names = sorted(held[part], key=str.lower)
        parts += [f"## {_title(part)}", *(_entry("penjing", name, getattr(penjing, name)) for name in names)]
    return "\n\n".join(parts) + "\n"


def _title(part: str) -> str:
    titles = {"run": "A whole run", "settings": "Settings of a run", "task": "Data and metric", "result": "What came out"}
    titles |= {"plan": "Which channels stay", "graph": "Networks from files", "score": "Score", "errors": "Errors"}
    return titles.get(part, part.capitalize())


def _package(name: str, about: str) -> str:
    module = importlib.import_module(f"penjing.{name}")
    known = {id(getattr(penjing, n)): n for n in penjing.__all__}
    parts, also = [f"# `penjing.{name}`\n\n{about}"], []
    if name not in penjing.__all__:
        parts[0] += f" These names are imported with `from penjing.{name} import ...`."
    for said, value in _names(module):
        if id(value) in known and callable(value):
            also.append(f"[`{said}`](#penjing.{known[id(value)]})")
        else:
            parts.append(_entry(f"penjing.{name}", said, value))
    if also:
        parts.insert(1, f"In [`penjing`](penjing.md) itself: {', '.join(also)}.")
    return "\n\n".join(parts) + "\n"


def _names(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The public names of a package in the order of its file: those that it imports as themselves, or its own."""
    package = hasattr(module, "__path__")
    for name, value in vars(module).items():
        own = getattr(value, "__module__", "") == module.__name__
        if name.startswith("_") or isinstance(value, ModuleType):
            continue
        if own or (package and f" as {name}\n" in inspect.getsource(module)) or (package and isinstance(value, dict)):
            yield name, value


def _entry(module: str, name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        rows = [[f"`{key}`", _first_line(held)] for key, held in value.items()]
        return f"## `{name}`\n\n{table(('name', 'what it is'), rows)}"
    if isinstance(value, type):
        kind, options = ("exception", []) if issubclass(value, Exception) else ("class", ["   :members:"])
    elif inspect.isroutine(value):
        kind, options = "function", []
    else:
        kind, options = "data", ["   :no-value:"] if not isinstance(value, str | int | float | tuple) else []
    return "\n".join(("```{eval-rst}", f".. auto{kind}:: {module}.{name}", *options, "```"))


def _first_line(value: Any) -> str:
    if isinstance(value, Target):
        return f"{value.runtime} on {value.needs}"
    return (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")


def _commands() -> str:
    """Every command with its options."""
    group = typer.main.get_command(app)
    parts = ["# The command line\n\n`penjing COMMAND --help` prints the same; `python -m penjing` is `penjing`."]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        about = inspect.cleandoc(command.help or "").replace("\f", "")
        rows = [[f"`{_said(p)}`", _help(p)] for p in command.params if p.name != "help"]
        parts += [f"## `penjing {name}`", about, table(("option", "what it is"), rows)]
    return "\n\n".join(parts) + "\n"


def _said(param: Any) -> str:
    if param.param_type_name == "argument":
        return str(param.name).upper()
    return ", ".join((*param.opts, *param.secondary_opts))


def _help(param: Any) -> str:
    needed = " Must be given." if param.required else ""
    default = param.default
    told = "" if default is None or default is False or callable(default) or default == () else f" Default: `{default}`."
    return f"{param.help or ''}{needed}{told}".replace("<", "&lt;")


# The keys of a recipe.


def _keys() -> str:
    schema = recipe_schema()
    parts = [_section("Whole", schema, schema["$defs"])]
    for title, key in (("budget", "Budget"), ("settings", "Settings"), ("settings.training", "Training")):
        parts += [f"### `{title}`", _section(key, schema["$defs"][key], schema["$defs"])]
    deeper = [n for n in schema["$defs"] if n not in ("Budget", "Settings", "Training")]
    parts += [part for n in deeper for part in (f"### {n}", _section(n, schema["$defs"][n], schema["$defs"]))]
    return "\n\n".join(parts)


def _section(_name: str, schema: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    rows = []
    for key, held in schema["properties"].items():
        must = key in schema.get("required", ())
        rows.append([f"`{key}`", _kind(held, known), "must be given" if must else _default(held), _words(held)])
    return table(("key", "type", "default", "what it is"), rows)


def _kind(held: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    if "$ref" in held:
        return "section"
    if "anyOf" in held:
        return " or ".join(dict.fromkeys(_kind(k, known) for k in held["anyOf"]))
    kind = held.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(_word(k) for k in kind)
    inner = f" of {_kind(held['items'], known)}s" if kind == "array" and "items" in held else ""
    return _word(kind) + inner


def _word(kind: str) -> str:
    return {"string": "text", "array": "list", "boolean": "true or false", "null": "nothing", "integer": "whole number"}.get(
        kind, kind
    )


def _default(held: Mapping[str, Any]) -> str:
    default = held.get("default", "")
    if default is None:
        return "nothing"
    if isinstance(default, Mapping) or "$ref" in held:
        return "see below"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _words(held: Mapping[str, Any]) -> str:
    examples = ", ".join(f"`{e}`" for e in held.get("examples", ()))
    return str(held.get("description", "")).replace("<", "&lt;") + (f"; for example {examples}" if examples else "")


# The profiles of runtimes.


def _profiles() -> str:
    rows: dict[str, Callable[[Target], str]] = {
        "CPU": lambda t: t.needs.partition(":")[0],
        "int8 layers": lambda t: _operations(t.weighted),
        "other operations in int8": lambda t: _operations(t.integer) or "none",
        "grid of values that go below zero": lambda t: t.signed_values,
        "output of a convolution needs a grid": lambda t: _yes(t.ends_convolution),
        "parts of a concatenation share a grid": lambda t: _yes(t.shared_concat),
        "most bits of a weight": lambda t: str(t.weight_bits),
        "channels that a kernel takes at a time": lambda t: str(t.lanes),
    }
    return table(
        ("", *(f"`{name}`" for name in TARGETS)), [[what, *(say(t) for t in TARGETS.values())] for what, say in rows.items()]
    )


def _operations(found: Any) -> str:
    names = {str(op).split(".")[1].removeprefix("adaptive_") for op in found}
    return ", ".join(f"`{name}`" for name in sorted(names))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def main() -> None:
    """Write what differs, or only say so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something is not up to date")
    check = parser.parse_args().check
    old = [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if check and old:
        sys.exit(f"not up to date: {', '.join(str(p.relative_to(DOCS)) for p in old)}; run python docs/generate.py")
    for path, text in pages().items():
        if path in old:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
