"""Installs ``pyg_mmrec``; the version is written once, in ``pyg_mmrec/__init__.py``."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Return the package's ``__version__`` without importing the package."""
    text = (ROOT / "pyg_mmrec" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r"^__version__\s*(?::\s*str\s*)?=\s*[\"']([^\"']+)[\"']", text, re.MULTILINE)
    if match is None:
        raise RuntimeError("'pyg_mmrec/__init__.py' needs a line '__version__ = \"...\"'")
    return match.group(1)


def read_description() -> str:
    """Return the README, or nothing while there is none."""
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


INSTALL_REQUIRES = [
    "torch>=2.9,<2.14",
    "torch-geometric>=2.8,<2.9",
    "numpy",
    "pandas",
    "faiss-cpu",
    "safetensors",
    "tqdm",
    "typing-extensions",
]
SPARSE = ["torch-sparse", "torch-scatter"]
# Provides the same module as faiss-cpu: the README says how to have only this one.
GPU = ["faiss-gpu"]
TEST = ["pytest", "pytest-xdist", "hypothesis", "pyyaml", "scipy"]
DEV = [*TEST, "ruff", "mypy", "types-tqdm", "types-PyYAML"]
DOCS = ["sphinx", "furo", "myst-parser"]
BENCHMARKS = ["matplotlib", "optuna", "pyyaml", "scipy"]

setup(
    name="pyg-mmrec",
    version=read_version(),
    description="Multimodal recommendation on heterogeneous graphs with PyTorch Geometric",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    author="pyg_mmrec contributors",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords=["recommendation", "multimodal", "graph neural networks", "PyTorch Geometric"],
    packages=find_packages(include=["pyg_mmrec", "pyg_mmrec.*"]),
    package_data={"pyg_mmrec": ["py.typed"]},
    include_package_data=True,
    python_requires=">=3.10",
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "sparse": SPARSE,
        "gpu": GPU,
        "test": TEST,
        "dev": DEV,
        "docs": DOCS,
        "benchmarks": BENCHMARKS,
        "full": sorted({*SPARSE, *DEV, *DOCS, *BENCHMARKS}),
    },
    entry_points={"console_scripts": ["pyg-mmrec = pyg_mmrec.cli:main"]},
    zip_safe=False,
)
