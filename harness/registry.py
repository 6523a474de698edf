"""Find methods by name through the entry-point group ``cispbench.methods``; built-ins are found like any other."""

from __future__ import annotations

from cispbench.harness.machine.environment import describe_distribution
from cispbench.harness.method import Method
from cispbench.splits.errors import MethodError
from cispbench.splits.plugins import Registry

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
