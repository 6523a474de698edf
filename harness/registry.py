"""Find methods by name through the entry-point group ``cispbench.methods``; built-ins are found like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cispbench.harness.machine.environment import describe_distribution
from cispbench.harness.method import Method
from cispbench.harness.wrapper import Wrapper
from cispbench.splits.errors import MethodError, RecipeError
from cispbench.splits.plugins import Registry
from cispbench.splits.strict_fields import read_fields

METHODS: Registry[type[Method]] = Registry(
    "cispbench.methods",
    what="method",
    wanted="a subclass of cispbench.harness.method.Method",
    fits=lambda loaded: isinstance(loaded, type) and issubclass(loaded, Method),
    broken=MethodError,
)


def method_names() -> list[str]:
    """Return the names of all installed methods, sorted, without importing any."""
    return METHODS.names()


def describe_package(name: str) -> dict[str, object] | None:
    """Describe the installed package that a method comes from; None for methods that no package offers."""
    package = METHODS.package(name)
    return None if package is None else describe_distribution(package)


def load_method(name: str) -> type[Method]:
    """Import a method by name. Raises UsageError for an unknown name, MethodError for a broken plug-in."""
    return METHODS.load(name)


def read_options(cls: type[Method], values: Mapping[str, Any], place: str = "recipe", field: str = "method") -> Any:
    """Read a method's options from plain values, those of a wrapper's base too.

    A wrapper's ``base_options`` are then complete: what is not given has the base's default. Raises RecipeError naming
    ``place`` and ``field``, UsageError for a base that is not installed.
    """
    options = read_fields(cls.Options, values, place, RecipeError, field)
    if not issubclass(cls, Wrapper):
        return options
    base = read_options(load_method(options.base), options.base_options, place, f"{field}.base_options")
    # Read again, not replaced: options may compute with what they are given, and must not do so twice.
    return read_fields(cls.Options, {**values, "base_options": asdict(base)}, place, RecipeError, field)


def make_method(cls: type[Method], values: Mapping[str, Any]) -> Method:
    """Make a method from its options as plain values, a wrapper together with its base. Raises as ``read_options``."""
    options = read_options(cls, values)
    if not issubclass(cls, Wrapper):
        return cls(options)
    given = read_fields(cls.Options, values, "recipe", RecipeError, "method")
    return cls(options, make_method(load_method(given.base), given.base_options))
