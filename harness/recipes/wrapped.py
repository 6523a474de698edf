"""The recipe files of a wrapper and of the method that it changes, its base, as one list of layers.

The base's layers come first. What they say of ``method`` goes to ``method.base_options``: it is the base's. The base's
name is found before anything else, as the model's is: the last layer of the wrapper's own file that names one says it,
or ``--set method.base=...``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from cispbench.harness.method import Method
from cispbench.harness.recipes.recipe_files import conditions_hold, read_layers, recipe_file
from cispbench.harness.registry import load_method
from cispbench.harness.wrapper import Wrapper
from cispbench.splits.errors import RecipeError, UsageError
from cispbench.splits.settings import Setting

Layers = list[dict[str, Any]]
NO_BASE = "none"  # what ``base_is`` is compared with for a method that is no wrapper


def layers_with_bases(
    method: type[Method], profile: str, setting: Setting, asked: Mapping[str, Any]
) -> tuple[Layers, list[type[Method]]]:
    """Return the layers of a method's file below those of its base, and the classes: itself, its base, and so on.

    ``asked``: the options that ``--set`` gives. Layers whose ``base_is`` does not hold are left out.
    Raises RecipeError for a wrapper without a base, or with one that is not installed.
    """
    own = read_layers(recipe_file(method), profile, method.Options)
    if not issubclass(method, Wrapper):
        return _of_base(own, NO_BASE), [method]
    base = _base_of(method, own, setting, asked)
    below = asked.get("base_options")
    layers, classes = layers_with_bases(
        _load_base(method, base), profile, setting, below if isinstance(below, dict) else {}
    )
    return [*map(_as_base_options, layers), *_of_base(own, base)], [method, *classes]


def base_class(method: type[Method], options: Mapping[str, Any]) -> type[Method] | None:
    """Return the class of the base that a wrapper's options name, None for a method that is no wrapper."""
    return load_method(options["base"]) if issubclass(method, Wrapper) else None


def _load_base(method: type[Method], name: str) -> type[Method]:
    try:
        return load_method(name)
    except UsageError as error:  # it names no option, and ``--method`` was another name
        raise RecipeError(f"method.base of {method.name}: {error.message}", hint=error.hint) from error


def _of_base(layers: Layers, base: str) -> Layers:
    return [layer for layer in layers if conditions_hold(layer, {"base_is": base})]


def _as_base_options(layer: dict[str, Any]) -> dict[str, Any]:
    return {**layer, "method": {"base_options": layer["method"]}} if "method" in layer else layer


def _base_of(method: type[Method], layers: Sequence[Mapping[str, Any]], setting: Setting, asked: Any) -> str:
    """Return the base's name. Conditions on the model or the base are not known yet, and left out."""
    facts = {"dataset": setting.dataset, "setting": setting.name}
    named = [entry.default for entry in fields(method.Options) if entry.name == "base" and entry.default is not MISSING]
    named += [layer["method"]["base"] for layer in layers if "base" in layer.get("method", {})
              and conditions_hold(layer, facts)]  # fmt: skip
    named += [asked["base"]] if "base" in asked else []
    if not named:
        raise RecipeError(
            f"{method.name} changes another method, and no recipe says which.", hint="Example: --set method.base=mib"
        )
    return str(named[-1])
