"""The named, versioned protocols: the rules by which papers count, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from cispbench.splits.errors import StoreError, UsageError, nearest
from cispbench.splits.strict_fields import read_fields
from cispbench.splits.strict_yaml import load_yaml

_PATH = Path(__file__).parent / "protocols.yaml"
Future = Literal["ignored", "background", "removed"]


@dataclass(frozen=True)
class Protocol:
    """The switches of a protocol; ``protocols.yaml`` says what each means.

    ``absent`` to ``void`` decide the score of a given confusion matrix; ``images`` to ``checkpoint`` decide which
    predictions are counted in one, so a matrix made under other values of these stays comparable only in part.
    """

    name: str
    version: int
    source: str
    absent: Literal["dropped", "zero", "zero if predicted"]
    forgotten: Literal["kept", "dropped"]
    background_in_old: bool
    background_in_all: bool
    future: Future
    void: Literal["ignored", "class 0"]
    images: Literal["all", "seen"]
    view: Literal["crop", "full"]
    size: int
    checkpoint: Literal["last", "best"]
    future_on: Mapping[str, Future] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.size > 0) != (self.view == "crop"):
            raise StoreError(f"protocol {self.name}: view {self.view!r} does not go with size {self.size}.")


def load_protocol(name: str) -> Protocol:
    """Return a protocol by name. Raises UsageError with the nearest name."""
    known = _protocols()
    if name not in known:
        raise UsageError(f"unknown protocol {name!r}.", hint=nearest(name, known))
    return known[name]


def protocol_names() -> list[str]:
    """Return the names of all protocols, the default ``strict`` first."""
    return list(_protocols())


@cache
def _protocols() -> dict[str, Protocol]:
    entries = load_yaml(_PATH)
    return {name: read_fields(Protocol, {"name": name, **entry}, f"{_PATH} {name}") for name, entry in entries.items()}
