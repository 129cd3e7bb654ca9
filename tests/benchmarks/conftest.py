"""Benchmark scripts as modules."""

import importlib.util
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from pyg_mmrec.cli import main

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def load_script():
    """A function that imports a script by its file's name.

    Scripts find each other beside them. Each gets another name here than it has there, since third
    parties have packages that are called the same.
    """
    path, modules = list(sys.path), dict(sys.modules)
    for name in ("run", "tabulate"):  # of third parties
        sys.modules.pop(name, None)

    def load(name):
        sys.path.insert(0, str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location(f"script_{name}", BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    yield load
    sys.path[:] = path
    for name in list(sys.modules):
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[name]
    sys.modules.update({name: x for name, x in modules.items() if name not in sys.modules})


@pytest.fixture
def trained_here(monkeypatch):
    """Runs of a queue train in this process, one at a time, which saves the imports of each."""

    start = subprocess.run

    def run(command, **options):
        if command[0] == "git":
            return start(command, **options)
        with redirect_stdout(StringIO()):
            code = main(list(map(str, command[command.index("train") :])))
        return subprocess.CompletedProcess(command, code, "", "")

    monkeypatch.setattr(subprocess, "run", run)
