"""What ``--set section.key=value`` says: read, checked, and with what may be meant by a wrong path."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cispbench.harness.method import Method
from cispbench.harness.models.catalogue import model_spec
from cispbench.harness.recipes.fields import OptimRecipe, Recipe
from cispbench.harness.recipes.merging import flat, merge, nested
from cispbench.harness.recipes.old_names import with_current_names
from cispbench.splits.errors import CispbenchError, RecipeError, closest, nearest
from cispbench.splits.strict_fields import refusal
from cispbench.splits.strict_yaml import parse_yaml


def parse_override(text: str) -> dict[str, Any]:
    """Read ``optim.lr=0.002`` as nested mappings. Raises RecipeError."""
    path, separator, value = text.partition("=")
    path = path.strip()
    if not separator or not all(path.split(".")):
        raise RecipeError(f"--set {text!r} is not of the form section.key=value.", hint="Example: --set optim.lr=0.002")
    try:
        found = parse_yaml(value, f"--set {text}")
    except CispbenchError as error:
        raise RecipeError(f"--set {text}: the value is not valid YAML.", hint="Quote it, or check brackets.") from error
    return with_current_names(nested(path, found), f"--set {text}")


def read_override(text: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Read an override as ``parse_override`` does, with the help of the types of ``kinds_of``. Raises RecipeError."""
    change = parse_override(text)
    if "model" in change:
        model_spec(str(change["model"]))  # an unknown name is an error of its own
        raise RecipeError(f"--set {text}: a model brings its family's recipe.", hint="Use --model instead.")
    path, _, word = (part.strip() for part in text.partition("="))
    kind = _type_of(path, kinds)
    # YAML reads ``true`` and ``1`` as no words, but an option may be a choice among words such as "true".
    if typing.get_origin(kind) is Literal and word in typing.get_args(kind):
        return nested(path, word)
    return change


def asked_of_bases(overrides: Sequence[str]) -> dict[str, Any]:
    """Return what ``--set`` says of a wrapper's base."""
    asked: dict[str, Any] = {}
    for text in overrides:
        if text.strip().startswith("method.base"):
            merge(asked, parse_override(text))
    found = asked.get("method")
    return found if isinstance(found, dict) else {}


def kinds_of(classes: Sequence[type[Method]]) -> dict[str, Any]:
    """Return the type of each section and value of a recipe; ``classes``: the method, then its bases."""
    options = {".".join(["method", *["base_options"] * depth]): cls.Options for depth, cls in enumerate(classes)}
    return typing.get_type_hints(Recipe) | {"later": OptimRecipe} | options


def check_paths(overrides: Sequence[str], kinds: Mapping[str, Any]) -> None:
    """Raise RecipeError for overrides whose path is in no recipe, with what may be meant in any of its sections."""
    inside = {
        section: [one.name for one in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
        for section, kind in kinds.items()
    }
    problems = []
    for text in overrides:
        path, separator, _ = text.partition("=")
        section, _, rest = current_path(path.strip()).partition(".")
        name = rest.partition(".")[0]
        if not separator or not section:  # of the wrong form, which ``parse_override`` says
            continue
        # Deeper parts of a path are read strictly later on.
        if section not in inside or (name and inside[section] and name not in inside[section]):
            problems.append(f"unknown key {path.strip()!r}. {_meant(section, name, inside)}")
    if problems:
        raise refusal("recipe", problems, RecipeError)


def current_path(path: str) -> str:
    """Return a dotted path with the names of today: ``optim.rates.encoder`` for ``optim.encoder_lr``."""
    return next(iter(flat(with_current_names(nested(path, None), path))))


def _meant(section: str, name: str, inside: Mapping[str, Sequence[str]]) -> str:
    """Return ``Did you mean 'optim.lr'?`` for ``lr``, ``data.lr`` and ``optim.lrr``, else what there is."""
    here = closest(name, inside.get(section, ()))
    if here:
        return f"Did you mean '{section}.{here}'?"
    places = {name: name for name in inside}
    for other in sorted(inside, key=lambda other: other != "optim"):  # of several sections this is meant most often
        places = {found: f"{other}.{found}" for found in inside[other]} | places
    close = closest(name or section, places)
    return f"Did you mean {places[close]!r}?" if close else nearest(name, inside.get(section) or inside)


def _type_of(path: str, kinds: Mapping[str, Any]) -> Any:
    section, _, name = path.rpartition(".")
    owner = OptimRecipe if section.partition(".")[0] in ("steps", "phases") else kinds.get(section)
    if not section or not dataclasses.is_dataclass(owner):
        return kinds.get(path)
    return typing.get_type_hints(owner).get(name)
