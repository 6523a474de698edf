"""Find methods by name through the entry-point group ``cispbench.methods``; built-ins are found like any other."""

from __future__ import annotations

from importlib import metadata

from cispbench.harness.method import Method
from cispbench.splits.errors import MethodError, UsageError, nearest

GROUP = "cispbench.methods"


def method_names() -> list[str]:
    """Return the names of all installed methods, sorted, without importing any."""
    return sorted({entry.name for entry in metadata.entry_points(group=GROUP)})


def load_method(name: str) -> type[Method]:
    """Import a method by name. Raises UsageError for an unknown name, MethodError for a broken plug-in."""
    found = {(entry.value, entry.name): entry for entry in metadata.entry_points(group=GROUP, name=name)}
    if not found:
        raise UsageError(f"unknown method {name!r}.", hint=nearest(name, method_names()))
    if len(found) > 1:
        targets = ", ".join(sorted(value for value, _ in found))
        raise MethodError(
            f"the method {name!r} is registered more than once: {targets}.", hint="Uninstall one of them."
        )
    (entry,) = found.values()
    try:
        loaded = entry.load()
    except (ImportError, AttributeError) as error:
        raise MethodError(f"the method {name!r} ({entry.value}) cannot be imported: {error}.") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Method)):
        raise MethodError(f"the method {name!r} ({entry.value}) is not a subclass of cispbench.harness.method.Method.")
    if getattr(loaded, "name", None) != name:
        raise MethodError(f"the entry point {name!r} leads to a class whose name is {getattr(loaded, 'name', None)!r}.")
    return loaded
