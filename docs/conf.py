"""How the site is built: ``python -m sphinx -W --keep-going -b html docs docs/_build/html``."""

import ast
import dataclasses
import html
import importlib.metadata
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from markdown_it import MarkdownIt
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from penjing.recipe.schema import comments

ROOT = Path(__file__).parent.parent
LANGUAGES = {".py": "python", ".json": "json", ".yaml": "yaml", ".ipynb": "json"}
LINK = re.compile(r"\]\(\.\./([^)#\s]+?)/?(?:#[^)\s]*)?\)")  # from a page to something of the repository outside of docs

project, author, copyright = "Penjing", "the Penjing authors", "the Penjing authors, Apache-2.0"
release = importlib.metadata.version("penjing")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_url_schemes = {
    "http": None,
    "https": None,
    "mailto": None,
    "repository": {"url": "files/{{path}}.html", "title": "{{path}}"},
}

html_theme = "furo"
html_title = f"Penjing {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
smartquotes = False  # two hyphens are an option
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True

linkcheck_timeout, linkcheck_retries, linkcheck_workers = 20, 2, 2
linkcheck_anchors = False
linkcheck_ignore = [r"files/"]  # copies of files of the repository, which were looked for when the page was read


def setup(app: Sphinx) -> dict[str, Any]:
    """Add what is ours: formulas as MathML, the comments of settings as their documentation, and files that pages link to."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("autodoc-process-docstring", _with_comments, priority=400)  # before napoleon reads it
    app.connect("autodoc-process-signature", _as_written)
    app.connect("source-read", _with_links)
    app.connect("html-collect-pages", _files)
    return {"parallel_read_safe": False, "parallel_write_safe": True}


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def _with_comments(_app: Sphinx, what: str, _name: str, obj: Any, _options: Any, lines: list[str]) -> None:
    """The fields of a dataclass are told by the comments beside them where its docstring does not list them."""
    if what != "class" or not dataclasses.is_dataclass(obj) or not isinstance(obj, type):
        return
    told = comments(obj)
    if any(line.strip() in ("Attributes:", "Args:") for line in lines) or not told:
        return
    lines += [
        "",
        "Attributes:",
        *(f"    {field.name}: {told[field.name]}" for field in dataclasses.fields(obj) if field.name in told),
    ]


def _as_written(
    _app: Sphinx, what: str, _name: str, obj: Any, _options: Any, _said: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """The signature as it is in the source, where types have their short names and defaults say where they come from."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]
    except (OSError, TypeError):
        return None
    if isinstance(tree, ast.ClassDef) and dataclasses.is_dataclass(obj):
        return _fields(tree, obj), returns
    if isinstance(tree, ast.ClassDef):
        tree = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), tree)
    if not isinstance(tree, ast.FunctionDef) or what == "property":
        return None
    listed = tree.args.posonlyargs or tree.args.args
    if listed and listed[0].arg in ("self", "cls"):
        del listed[0]
    gives = ast.unparse(tree.returns).strip("'") if tree.returns and what in ("function", "method") else None
    return f"({ast.unparse(tree.args)})", gives


def _fields(tree: ast.ClassDef, cls: Any) -> str | None:
    """What a dataclass is made with."""
    said = []
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in cls.__dataclass_fields__:
            default = _default(node.value)
            said.append(f"{node.target.id}: {ast.unparse(node.annotation)}" + (f" = {default}" if default else ""))
    if len(said) != len(dataclasses.fields(cls)):
        return None
    first = ["*"] if any(f.kw_only for f in dataclasses.fields(cls)) else []
    return f"({', '.join(first + said)})"


def _default(value: ast.expr | None) -> str:
    """What a field is where nothing is given."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "field":
        made = next((k.value for k in value.keywords if k.arg == "default_factory"), None)
        return "" if made is None else ast.unparse(made.body) if isinstance(made, ast.Lambda) else f"{ast.unparse(made)}()"
    return ast.unparse(value) if value else ""


def _with_links(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to files of the repository lead to copies of them in the site."""
    linked = getattr(app.env, "linked_files", set())

    def instead(found: re.Match[str]) -> str:
        if not (ROOT / found[1]).exists():
            raise ExtensionError(f"{page} links to {found[1]}, which is not in the repository")
        linked.add(found[1])
        return f"](repository:{found[1]})"

    source[0] = LINK.sub(instead, source[0])
    app.env.linked_files = linked  # type: ignore[attr-defined]


def _files(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for every file that a page links to."""
    linked: set[str] = getattr(app.env, "linked_files", set())
    inside = {str(p.relative_to(ROOT)) for d in linked if (ROOT / d).is_dir() for p in (ROOT / d).iterdir() if p.is_file()}
    for name in sorted(linked | inside):
        yield f"files/{name}", {"title": name, "body": f"<h1>{name}</h1>{_shown(app, ROOT / name)}"}, "page.html"


def _shown(app: Sphinx, path: Path) -> str:
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if p.is_file())
        return "<ul>" + "".join(f'<li><a href="{path.name}/{n}.html">{n}</a></li>' for n in names) + "</ul>"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return f"<p>{path.stat().st_size:,} bytes.</p>"
    if path.suffix == ".md":
        tables = MarkdownIt("commonmark").enable("table").render(text)
        return tables.replace("<table>", '<div class="table-wrapper"><table class="docutils">').replace(
            "</table>", "</table></div>"
        )
    language = LANGUAGES.get(path.suffix)
    return app.builder.highlighter.highlight_block(text, language) if language else f"<pre>{html.escape(text)}</pre>"  # type: ignore[attr-defined]
