"""Class names and the customary palettes of the data sets, by class number."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from cispbench.splits.datasets import dataset
from cispbench.splits.errors import CispbenchError
from cispbench.splits.strict_yaml import load_yaml

_PATH = Path(__file__).parent / "classes.yaml"


@cache
def class_names(name: str) -> tuple[str, ...]:
    """Return the names of a data set's classes; place 0 is ``background``. Raises SettingError on an unknown name."""
    count = dataset(name).classes
    names = tuple(_tables()[name]["names"])
    if len(names) != count:
        raise CispbenchError(f"{_PATH}: {name} has {len(names)} names for {count} classes.")
    return ("background", *names)


@cache
def palette(name: str) -> tuple[tuple[int, int, int], ...]:
    """Return red, green, blue (0..255) of every class number, background first. Raises SettingError as above."""
    count = dataset(name).classes + 1
    colours = tuple((int(text[:2], 16), int(text[2:4], 16), int(text[4:], 16)) for text in _tables()[name]["palette"])
    if len(colours) != count:
        raise CispbenchError(f"{_PATH}: {name} has {len(colours)} colours for {count} classes.")
    return colours


@cache
def _tables() -> dict[str, dict[str, list[str]]]:
    tables: dict[str, dict[str, list[str]]] = load_yaml(_PATH)
    return tables
