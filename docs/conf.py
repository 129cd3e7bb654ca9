"""Settings of Sphinx."""

from __future__ import annotations

from pyg_mmrec import __version__

project = "pyg_mmrec"
author = "pyg_mmrec contributors"
copyright = author
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = f"pyg_mmrec {release}"

autodoc_default_options = {"members": True, "member-order": "bysource", "no-value": True}
autodoc_typehints = "none"  # the docstrings say types, and more of them
napoleon_custom_sections = ["Shapes"]

# A reference to something of this library that is not there is an error.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!pyg_mmrec).*")]
