"""What a sweep is asked for: methods times settings times seeds, from the command line or from a YAML file."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cispbench.harness.registry import load_method
from cispbench.harness.runs.request import RunRequest
from cispbench.splits.errors import UsageError, nearest
from cispbench.splits.settings import Setting, list_settings, paper_table, parse_setting
from cispbench.splits.strict_yaml import load_yaml

PAPER_TABLE = "paper-table"
_GLOB = set("*?[")


@dataclass(frozen=True)
class SweepRequest:
    """A sweep as it is asked for; the names are those of a sweep file's keys. None: left open."""

    methods: tuple[str, ...] | None = None
    settings: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    profile: str | None = None
    model: str | None = None
    set: tuple[str, ...] | None = None

    def over(self, other: SweepRequest) -> SweepRequest:
        """Return this request, completed by ``other``; the changes of recipes of both, the other's first.

        >>> SweepRequest(set=("a=2",)).over(SweepRequest(profile="quick", set=("a=1", "b=1"))).set
        ('a=1', 'b=1', 'a=2')
        """
        mine = {field.name: getattr(self, field.name) for field in fields(self)}
        mine["set"] = (*(other.set or ()), *(self.set or ())) or None
        return SweepRequest(**{name: getattr(other, name) if value is None else value for name, value in mine.items()})


def read_sweep_file(path: Path) -> SweepRequest:
    """Read a sweep file. Raises UsageError naming the file and the key."""
    content = load_yaml(path)
    if not isinstance(content, Mapping):
        raise UsageError(f"{path}: a sweep file maps {', '.join(_kinds())} to their values.")
    found: dict[str, Any] = {}
    for key, value in content.items():
        if key not in _kinds():
            raise UsageError(f"{path}: unknown key {key!r}.", hint=nearest(str(key), _kinds()))
        found[key] = _accept(value, _kinds()[key], key in ("profile", "model"), f"{path}: {key}")
    return SweepRequest(**found)


def _kinds() -> dict[str, type]:
    return {field.name: int if field.name == "seeds" else str for field in fields(SweepRequest)}


def _accept(value: Any, kind: type, single: bool, place: str) -> Any:
    if single:
        if type(value) is kind:
            return value
        raise UsageError(f"{place} must be a word, not {value!r}.")
    listed = value if isinstance(value, list) else [value]
    for item in listed:
        if type(item) is not kind:
            raise UsageError(f"{place} must be a list of {kind.__name__}, and {item!r} is none.")
    return tuple(listed)


def split_words(text: str) -> tuple[str, ...]:
    """Return the words of ``a,b``, without spaces around them. Raises UsageError where there are none."""
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise UsageError(f"{text!r} names nothing.", hint="Separate names by commas.")
    return words


def split_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of ``0,1,2``. Raises UsageError."""
    words = split_words(text)
    if not all(word.isdecimal() for word in words):
        raise UsageError(f"--seeds {text!r}: seeds are whole numbers from 0 on.", hint="Example: --seeds 0,1,2.")
    return tuple(map(int, words))


def expand(request: SweepRequest, common: RunRequest) -> list[RunRequest]:
    """Return the runs of a sweep, each once, ordered by setting, then method, then seed.

    ``common``: what all runs have in common besides; its method, setting and seed are replaced. The profile is paper
    unless one is named: a sweep never falls back to other data. Raises UsageError for what is left open, an unknown
    name, or a pattern that matches nothing.
    """
    for name in ("methods", "settings"):
        if not getattr(request, name):
            raise UsageError(f"a sweep needs --{name}.", hint=f"Or the key {name} in the file of --file.")
    methods = dict.fromkeys(request.methods or ())
    for name in methods:
        load_method(name)
    seeds = dict.fromkeys((0,) if request.seeds is None else request.seeds)
    if not seeds or any(seed < 0 for seed in seeds):
        raise UsageError(f"seeds are whole numbers from 0 on, not {list(seeds)}.")
    common = replace(common, profile=request.profile or "paper", model=request.model, overrides=request.set or ())
    return [
        replace(common, method=method, setting=setting.name, seed=seed)
        for setting in expand_settings(request.settings or ())
        for method in methods
        for seed in seeds
    ]


def expand_settings(words: Sequence[str]) -> list[Setting]:
    """Return the settings that names, patterns and ``paper-table`` stand for, each once, in their order.

    A pattern is held against the listed settings. Raises UsageError for one that matches none.
    """
    found: dict[str, Setting] = {}
    for word in words:
        for setting in _settings_of(word):
            found[setting.name] = setting
    return list(found.values())


def _settings_of(word: str) -> list[Setting]:
    if word == PAPER_TABLE:
        return paper_table()
    if not set(word) & _GLOB:
        return [parse_setting(word)]
    listed = list_settings()
    matching = [setting for setting in listed if fnmatch.fnmatchcase(setting.name, word)]
    if not matching:
        names = [PAPER_TABLE, *(setting.name for setting in listed)]
        raise UsageError(f"no listed setting matches {word!r}.", hint=nearest(word, names))
    return matching
