"""Text that may come from anybody, as it can be shown: what is invisible is spelled out, what is long is cut."""

from __future__ import annotations

import unicodedata

LONGEST = 80  # characters of a value that an error shows


def printable(text: str) -> str:
    """Return a text with its control and other invisible characters spelled out.

    Names in records and of files may come from anybody. Printed as they are, such characters could control the
    terminal or hide a part of the text; lone surrogates cannot be printed at all.

    >>> printable("mib\\x1b[2J")
    'mib\\\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii") if unicodedata.category(character)[0] == "C" else character
        for character in text
    )


def shown(value: object) -> str:
    """Return a value as an error shows it: on one line, in ASCII, cut where it is long."""
    try:
        return cut(ascii(value))
    except ValueError:  # Python writes out no number of more than some thousand digits
        return "a number of thousands of digits"


def cut(text: str) -> str:
    """Return a text as an error shows it: cut where it is long."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
