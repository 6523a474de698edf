"""The errors that cispbench raises on purpose: all are CispbenchError, and say what happened and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CispbenchError(Exception):
    """Say what happened, with which value and where; ``hint`` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class UsageError(CispbenchError):
    """A name, option or value that the command line does not know."""

    exit_code = 2


class SettingError(UsageError):
    """A setting, task or order that fits no data set."""


class RecipeError(UsageError):
    """An unknown key or a value of the wrong type in a recipe or an override."""


class DataError(CispbenchError):
    """An image, mask or list file that is missing or breaks a rule of its data set."""


class WeightsError(CispbenchError):
    """Weights that are missing, unreadable, or of another architecture."""


class MethodError(CispbenchError):
    """A method that cannot serve a setting or model, or breaks the interface."""


class StoreError(CispbenchError):
    """A store, record or step folder that cannot be read or written."""


class RunError(CispbenchError):
    """A run that cannot go on."""


def describe_error(error: BaseException) -> str:
    """Return the kind of any error and the first line of its text, without the full stop."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": .")


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``Did you mean 'x'?`` for the closest choice, else the list of all choices."""
    known = sorted(choices)
    close = closest(name, known)
    return f"Did you mean {close!r}?" if close else "Known: " + ", ".join(known) + "."


def closest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that is written most like ``name``, None if none is close. Capitals make no difference."""
    by_small = {choice.lower(): choice for choice in reversed(list(choices))}  # of two equal ones the first
    close = difflib.get_close_matches(name.lower(), by_small, n=1)
    return by_small[close[0]] if close else None
