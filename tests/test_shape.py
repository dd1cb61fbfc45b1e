"""The code tests its own shape: imports point one way, exports are exact, files stay short, ``import penjing`` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import penjing

SRC = Path(penjing.__file__).parent
ORDER = (
    "errors", "processor", "ranks", "files", "progress", "plan", "task", "zoo", "data", "graph", "score", "prune", "quant",
    "distill", "train", "measure", "export", "search", "report", "result", "settings", "recipe", "run", "cli",
)  # fmt: skip
FILES = sorted(SRC.rglob("*.py"))
HEAVY = ("onnx", "onnxruntime", "onnxscript", "openvino", "lightning_fabric", "plotly", "pydantic", "rich", "typer", "scipy")


def part_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def own_imports(tree: ast.AST) -> list[str]:
    """The parts of the package that a module imports."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "penjing":
            names += [node.module] if "." in node.module else [f"{node.module}.{a.name}" for a in node.names]
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names if a.name.split(".")[0] == "penjing"]
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative imports hide where a name comes from"
    return [n.split(".")[1] for n in names if "." in n]


def backwards(part: str, source: str) -> list[str]:
    """Imports of ``source``, a module of ``part``, that point to a later part."""
    return [name for name in own_imports(ast.parse(source)) if ORDER.index(name) > ORDER.index(part)]


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent != SRC or not p.name.startswith("__")], ids=lambda p: str(p.relative_to(SRC))
)
def test_imports_point_one_way(path: Path) -> None:
    assert backwards(part_of(path), path.read_text()) == []


def test_the_check_of_directions_can_fail() -> None:
    assert backwards("graph", "from penjing.prune.channels import prune_channels") == ["prune"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_no_import_of_our_own_hides_in_a_function(path: Path) -> None:
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in functions if own_imports(f)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_no_file_is_over_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_exports_are_exact() -> None:
    tree = ast.parse((SRC / "__init__.py").read_text())
    imported = [a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names]
    assigned = [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    assert penjing.__all__ == sorted(imported + [n for n in assigned if n != "__all__"])
    assert all(hasattr(penjing, name) for name in penjing.__all__)


def test_import_stays_light() -> None:
    code = f"import sys, penjing; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
