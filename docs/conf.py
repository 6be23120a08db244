"""Sphinx configuration: `sphinx-build -W --keep-going docs docs/_build`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import efficient_vits  # noqa: E402 (found through the path above)

project = "efficient_vits"
author = "the efficient_vits contributors"
copyright = author
version = release = efficient_vits.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "generated",
    "generated_results",
    "generated_learning",
]
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]

html_theme = "furo"
html_title = f"efficient_vits {release}"
html_copy_source = False

# Notebooks are committed without outputs; tests/docs runs them.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# A name in single backticks links to its entry where it has one, and is code everywhere.
default_role = "py:obj"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
