"""Read YAML by the rules of version 1.2: ``1e-5`` is a number, ``no`` and ``15_1`` are words. Repeated keys are errors.

PyYAML's own values follow YAML 1.1, which reads ``1e-5`` as text, ``15_1`` as 151, ``no`` as False and ``10:30`` as
630. Therefore only its parser is used here, and values are made from the parser's events. That needs no recursion, and
gives every refusal its line: tags (``!!int``), keys that are no plain values, numbers that no computer word holds,
values that are nested deeply, and aliases that make a small file a huge value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cispbench.splits.errors import CispbenchError
from cispbench.splits.plain_files import read_plain
from cispbench.splits.printable import LONGEST, shown
from cispbench.splits.strict_fields import MAX_WHOLE

MAX_BYTES = 16 * 1024**2
MAX_DEPTH = 32
MAX_VALUES = 1_000_000  # of one document, with every alias written out
_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{sign + dot: float(sign + "inf") for sign in ("", "-", "+") for dot in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
_WHOLE = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _RefusedError(Exception):
    """What is wrong, and at which mark of the text."""

    def __init__(self, what: str, mark: Any) -> None:
        super().__init__(what)
        self.mark = mark


@dataclass
class _Open:
    """A list or mapping that is not complete: ``size`` counts its values, and ``key`` is the one without a value."""

    value: Any
    anchor: str | None
    size: int = 1
    key: list[Any] = field(default_factory=list)

    def add(self, value: Any, size: int, mark: Any) -> None:
        self.size += size
        if self.size > MAX_VALUES:
            raise _RefusedError(f"there are more than {MAX_VALUES:,} values", mark)
        if isinstance(self.value, list):
            self.value.append(value)
        elif self.key:
            self.value[self.key.pop()] = value
        elif isinstance(value, (list, dict)):
            raise _RefusedError("a key is a list or a mapping; keys are words", mark)
        elif value in self.value:
            raise _RefusedError(f"the key {shown(value)} occurs twice", mark)
        else:
            self.key.append(value)


def parse_yaml(text: str, place: str = "text") -> Any:
    """Parse one YAML document; errors name ``place`` and the line. Raises CispbenchError."""
    try:
        return _document(yaml.parse(text, Loader=_PARSER))
    except UnicodeEncodeError as error:  # lone surrogates: what is left of bytes that are not UTF-8
        line = text.count("\n", 0, error.start) + 1
        raise CispbenchError(f"{place}, line {line}: {shown(text[error.start])} is no character.") from error
    except yaml.reader.ReaderError as error:
        raise CispbenchError(f"{place} is not valid YAML: {error.reason} (position {error.position}).") from error
    except (yaml.MarkedYAMLError, _RefusedError) as error:
        what = (
            str(error) if isinstance(error, _RefusedError) else ", ".join(filter(None, (error.context, error.problem)))
        )
        mark = error.mark if isinstance(error, _RefusedError) else error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise CispbenchError(f"{place}{where} is not valid YAML: {what}.") from error


def load_yaml(path: Path) -> Any:
    """Read one YAML file of UTF-8 text. Raises CispbenchError naming the file."""
    try:
        text = read_plain(path, MAX_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CispbenchError(f"cannot read {path}: {error}.") from error
    return parse_yaml(text, str(path))


def _document(events: Iterator[Any]) -> Any:
    """Return the value of the single document of a stream of events, None for an empty one."""
    # The outermost list holds the documents, so that nothing below need ask whether there is an outer value.
    opened, anchors = [_Open([], None)], dict[str, tuple[Any, int]]()
    for event in events:
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            _no_tag(event)
            if len(opened) > MAX_DEPTH:
                raise _RefusedError(f"values are nested deeper than {MAX_DEPTH}", event.start_mark)
            opened.append(_Open([] if isinstance(event, yaml.SequenceStartEvent) else {}, event.anchor))
            continue
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            done = opened.pop()
            value, size, anchor = done.value, done.size, done.anchor
        elif isinstance(event, yaml.ScalarEvent):
            _no_tag(event)
            value, size, anchor = _scalar(event), 1, event.anchor
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise _RefusedError(f"the alias {shown(event.anchor)} names nothing before it", event.start_mark)
            (value, size), anchor = anchors[event.anchor], None
        else:
            if isinstance(event, yaml.DocumentStartEvent) and opened[0].value:
                raise _RefusedError("there is a second document", event.start_mark)
            continue
        if anchor is not None:
            anchors[anchor] = value, size
        opened[-1].add(value, size, event.start_mark)
    return opened[0].value[0] if opened[0].value else None


def _no_tag(event: Any) -> None:
    if event.tag is not None:
        raise _RefusedError(f"the tag {shown(event.tag)} is not known here; write the plain value", event.start_mark)


def _scalar(event: Any) -> Any:
    """Return the value of a plain word or number; what is quoted is text."""
    text: str = event.value
    if not event.implicit[0]:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _WHOLE.fullmatch(text):
        # The length first: Python takes no text of more than some thousand digits for a number.
        number = int(text, 0 if text[:2] in ("0x", "0o") else 10) if len(text) <= LONGEST else MAX_WHOLE + 1
        if abs(number) > MAX_WHOLE:
            raise _RefusedError(f"the number {shown(text)} is beyond {MAX_WHOLE}", event.start_mark)
        return number
    if _FLOAT.fullmatch(text):
        value = float(text)
        if math.isinf(value):
            raise _RefusedError(f"the number {shown(text)} is too large", event.start_mark)
        return value
    return text
