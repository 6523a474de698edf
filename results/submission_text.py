"""Read JSON from an untrusted file: its size, depth, numbers and texts are checked before it is used."""

from __future__ import annotations

import hashlib
import json
import math
import re
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

from cispbench.results.checked_json import unique_keys
from cispbench.splits.errors import StoreError
from cispbench.splits.plain_files import open_plain
from cispbench.splits.printable import shown

MAX_BYTES = 32 * 1024**2  # 150 steps of ADE20K's 151 x 151 counts take half of it
MAX_DEPTH = 16
MAX_WHOLE = 2**53  # beyond it counts are not exact as float64, which scores are computed in
MAX_TEXT = 4096
MAX_NAME = 128
_BRACKETS = {"[": 1, "{": 1, "]": -1, "}": -1}
# Control characters except tab and newline, marks that are invisible or change the direction of writing (they can make
# a name look like another), and lone surrogates, which cannot be written as UTF-8.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff0-\uffff]"
)


def read_untrusted(path: Path) -> Any:
    """Return what a file of JSON holds, as ``parse_untrusted`` does. Raises StoreError naming the file."""
    try:
        with open_plain(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"cannot read {path}: {reason}.", hint="Check its name and permissions.") from error
    return parse_untrusted(content, str(path))


def parse_untrusted(content: bytes, place: str) -> Any:
    """Return the value of JSON text.

    Refused, each by a StoreError that names ``place``: more than MAX_BYTES, what is not UTF-8 or not JSON, values
    nested deeper than MAX_DEPTH, a key that occurs twice, NaN and infinities (also as 1e999), whole numbers beyond
    MAX_WHOLE, texts longer than MAX_TEXT or keys longer than MAX_NAME, and characters that hide or turn text.
    """
    if len(content) > MAX_BYTES:
        raise StoreError(f"{place} is larger than {MAX_BYTES // 1024**2} MiB.")
    try:
        text = content.decode("utf-8")
        depth = _depth(text)
        if depth > MAX_DEPTH:
            raise StoreError(f"{place} nests values {depth} deep; {MAX_DEPTH} is the limit.")
        value = json.loads(
            text, parse_int=_whole, parse_float=_finite, parse_constant=_no_constant, object_pairs_hook=unique_keys
        )
        _check_texts(value)
    except UnicodeDecodeError as error:
        raise StoreError(f"{place} is no UTF-8 text (byte {error.start}).") from error
    except json.JSONDecodeError as error:
        raise StoreError(f"{place} is not valid JSON: {error}.") from error
    except ValueError as error:
        raise StoreError(f"{place}: {error}.") from error
    return value


def content_digest(value: Any) -> str:
    """Return the SHA-256 (hexadecimal) of a JSON value, whatever its layout and the order of its keys."""
    # Stored in submissions and keys: another separator or order would make all of them invalid.
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _depth(text: str) -> int:
    """Return how deep brackets nest, without a parser: one that recurses could exhaust the stack."""
    # In JSON, backslashes occur in strings only. With escaped backslashes and quotes removed, every second part between
    # quotes is outside of strings. Text that is no JSON may be counted wrongly; the parser refuses it afterwards.
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    brackets = re.sub(r"[^\[\]{}]+", "", outside)
    return max(accumulate(map(_BRACKETS.__getitem__, brackets)), default=0)


def _whole(text: str) -> int:
    if len(text) > len(str(-MAX_WHOLE)) or abs(int(text)) > MAX_WHOLE:
        raise ValueError(f"the number {shown(text)} is beyond {MAX_WHOLE}")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(text)} is too large")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _check_texts(value: Any) -> None:
    if isinstance(value, str):
        _check_text(value, MAX_TEXT)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, (str, list, dict)):
                _check_texts(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_text(name, MAX_NAME)
            _check_texts(item)


def _check_text(text: str, most: int) -> None:
    if len(text) > most:
        raise ValueError(f"the text {shown(text)} has {len(text)} characters; {most} is the limit")
    hidden = _HIDDEN.search(text)
    if hidden is not None:
        raise ValueError(f"the text {shown(text)} holds the character U+{ord(hidden[0]):04X}")
