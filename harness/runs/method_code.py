"""The digest of a method's code, by which a run notices that a method was edited.

The code of a method is its own module and all modules that it imports, directly or not, from its own top-level package
and from ``cispbench.methods``. They are found by their import statements, so that what is imported inside a function
counts too. Comments, docstrings and layout do not count: they must not make anybody train again.

Not seen are modules whose names are put together at run time, data files, and other packages.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from cispbench.harness.method import Method
from cispbench.harness.wrapper import Wrapper

UNKNOWN = "unknown"  # instead of a digest, where no source is found: a class that was typed in, for example
BUILT_IN = "cispbench.methods"
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class _NoSourceError(Exception):
    """A module without a file and without a source."""


def is_built_in(method: type[Method]) -> bool:
    """Return whether the method comes with cispbench; the version alone then stands for its code in a key."""
    return method.__module__.startswith(f"{BUILT_IN}.")


@cache  # for a process: it is the code as it was loaded that trains, not the file as it is edited later
def method_code(method: type[Method]) -> str:
    """Return the SHA-256 of the code of a method, or UNKNOWN."""
    classes = [cls for cls in method.__mro__ if issubclass(cls, Method) and cls is not Method]
    own = {cls.__module__ for cls in classes}
    roots = {name.partition(".")[0] for name in own} - {"cispbench"} | {BUILT_IN}
    digests: dict[str, str] = {}
    waiting = sorted(own)
    try:
        while waiting:
            name = waiting.pop()
            if name in digests:
                continue
            digests[name], imported = _read(name, required=name in own)
            waiting += [other for other in imported if any(f"{other}.".startswith(f"{root}.") for root in roots)]
    except _NoSourceError:
        return UNKNOWN
    return hashlib.sha256(repr(sorted(entry for entry in digests.items() if entry[1])).encode()).hexdigest()


def code_of(method: Method) -> str:
    """Return the digest of a method's code, of a wrapper together with its base's; UNKNOWN where one has none."""
    codes = [method_code(type(one)) for one in with_bases(method)]
    if len(codes) == 1 or UNKNOWN in codes:
        return UNKNOWN if UNKNOWN in codes else codes[0]
    return hashlib.sha256(repr(codes).encode()).hexdigest()


def with_bases(method: Method) -> tuple[Method, ...]:
    """Return a method alone, or a wrapper, its base, and so on."""
    return (method, *with_bases(method.base)) if isinstance(method, Wrapper) else (method,)


def _read(name: str, required: bool) -> tuple[str, tuple[str, ...]]:
    """Return the digest of a module and the names that it imports; "" for what is no module or has no code.

    Raises _NoSourceError for a module that is there, or ``required``, and has no source.
    """
    spec, file = _spec(name), getattr(sys.modules.get(name), "__file__", None)
    if spec is None and file is None:  # ``from module import constant``, or an optional module that is missing
        if required:
            raise _NoSourceError(name)
        return "", ()
    origin = Path(file or (spec and spec.origin) or "")
    if origin.is_file():
        content = origin.read_bytes()
        is_python = origin.suffix == ".py"
    elif spec is not None and (read := getattr(spec.loader, "get_source", None)) is not None:  # in a zip file
        content, is_python = (read(name) or "").encode(), True
    elif spec is not None and spec.submodule_search_locations is not None:  # a folder without __init__.py
        return "", ()
    else:
        raise _NoSourceError(name)
    if not is_python:  # compiled
        return hashlib.sha256(content).hexdigest(), ()
    try:
        tree = ast.parse(content)
        is_package = spec is not None and spec.submodule_search_locations is not None
        imported = tuple(_imports(tree, name if is_package else name.rpartition(".")[0]))
        return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest(), imported
    except (SyntaxError, ValueError, RecursionError):
        return hashlib.sha256(content).hexdigest(), ()


def _spec(name: str) -> ModuleSpec | None:
    """Return the spec of a module, loaded or not. Nothing is imported for it, the packages around it neither."""
    module = sys.modules.get(name)
    if module is not None:
        return getattr(module, "__spec__", None)
    parent = name.rpartition(".")[0]
    package = _spec(parent) if parent else None
    path = package.submodule_search_locations if package else None
    if parent and path is None:
        return None
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    specs = (find(name, path) for find in finders if find is not None)
    return next((spec for spec in specs if spec is not None), None)


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield every module that may be meant by the import statements of a module in ``package``, parents included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _plain(node: Any) -> Any:
    """Return a syntax tree as nested tuples, without docstrings, positions and empty fields.

    Not ``ast.dump``: its text differs between versions of Python.
    """
    if isinstance(node, list):
        return tuple([_plain(item) for item in node])
    if not isinstance(node, ast.AST):
        return node
    fields = dict(ast.iter_fields(node))
    if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    kept = {name: value for name, value in fields.items() if value not in (None, []) and name != "kind"}
    return (type(node).__name__, *((name, _plain(value)) for name, value in kept.items()))
