"""Whether a number counts the background: numbers that do and numbers that do not are never ranked together."""

from __future__ import annotations

from cispbench.results.conventions import Verdict
from cispbench.results.protocols import Protocol

WITH, WITHOUT, UNKNOWN = "+b", "-b", "b?"
# By the reading of a published row (see ``lint_row``); ``new`` has no background under any.
_COUNTED = {"old": ("both",), "new": (), "all": ("both", "old-without")}


def published_background(verdict: Verdict, name: str) -> bool | None:
    """Say whether a published row's ``old``, ``new`` or ``all`` counts the background; None where not known.

    By the likely reading of the row, else by all readings that fit, where they agree.
    """
    counted = _COUNTED[name]
    if not counted:
        return False
    fitting = (verdict.likely,) if verdict.likely else verdict.readings
    found = {reading in counted for reading in fitting}
    return found.pop() if len(found) == 1 else None


def measured_background(rules: Protocol, name: str) -> bool:
    """Say whether a measured ``old``, ``new`` or ``all`` counts the background under a protocol."""
    return {"old": rules.background_in_old, "new": False, "all": rules.background_in_all}[name]


def background_mark(counted: bool | None) -> str:
    """Return how a number counts the background, in two characters."""
    return UNKNOWN if counted is None else WITH if counted else WITHOUT
