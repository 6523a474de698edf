"""Find methods, models and data sets by name through entry points; built-in ones are found like any other.

A package offers a plug-in by a line in its ``pyproject.toml`` or ``setup.cfg``: the group, a name, and
``module:attribute``. Nothing is imported until a plug-in is asked for by its name.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from typing import Any, Generic, TypeVar, cast

from cispbench.splits.errors import CispbenchError, UsageError, describe_error, nearest

Plugin = TypeVar("Plugin")


class BrokenPluginWarning(UserWarning):
    """An installed plug-in that is left out of a list, because it cannot be loaded."""


@dataclass(frozen=True, eq=False)
class Registry(Generic[Plugin]):
    """The plug-ins of one entry-point group.

    ``what`` names one of them in messages ("method"), ``wanted`` says what an entry point must lead to, and ``fits``
    tests that. ``unknown`` is the error for a name that is not registered, ``broken`` the one for a bad plug-in.
    """

    group: str
    what: str
    wanted: str
    fits: Callable[[Any], bool]
    unknown: type[CispbenchError] = UsageError
    broken: type[CispbenchError] = CispbenchError
    _loaded: dict[tuple[str, tuple[str, ...]], Plugin] = field(default_factory=dict, init=False)

    def names(self) -> list[str]:
        """Return the names of all plug-ins, sorted, without importing any."""
        return sorted({entry.name for entry in self._entries()})

    def load(self, name: str) -> Plugin:
        """Import a plug-in by name.

        Raises ``unknown`` with the nearest name, and ``broken`` for a name that is registered twice, a target that
        cannot be imported, has the wrong type, or calls itself by another name: with the package to blame.
        """
        # Kept, because a table of thousands of records asks for its data set each time.
        place = (name, tuple(sys.path))
        if place not in self._loaded:
            self._loaded[place] = self._import(name)
        return self._loaded[place]

    def load_each(self) -> Iterator[tuple[str, Plugin | CispbenchError]]:
        """Yield every name with its plug-in, or with the error of a plug-in that is broken."""
        for name in self.names():
            try:
                yield name, self.load(name)
            except CispbenchError as error:
                yield name, error

    def load_all(self) -> list[Plugin]:
        """Return all plug-ins that can be loaded, by their names; the others are left out with a warning."""
        found: list[Plugin] = []
        for _, loaded in self.load_each():
            if isinstance(loaded, CispbenchError):
                warnings.warn(str(loaded), BrokenPluginWarning, stacklevel=2)
            else:
                found.append(loaded)
        return found

    def _import(self, name: str) -> Plugin:
        # A package may be seen twice, by its source folder and by its installation: the same target is no duplicate.
        found = {entry.value: entry for entry in self._entries() if entry.name == name}
        if not found:
            known = self.names()
            # An installation that is older than its code knows none of the group's built-in plug-ins.
            hint = nearest(name, known) if known else f"No {self.what} is installed: run `pip install -e .` again."
            raise self.unknown(f"unknown {self.what} {name!r}.", hint=hint)
        if len(found) > 1:
            targets = ", ".join(sorted(found))
            raise self.broken(
                f"the {self.what} {name!r} is registered more than once: {targets}.", hint="Uninstall one of them."
            )
        (entry,) = found.values()
        place = f"the {self.what} {name!r} ({entry.value})"
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "it"
        hint = f"Mend the package {package}, or uninstall it."
        try:
            loaded = entry.load()
        except Exception as error:
            raise self.broken(f"{place} cannot be imported: {_described(error)}.", hint=hint) from error
        if not self.fits(loaded):
            raise self.broken(f"{place} is not {self.wanted}.", hint=hint)
        if getattr(loaded, "name", None) != name:
            said = getattr(loaded, "name", None)
            raise self.broken(f"{place} calls itself {said!r}.", hint=f"Use one name. {hint}")
        return cast(Plugin, loaded)

    def package(self, name: str) -> metadata.Distribution | None:
        """Return the installed package that offers a plug-in, None for a name that is not registered."""
        return next((entry.dist for entry in self._entries() if entry.name == name), None)

    def _entries(self) -> tuple[metadata.EntryPoint, ...]:
        return _entry_points(self.group, tuple(sys.path))


def _described(error: Exception) -> str:
    """Return the kind of an error, the first line of its text, and the file and line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = describe_error(error)
    return text if isinstance(error, ImportError | AttributeError) else f"{text} ({last.filename}:{last.lineno})"


@lru_cache(maxsize=16)
def _entry_points(group: str, _path: tuple[str, ...]) -> tuple[metadata.EntryPoint, ...]:
    """Read the installed packages once for each state of ``sys.path``: that takes milliseconds."""
    return tuple(metadata.entry_points(group=group))
