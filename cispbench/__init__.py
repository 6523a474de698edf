"""cispbench: benchmark harness and leaderboard reproducer for class-incremental semantic segmentation.

``__version__`` is the version of the installed package. Importing this package loads nothing else; the parts are
``cispbench.splits`` (settings and data splits), ``cispbench.results`` (records, scores, published numbers),
``cispbench.reports`` (tables, leaderboard, plots), ``cispbench.harness`` (training and testing) and
``cispbench.methods`` (the methods that come with it).

>>> import cispbench
>>> cispbench.__version__.count(".")
2
"""

from __future__ import annotations

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """Read the version when it is asked for: looking it up costs more than the rest of this package."""
    if name == "__version__":
        from importlib.metadata import version

        return version("cispbench")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
