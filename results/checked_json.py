"""JSON files that carry the SHA-256 sum of their own content, so that damage and edits by hand are noticed.

The sum stands in the second line of the file, as the first member of the object, and covers every byte after that line.
It protects against disks, copies and slips of the hand. It does not protect against forgery: whoever knows this format
can write a new sum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cispbench.results.atomic import write_atomic
from cispbench.splits.plain_files import read_plain
from cispbench.splits.printable import shown

_OPENING, _HEAD, _TAIL = b"{\n", b'{\n "sha256": "', b'",\n'
_HEX = 64  # digits of a SHA-256 sum
_HEAD_BYTES = len(_HEAD) + _HEX + len(_TAIL)


class ChecksumError(ValueError):
    """A file whose content is not what was written. The message begins with "it" and names no file."""


def add_checksum(text: str) -> bytes:
    """Return the bytes of a JSON text with its checksum.

    ``text``: an object with one member a line and at least one member. Raises ValueError for another form.
    """
    data = text.encode()
    if not data.startswith(_OPENING) or data.startswith(b"{\n}"):
        raise ValueError("the text is not an object with one member a line")
    content = data[len(_OPENING) :]
    return _HEAD + hashlib.sha256(content).hexdigest().encode() + _TAIL + content


def has_checksum(data: bytes) -> bool:
    """Return whether the bytes of a file begin as ``add_checksum`` writes them."""
    return data.startswith(_HEAD) and data[len(_HEAD) + _HEX : _HEAD_BYTES] == _TAIL


def verify_checksum(data: bytes) -> None:
    """Raise ChecksumError unless the bytes of a file carry a checksum and it is right."""
    if not has_checksum(data):
        raise ChecksumError("it carries no checksum")
    stated = data[len(_HEAD) : len(_HEAD) + _HEX]
    if hashlib.sha256(memoryview(data)[_HEAD_BYTES:]).hexdigest().encode() != stated:
        raise ChecksumError("it is not what was written: its checksum does not match")


def write_checked(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping to ``path``, whose folder must exist, with its checksum. Raises StoreError."""
    write_atomic(path, add_checksum(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"))


def read_checked(path: Path) -> dict[str, Any]:
    """Return the mapping that ``write_checked`` wrote. Raises OSError as ``read_plain`` does, and ChecksumError."""
    return parse_checked(read_plain(path))


def parse_checked(data: bytes) -> dict[str, Any]:
    """Return the mapping that the bytes of a file hold. Raises ChecksumError if they are not what was written."""
    verify_checksum(data)
    try:
        content = loads_once(data.decode())
    except ValueError as error:
        raise ChecksumError(f"it is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ChecksumError("it is not a JSON object")
    del content["sha256"]
    return content


def loads_once(text: str) -> Any:
    """Parse JSON text. Raises ValueError for text that is not JSON or has a key twice in one object.

    Python's own parser takes the last of two equal keys, other parsers take the first: such a file has two meanings.
    """
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON by its members. Raises ValueError for a key that occurs twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} occurs twice")
    return content
