"""Configuration of the documentation site: Sphinx, with pages in Markdown (MyST).

Build it from the root of a checkout with ``sphinx-build -W -b html docs docs/_build``. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # Sphinx does not put the folder of conf.py there

from generate import generate  # noqa: E402

project = "cispbench"
author = "The cispbench developers"
copyright = author
version = release = installed_version("cispbench")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "generated/site"]
myst_heading_anchors = 3
smartquotes = False  # would turn "--set" into a dash

autodoc_member_order = "bysource"

html_theme = "furo"
html_title = "cispbench"
html_extra_path = ["generated/site"]  # the leaderboard's own page, copied as it is
html_show_sphinx = False


def setup(app: Any) -> None:
    """Write the pages that are made from code and data before Sphinx looks for pages."""
    generate(HERE / "generated")
