"""Imports inside the package point down only, and never to programs outside it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pyg_mmrec"

# The lowest layer first; modules of one layer may import each other.
LAYERS = (
    ("argument_checks",),
    ("data", "transforms"),
    ("nn.functional", "nn.losses", "nn.conv", "nn.noise", "nn.edge_mask"),
    ("nn.backbones",),
    ("nn.objectives", "nn"),  # `nn/__init__.py` gathers what lies below it
    ("training", "evaluation", "retrieval"),
    ("testing",),
    ("options", "table", "experiment", "cli", "__main__"),
)
RANK = {area: rank for rank, areas in enumerate(LAYERS) for area in areas}
PROGRAMS = ("benchmarks", "examples", "tests")


def rank_of(module: str) -> int | None:
    """The layer of a module named without the package (None: it belongs to no layer)."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        area = ".".join(parts[:length])
        if area == "nn" and length < len(parts):
            return None  # another folder of `nn` needs a layer of its own
        if area in RANK:
            return RANK[area]
    return None


def imported_modules(path: Path, root: Path) -> list[tuple[int, str]]:
    """Line and full name of everything a file imports; `from a import b` may give both names."""
    package = root.name
    inside = path.relative_to(root.parent).with_suffix("").parts
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative to the package that holds the file
                base = ".".join([*inside[: len(inside) - node.level], *base.split(".")]).strip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}"
                target = root.parent.joinpath(*name.split("."))
                is_module = target.with_suffix(".py").exists() or target.is_dir()
                found.append((node.lineno, name if base == package or is_module else base))
    return found


def violations(root: Path) -> list[str]:
    """Every import that points up or out, as `file:line: reason`."""
    package, found = root.name, []
    for path in sorted(root.rglob("*.py")):
        where = path.relative_to(root.parent)
        own_parts = path.relative_to(root).with_suffix("").parts
        own = ".".join(own_parts[:-1] if own_parts[-1] == "__init__" else own_parts)
        own_rank = len(LAYERS) if own == "" else rank_of(own)
        if own_rank is None:
            found.append(f"{where}:1: '{own}' is in no layer")
            continue
        for line, name in imported_modules(path, root):
            head, _, rest = name.partition(".")
            if head in PROGRAMS:
                found.append(f"{where}:{line}: imports the program '{name}'")
            elif head == package and rest not in ("", "__version__"):
                rank = rank_of(rest)
                if rank is None or rank > own_rank:
                    found.append(f"{where}:{line}: '{own}' imports '{rest}' above it")
    return found


def test_imports_point_down() -> None:
    modules = list(PACKAGE.rglob("*.py"))
    assert len(modules) > 2, "the package was not found"
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        ("data/reader.py", "from pkg.nn.losses import BPRLoss\n", "imports 'nn.losses' above it"),
        ("data/reader.py", "from ..nn import losses\n", "imports 'nn.losses' above it"),
        ("nn/conv/light.py", "import pkg.nn.backbones\n", "imports 'nn.backbones' above it"),
        ("nn/losses.py", "def f():\n    from pkg import training\n", "imports 'training' above it"),
        ("nn/losses.py", "from .objectives.dvib import DVIB\n", "imports 'nn.objectives"),
        ("training/trainer.py", "from benchmarks.table import draw\n", "imports the program"),
        ("training/trainer.py", "from pkg.cli import main\n", "imports 'cli' above it"),
        ("misc/tools.py", "import torch\n", "is in no layer"),
        ("nn/extra/tools.py", "import torch\n", "is in no layer"),
    ],
)
def test_finds_violation(tmp_path: Path, file: str, source: str, reason: str) -> None:
    root = tmp_path / "pkg"
    for name in ("nn/losses.py", "training/trainer.py", file):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source if name == file else "", encoding="utf-8")
    (found,) = violations(root)
    assert reason in found


def test_accepts_imports_that_point_down(tmp_path: Path) -> None:
    root = tmp_path / "pkg"
    sources = {
        "__init__.py": "from pkg.training import trainer\n__version__ = '0'\n",
        "data/graph.py": "import torch\nfrom pkg.transforms import knn\n",
        "transforms/knn.py": "from ..data.graph import Graph\n",
        "nn/backbones/__init__.py": "from ..losses import BPRLoss\nfrom .vbpr import VBPR\n",
        "nn/backbones/vbpr.py": "from pkg import __version__\nfrom pkg.nn import losses\n",
        "nn/losses.py": "",
        "nn/__init__.py": "from . import losses\nfrom .backbones import VBPR\n",
        "training/trainer.py": "from pkg.nn.backbones import VBPR\nimport tests_of_mine\n",
    }
    for name, source in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    assert violations(root) == []
