"""Names of a recipe's values before there were ``rates``: records, keys and older recipe files have them.

``encoder_lr`` and ``classifier_lr`` of the section ``optim`` are now ``rates.encoder`` and ``rates.classifier``, in
``later``, ``steps`` and ``phases``, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from cispbench.splits.errors import RecipeError

SELECTORS = {"encoder_lr": "encoder", "classifier_lr": "classifier"}  # what each old name is a rate of


def optim_sections(part: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the sections of a part of a recipe that hold fields of ``optim``, each with its dotted name."""
    yield from ((name, part[name]) for name in ("optim", "later") if name in part)
    for name in ("steps", "phases"):
        if isinstance(part.get(name), Mapping):
            yield from ((f"{name}.{key}", section) for key, section in part[name].items())


def with_current_names(part: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return a part of a recipe with the names of today, and the numbers of ``steps`` as words.

    Raises RecipeError, naming ``place``, where a value is given by its old name and by its new one.
    """
    return _with_sections(part, partial(_current, place))


def with_old_names(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of a recipe with the old names, as records and keys hold it."""
    return _with_sections(part, _old)


def _with_sections(part: Mapping[str, Any], change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    made = dict(part)
    for name in ("steps", "phases"):
        if isinstance(made.get(name), Mapping):
            made[name] = {str(key): section for key, section in made[name].items()}  # YAML reads ``1:`` as a number
    for path, section in list(optim_sections(made)):
        if isinstance(section, Mapping):  # else it is refused where types are read
            name, _, key = path.partition(".")
            if key:
                made[name][key] = change(section)
            else:
                made[name] = change(section)
    return made


def _current(place: str, section: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in section.items() if key not in SELECTORS}
    renamed = {SELECTORS[key]: value for key, value in section.items() if key in SELECTORS}
    rates = kept.get("rates", {})
    if not renamed or not isinstance(rates, Mapping):
        return kept
    if twice := sorted(renamed.keys() & rates.keys()):
        raise RecipeError(
            f"{place}: {twice[0]}_lr and rates.{twice[0]} are both given, and they are the same.",
            hint="Keep rates alone.",
        )
    return {**kept, "rates": {**rates, **renamed}}


def _old(section: Mapping[str, Any]) -> dict[str, Any]:
    rates = dict(section.get("rates", {}))
    renamed = {old: rates.pop(selector) for old, selector in SELECTORS.items() if selector in rates}
    kept = {key: value for key, value in section.items() if key != "rates"}
    return {**kept, **renamed, **({"rates": rates} if rates else {})}
