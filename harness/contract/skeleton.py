"""A new method as a package of its own: a file with the method, its recipe, and the entry point that makes it known.

The method is made of one template and of parts, one for each mechanism that it begins with; or it is a wrapper.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from string import Template

from cispbench.harness.registry import load_method, method_names
from cispbench.results.atomic import make_folder, write_atomic
from cispbench.splits.errors import StoreError, UsageError

TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9_]*")

ABC, DATA, TYPING, METHOD = "collections.abc", "dataclasses", "typing", "cispbench.harness.method"
SETTINGS, WRAPPER, LOSSES = "cispbench.splits.settings", "cispbench.harness.wrapper", "cispbench.methods.losses"
Names = Mapping[str, tuple[str, ...]]  # what is imported, by its module
PLAIN: Names = {
    DATA: ("dataclass",),
    TYPING: ("Annotated",),
    "torch": ("Tensor",),
    "torch.nn": ("functional",),
    METHOD: ("Batch", "Output", "Range", "StepContext"),
}
# What a method may begin with, by the word after --with: the names that its template ``with_<word>.txt`` reads.
PARTS: Mapping[str, Names] = {
    "gradients": {ABC: ("Iterable", "Mapping"), TYPING: ("Any",)},  # first, because it has an __init__
    "memory": {ABC: ("Iterable", "Sequence"), METHOD: ("Exemplar", "Memory")},
    "companions": {DATA: ("replace",), METHOD: ("VOID", "Companion"), SETTINGS: ("Setting",)},
    "scores": {},
    "phases": {SETTINGS: ("Setting",)},
}
# More lines of a recipe's layer.
RECIPE_LINES = {"phases": "    phases: {head: {rates: {encoder: 0, decoder: 0, old: 0, new: 1}}}"}


def write_skeleton(name: str, folder: Path, parts: Sequence[str] = (), base: str | None = None) -> list[Path]:
    """Write the package of a method called ``name`` into a new folder of that name, and return its files.

    ``parts``: which of ``PARTS`` it begins with. ``base``: the method that it wraps, which is then all that it begins
    with. Raises UsageError for a name that is none or taken, for a base that is not installed and for one with parts;
    StoreError where the folder exists or cannot be written.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UsageError(
            f"{name!r} is no name for a method.",
            hint="Use lower-case letters, digits and underscores, beginning with a letter.",
        )
    if name in method_names():
        raise UsageError(f"there is a method {name!r} already.", hint="Choose another name, or uninstall that one.")
    if base is not None:
        if parts:
            raise UsageError(
                "--wraps and --with do not go together: a wrapper has what its base has.",
                hint="Leave one of them out.",
            )
        load_method(base)
    root = folder / name
    if root.exists():
        raise StoreError(f"{root} exists already.", hint="Choose another --dir, or move it away.")
    package = f"cispbench_{name}"
    words = {
        "name": name,
        "cls": "".join(part.capitalize() for part in name.split("_")),
        "package": package,
        "distribution": f"cispbench-{name.replace('_', '-').strip('-')}",
        "base": base or "",
        "imports": _imports(parts, base),
        "parts": "".join(_template(f"with_{part}") for part in PARTS if part in parts),
        "more": "\n".join(RECIPE_LINES[part] for part in RECIPE_LINES if part in parts),
    }
    files = {
        root / "pyproject.toml": "pyproject.toml",
        root / package / "__init__.py": "package.py",
        root / package / "method.py": "method.py" if base is None else "wrapper.py",
        root / package / "recipes" / f"{name}.yaml": "recipe.yaml",
    }
    for path, template in files.items():
        make_folder(path.parent)
        text = Template(_template(template)).substitute(words)
        write_atomic(path, re.sub(r"\n\n+(?=quick:)|\n\n+\Z", "\n", text).encode())
    return list(files)


def _template(name: str) -> str:
    return (TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")


def _imports(parts: Sequence[str], base: str | None) -> str:
    """Return the import lines of a method, in the order that formatters expect."""
    own: Names = {WRAPPER: ("Wrapper", "WrapperOptions")} if base else {METHOD: ("Method",)}
    losses: Names = {} if base else {LOSSES: ("cross_entropy", "labelled_pixels")}
    found: dict[str, set[str]] = {}
    for names in (PLAIN, own, losses, *(PARTS[part] for part in parts)):
        for module, wanted in names.items():
            found.setdefault(module, set()).update(wanted)
    blocks = (
        [module for module in found if module in (ABC, DATA, TYPING)],
        [module for module in found if module.startswith("torch")],
        [module for module in found if module.startswith("cispbench")],
    )
    return "\n\n".join("\n".join(_import(module, found[module]) for module in sorted(block)) for block in blocks)


def _import(module: str, names: Collection[str]) -> str:
    # Constants first, then classes, then functions.
    ordered = sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
    line = f"from {module} import {', '.join(ordered)}"
    if len(line) <= 88:
        return line
    return "\n".join([f"from {module} import (", *(f"    {name}," for name in ordered), ")"])
