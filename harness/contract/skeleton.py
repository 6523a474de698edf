"""A new method as a package of its own: a file with the method, its recipe, and the entry point that makes it known."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from cispbench.harness.registry import method_names
from cispbench.results.atomic import make_folder, write_atomic
from cispbench.splits.errors import StoreError, UsageError

TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def write_skeleton(name: str, folder: Path) -> list[Path]:
    """Write the package of a method called ``name`` into a new folder of that name, and return its files.

    Raises UsageError for a name that is none or taken, StoreError where the folder exists or cannot be written.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UsageError(
            f"{name!r} is no name for a method.",
            hint="Use lower-case letters, digits and underscores, beginning with a letter.",
        )
    if name in method_names():
        raise UsageError(f"there is a method {name!r} already.", hint="Choose another name, or uninstall that one.")
    root = folder / name
    if root.exists():
        raise StoreError(f"{root} exists already.", hint="Choose another --dir, or move it away.")
    package = f"cispbench_{name}"
    words = {
        "name": name,
        "cls": "".join(part.capitalize() for part in name.split("_")),
        "package": package,
        "distribution": f"cispbench-{name.replace('_', '-').strip('-')}",
    }
    files = {
        root / "pyproject.toml": "pyproject.toml",
        root / package / "__init__.py": "package.py",
        root / package / "method.py": "method.py",
        root / package / "recipes" / f"{name}.yaml": "recipe.yaml",
    }
    for path, template in files.items():
        text = (TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")
        make_folder(path.parent)
        write_atomic(path, Template(text).substitute(words).encode())
    return list(files)
