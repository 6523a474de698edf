"""Read plain JSON or YAML values into frozen dataclasses, strictly: every key known, present and of its type."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, partial
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from cispbench.splits.errors import StoreError, nearest

T = TypeVar("T")
_Reader = Callable[[object, str, str], Any]


def read_fields(kind: type[T], value: object, place: str) -> T:
    """Build the dataclass ``kind`` from a mapping; lists become tuples, whole numbers are accepted as floats.

    Raises StoreError naming ``place``, the field and the value: an unknown or missing key, or a wrong type.
    """
    built: T = _read_dataclass(kind, value, place, "")
    return built


def plain(value: Any, field: str) -> Any:
    """Return ``value`` as JSON holds it (tuples become lists). Raises StoreError naming a part it cannot hold."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        if value and all(type(item) is int for item in value):
            return list(value)
        return [plain(item, f"{field}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{field}.{key}") for key, item in value.items()}
    raise StoreError(
        f"step record: {field} is {value!r} ({type(value).__name__}), which JSON cannot hold.",
        hint="Use words, finite numbers, true or false, lists, and mappings with words as keys.",
    )


def _fail(place: str, field: str, value: object, wanted: str) -> StoreError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return StoreError(f"{place}: {field or 'the whole'} is {shown}, not {wanted}.")


def _read_dataclass(kind: type[Any], value: object, place: str, field: str) -> Any:
    if not isinstance(value, Mapping):
        raise _fail(place, field, value, "a mapping")
    readers = _fields(cast(Hashable, kind))
    known = readers.keys()
    for key in value:
        if key not in known:
            raise StoreError(f"{place}: unknown key {_join(field, str(key))!r}.", hint=nearest(str(key), known))
    missing = sorted(known - value.keys())
    if missing:
        raise StoreError(f"{place}: {', '.join(_join(field, key) for key in missing)} missing.")
    return kind(**{key: read(value[key], place, _join(field, key)) for key, read in readers.items()})


@cache
def _fields(kind: Any) -> dict[str, _Reader]:
    """Return a reader of every field of a dataclass; resolving their types costs more than reading a value."""
    found = get_type_hints(kind)
    return {entry.name: _reader(found[entry.name]) for entry in fields(kind)}


def _join(field: str, key: str) -> str:
    return f"{field}.{key}" if field else key


@cache
def _reader(hint: Any) -> _Reader:
    """Return what reads a value of a type, given with its place and field."""
    if is_dataclass(hint) and isinstance(hint, type):
        return partial(_read_dataclass, hint)
    origin = get_origin(hint)
    return partial(_read_scalar, hint) if origin is None else partial(_READERS[origin], get_args(hint))


def _read_scalar(hint: Any, value: object, place: str, field: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise _fail(place, field, value, "a finite number")
        return number
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _fail(place, field, value, _WORDS.get(hint, str(hint)))


def _read_tuple(args: tuple[Any, ...], value: object, place: str, field: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _fail(place, field, value, "a list")
    if args[0] is int and all(type(item) is int for item in value):
        return tuple(value)  # the rows of a confusion matrix: thousands of numbers
    read = _reader(args[0])
    return tuple(read(item, place, f"{field}[{place_}]") for place_, item in enumerate(value))


def _read_dict(args: tuple[Any, ...], value: object, place: str, field: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _fail(place, field, value, "a mapping with words as keys")
    if args[1] is Any:
        return dict(value)
    read = _reader(args[1])
    return {key: read(item, place, _join(field, key)) for key, item in value.items()}


def _read_literal(args: tuple[Any, ...], value: object, place: str, field: str) -> Any:
    if value not in args:
        raise _fail(place, field, value, " or ".join(repr(choice) for choice in args))
    return value


def _read_union(args: tuple[Any, ...], value: object, place: str, field: str) -> Any:
    if value is None and type(None) in args:
        return None
    (inner,) = (choice for choice in args if choice is not type(None))
    return _reader(inner)(value, place, field)


_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_READERS: dict[Any, Callable[[tuple[Any, ...], object, str, str], Any]] = {
    tuple: _read_tuple,
    dict: _read_dict,
    Literal: _read_literal,
    Union: _read_union,
    types.UnionType: _read_union,
}
