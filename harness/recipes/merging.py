"""Parts of a recipe as nested mappings: how one is put over another, and their values by dotted path."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from cispbench.harness.recipes.old_names import optim_sections


def merge(target: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Put ``changes`` into ``target``, section by section. Setting epochs removes iterations, and vice versa."""
    _put(target, changes)
    removed = _removed(changes)
    for path, section in optim_sections(target):
        for name in ("epochs", "iterations"):
            if isinstance(section, dict) and f"{path}.{name}" in removed:
                section.pop(name, None)


def _put(target: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _put(target[key], value)
        else:
            target[key] = copy.deepcopy(value)  # a later merge into ``target`` must not change the cached layer


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, by dotted path; lists are values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def nested(path: str, value: Any) -> dict[str, Any]:
    """Return a value by its dotted path as nested mappings: the opposite of ``flat``."""
    for key in reversed(path.split(".")):
        value = {key: value}
    made: dict[str, Any] = value
    return made


def decided(changes: Mapping[str, Any]) -> list[str]:
    """Return the paths that a layer decides: those that it sets, and those that it removes."""
    return [*flat(changes), *_removed(changes)]


def _removed(changes: Mapping[str, Any]) -> list[str]:
    """Return what a layer removes: iterations where it sets epochs, epochs where it sets iterations."""
    return [
        f"{path}.{other}"
        for path, section in optim_sections(changes)
        for name, other in (("epochs", "iterations"), ("iterations", "epochs"))
        if isinstance(section, Mapping) and section.get(name) is not None and other not in section
    ]
