"""Text that may come from anybody, as it can be shown: control and other invisible characters are spelled out."""

from __future__ import annotations

import unicodedata


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
