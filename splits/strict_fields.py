"""Read plain YAML or JSON values into frozen dataclasses, strictly: every key known, present and of its type.

Records, recipes, sweep files and cluster files are all read here, so that every mistake is reported in the same words:
``<place>: <field> is <value>, not <what is wanted>.``, all mistakes at once.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from cispbench.splits.errors import CispbenchError, StoreError, nearest
from cispbench.splits.printable import cut, shown
from cispbench.splits.ranges import Range

T = TypeVar("T")
# Called with a value, the dotted name of its field, and the list of problems to add to. With problems added, what it
# returns is not to be used.
_Reader = Callable[[object, str, "list[str]"], Any]

MAX_WHOLE = 2**63 - 1  # what numpy, torch and other readers of the files can hold
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no file can hold: bytes that were not UTF-8
_MOST = 8  # problems that an error lists


def read_fields(
    kind: type[T], value: object, place: str, error: type[CispbenchError] = StoreError, field: str = ""
) -> T:
    """Build the dataclass ``kind`` from a mapping. Lists become tuples, whole numbers are accepted as floats.

    Fields with a default may be left out. Raises ``error`` with ``place`` and, for each wrong field, its value and what
    is wanted. What ``__post_init__`` of ``kind`` raises is included. ``field`` is the dotted name of ``value`` itself,
    if it is a part of what ``place`` holds.
    """
    problems: list[str] = []
    built: T = _reader(cast(Hashable, kind))(value, field, problems)
    if problems:
        raise refusal(place, problems, error)
    return built


def read_part(kind: type[Any], values: Mapping[Any, Any], problems: list[str], field: str = "") -> dict[str, Any]:
    """Return the fields of the dataclass ``kind`` that ``values`` holds, read; nothing is required.

    A field that is a dataclass is itself read in part, as a dict. Wrong fields are left out and added to
    ``problems``; ``field`` is the dotted name of ``values`` in them.
    """
    accepted: dict[str, Any] = {}
    readers, _ = _fields(cast(Hashable, kind))
    hints = get_type_hints(kind)
    for key, value in values.items():
        if key not in readers:
            problems.append(_unknown(field, key, readers))
            continue
        before = len(problems)
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            found: Any = read_part(hints[key], value, problems, _join(field, key))
        else:
            found = readers[key](value, _join(field, key), problems)
        if len(problems) == before:
            accepted[key] = found
    return accepted


def check_ranges(built: Any, error: type[CispbenchError]) -> None:
    """Raise ``error`` for the fields of a dataclass that are outside of their ranges, if it was not read from values.

    For ``__post_init__``: what Python code builds is checked like what is read.
    """
    readers, _ = _fields(cast(Hashable, type(built)))
    problems: list[str] = []
    for entry in fields(built):
        readers[entry.name](getattr(built, entry.name), entry.name, problems)
    if problems:
        raise error(" ".join(problems))


def refusal(place: str, problems: list[str], error: type[CispbenchError]) -> CispbenchError:
    """Return the ``error`` that names ``place`` and lists ``problems``, which are sentences."""
    if len(problems) == 1:
        return error(f"{place}: {problems[0]}")
    more = [f"And {len(problems) - _MOST} more."] if len(problems) > _MOST else []
    return error("\n  ".join([f"{place}:", *problems[:_MOST], *more]))


def _wrong(field: str, value: object, wanted: str) -> str:
    return f"{field or 'the value'} is {shown(value)}, not {wanted}."


def _unknown(field: str, key: object, known: Mapping[str, Any]) -> str:
    # A key can be as long as its file; ``nearest`` compares every character.
    name = cut(str(key))
    return f"unknown key {_join(field, name)!r}. {nearest(name, known)}"


def _join(field: str, key: str) -> str:
    return f"{field}.{cut(key)}" if field else cut(key)


@cache
def _reader(hint: Any) -> _Reader:
    """Return the reader of a type. It is cached, because resolving a type takes longer than reading a value."""
    if is_dataclass(hint) and isinstance(hint, type):
        return partial(_read_dataclass, hint)
    return partial(_READERS.get(get_origin(hint), _read_scalar), hint)


@cache
def _fields(kind: Any) -> tuple[dict[str, _Reader], frozenset[str]]:
    """Return the reader of each field of a dataclass, and the names of the fields without a default."""
    hints = get_type_hints(kind, include_extras=True)
    needed = (entry for entry in fields(kind) if entry.default is MISSING and entry.default_factory is MISSING)
    return {entry.name: _reader(hints[entry.name]) for entry in fields(kind)}, frozenset(one.name for one in needed)


def _read_dataclass(kind: type[Any], value: object, field: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(_wrong(field, value, "a mapping"))
        return None
    readers, required = _fields(cast(Hashable, kind))
    before, accepted = len(problems), {}
    for key, item in value.items():
        if key in readers:
            accepted[key] = readers[key](item, _join(field, key), problems)
        else:
            problems.append(_unknown(field, key, readers))
    problems += [f"{_join(field, key)} is missing." for key in sorted(required - value.keys())]
    if len(problems) > before:
        return None
    try:
        return kind(**accepted)
    except CispbenchError as error:
        problems.append(f"{field}: {error}" if field else str(error))
        return None


def _read_scalar(hint: Any, value: object, field: str, problems: list[str]) -> Any:
    if hint is Any:
        if not _is_finite(value):
            problems.append(_wrong(field, value, "a value without NaN and infinity"))
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # a whole number of hundreds of digits
            number = math.inf
        if not math.isfinite(number):
            problems.append(_wrong(field, value, "a finite number"))
        return number
    # ``bool`` is a subclass of ``int``, and true is no number.
    if not (isinstance(hint, type) and isinstance(value, hint)) or (hint is int and isinstance(value, bool)):
        problems.append(_wrong(field, value, _words(hint)))
    elif isinstance(value, int) and abs(value) > MAX_WHOLE:
        problems.append(_wrong(field, value, f"a whole number up to {MAX_WHOLE}"))
    elif isinstance(value, str) and _SURROGATE.search(value):
        problems.append(_wrong(field, value, "text that can be written as UTF-8"))
    return value


def _is_finite(value: object) -> bool:
    """Return whether a value of any type holds no number that is NaN or infinite."""
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _read_annotated(hint: Any, value: object, field: str, problems: list[str]) -> Any:
    inner, *notes = get_args(hint)
    before = len(problems)
    found = _reader(inner)(value, field, problems)
    if len(problems) == before and not all(note.holds(found) for note in notes if isinstance(note, Range)):
        problems.append(_wrong(field, value, _words(hint)))
    return found


def _read_tuple(hint: Any, value: object, field: str, problems: list[str]) -> Any:
    if not isinstance(value, list | tuple):
        problems.append(_wrong(field, value, "a list"))
        return None
    (inner, *_) = get_args(hint)
    if inner is int and all(type(item) is int and -MAX_WHOLE <= item <= MAX_WHOLE for item in value):
        return tuple(value)  # the rows of a confusion matrix are thousands of numbers: no call for each of them
    read = _reader(inner)
    return tuple([read(item, f"{field}[{place}]", problems) for place, item in enumerate(value)])


def _read_dict(hint: Any, value: object, field: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        problems.append(_wrong(field, value, "a mapping with words as keys"))
        return None
    if wrong := [key for key in value if _SURROGATE.search(key)]:
        problems.append(f"{field or 'the value'} has the key {shown(wrong[0])}, which cannot be written as UTF-8.")
        return None
    _, inner = get_args(hint)
    if inner is Any:
        return dict(value)
    read = _reader(inner)
    return {key: read(item, _join(field, key), problems) for key, item in value.items()}


def _read_literal(hint: Any, value: object, field: str, problems: list[str]) -> Any:
    # Not by equality alone: True is 1.
    choices = get_args(hint)
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        close = difflib.get_close_matches(str(value), [choice for choice in choices if isinstance(choice, str)], n=1)
        problems.append(_wrong(field, value, _words(hint)) + (f" Did you mean {close[0]!r}?" if close else ""))
    return value


def _read_union(hint: Any, value: object, field: str, problems: list[str]) -> Any:
    inner = [choice for choice in get_args(hint) if choice is not types.NoneType]
    if value is None and len(inner) < len(get_args(hint)):
        return None
    trial: list[str] = []
    for choice in inner:
        trial = []
        found = _reader(choice)(value, field, trial)
        if not trial:
            return found
    # Of a list or mapping with a single way to read it, the wrong part is named.
    inside = len(inner) == 1 and isinstance(value, list | tuple | Mapping)
    problems += trial if inside else [_wrong(field, value, _words(hint))]
    return None


def _words(hint: Any) -> str:
    """Return what an error asks for."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *notes = get_args(hint)
        return " ".join([_words(inner), *(str(note) for note in notes if isinstance(note, Range))])
    if origin is Literal:
        return " or ".join(
            repr(choice).lower() if choice is True or choice is False else repr(choice) for choice in get_args(hint)
        )
    if origin in (Union, types.UnionType):
        return " or ".join(_words(choice) for choice in get_args(hint))
    if is_dataclass(hint):
        return "a mapping"
    return _WORDS.get(origin or hint, str(hint))


_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null",
    tuple: "a list", dict: "a mapping", Mapping: "a mapping",
}  # fmt: skip
_READERS: dict[Any, Callable[[Any, object, str, list[str]], Any]] = {
    Annotated: _read_annotated,
    tuple: _read_tuple,
    dict: _read_dict,
    Mapping: _read_dict,
    Literal: _read_literal,
    Union: _read_union,
    types.UnionType: _read_union,
}
