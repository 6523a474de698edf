"""The ledger: published old / new / all numbers with their sources, one YAML file a data set and scenario."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cispbench.results.ledger_row import NUMBERS, LedgerRow
from cispbench.splits.errors import CispbenchError, StoreError, UsageError
from cispbench.splits.settings import parse_setting
from cispbench.splits.strict_fields import read_fields
from cispbench.splits.strict_yaml import load_yaml

if TYPE_CHECKING:
    import pandas as pd

_FOLDER = Path(__file__).parent / "reported"
_COLUMNS = (
    "dataset", "setting", "scenario", "task", "method", "backbone", *NUMBERS, "kind", "source", "note", "assignment",
    "document", "place", "run_by", "run_by_inferred", "also", "links",
)  # fmt: skip
READINGS = ("without", "both", "old-without")
LABELS = (*READINGS, "inconsistent", "incomplete")
_BACKGROUND_RANGE = (80, 100)


class RowLike(Protocol):
    """Anything that gives a row's fields by name: a dict, or a row of the frame of ``load_reported``."""

    def __getitem__(self, key: str, /) -> Any:
        """Return a field; KeyError where there is none."""


def load_reported() -> pd.DataFrame:
    """Return the whole ledger, one row a published result; what a source does not print is missing (``isna``).

    Columns: dataset, setting, scenario, task, method, backbone, old, new, all (percent); kind (own, quoted, re-run, not
    known; `cispbench.results.documents.KINDS` defines them); source, note, assignment (texts); document (its id in
    `documents.yaml`), place (in the document), run_by (who ran it, None where not known), run_by_inferred, also (texts:
    where the number is printed again), links (addresses of all its documents).
    Raises StoreError naming the file and row that breaks a rule.
    """
    import pandas as pd

    return pd.DataFrame(ledger_rows(), columns=list(_COLUMNS))


def ledger_rows() -> list[dict[str, Any]]:
    """Return the whole ledger as ``load_reported`` does, without pandas: None where nothing is printed."""
    return [dict(row) for path in sorted(_FOLDER.glob("*.yaml")) for row in _read_file(path)]


def reported_rows(setting_name: str, method: str) -> list[dict[str, Any]]:
    """Return the published rows of a method on a setting, in the ledger's order, None where nothing is printed.

    ``method``: a published or a registry name, or a title, "ewf over mib"; capitals and punctuation do not count. Reads
    only the file of the setting's data set and scenario. Raises SettingError on an unknown setting, StoreError on a
    broken file.
    """
    setting = parse_setting(setting_name)
    path = _FOLDER / f"{setting.dataset}-{setting.scenario}.yaml"
    if not path.exists():  # nothing published, as for the partitioned scenario
        return []
    wanted = _plain_name(method, setting.dataset)
    rows = (row for row in _read_file(path) if row["setting"] == setting.name)
    return [dict(row) for row in rows if _plain_name(row["method"]) == wanted]


def published_name(method: str) -> str:
    """Return the ledger's name of a method, given by its published or registry name.

    Raises UsageError with the nearest names.
    """
    found = find_published_name(method)
    if found is None:
        names, plain = _published_names(), _plain_name(method)
        close = " or ".join(repr(names[name]) for name in difflib.get_close_matches(plain, names, n=3, cutoff=0.55))
        known = ", ".join(sorted(names.values(), key=str.lower))
        hint = f"Did you mean {close}?" if close else f"Known: {known}."
        raise UsageError(f"the ledger holds no method {method!r}.", hint=hint)
    return found


def find_published_name(method: str, dataset: str | None = None) -> str | None:
    """Return the ledger's name of a method as ``published_name`` does, None where it holds no such method.

    ``dataset``: where a method has another name on each data set (``aliases.yaml``), that of this one, else the first.
    """
    return _published_names().get(_plain_name(method, dataset))


@dataclass(frozen=True)
class Arithmetic:
    """What ``old`` and ``new`` of a row say about its ``all``, in percent.

    ``without`` and ``both``: the ``all`` that follows if background is in neither or in both; ``background``: the IoU
    of the background that follows if it is in ``all`` alone. ``gaps``: by reading, how far ``all`` is from what fits,
    beyond the rounding of the digits; 0 where the reading fits.
    """

    without: float
    both: float
    background: float
    gaps: dict[str, Fraction]


def lint_row(row: RowLike) -> str:
    """Return how a row can have counted the background, from its numbers and the rounding of the printed digits.

    ``without``: background is in neither ``old`` nor ``all``; ``both``: in both; ``old-without``: in ``all`` alone,
    with an implied IoU of the background of 80 to 100; ``inconsistent``: none of them; ``incomplete``: a number is
    missing. The first that fits is returned: with few old classes or close numbers several may, see ``readings``.
    """
    found = arithmetic(row)
    if found is None:
        return "incomplete"
    return next((name for name in READINGS if not found.gaps[name]), "inconsistent")


def readings(row: RowLike) -> tuple[str, ...]:
    """Return every reading of ``lint_row`` that fits, in its order; none for an inconsistent or incomplete row."""
    found = arithmetic(row)
    return () if found is None else tuple(name for name in READINGS if not found.gaps[name])


def arithmetic(row: RowLike) -> Arithmetic | None:
    """Compute what a row's numbers imply under each reading; None if one of old, new and all is missing.

    The digits are the ledger's: a trailing zero that it lost widens the rounding (more readings fit, never fewer),
    and a number computed there from several printed ones counts as more precise than they are.
    """
    # Exact fractions: an error of a float would decide about rows that fit by the last digit.
    printed = [_printed(row, name) for name in NUMBERS]
    if any(number is None for number in printed):
        return None
    (old, old_error), (new, new_error), (total, total_error) = (number for number in printed if number is not None)
    setting = parse_setting(row["setting"])
    num_old = len(setting.steps[0].classes)
    num_new = setting.num_foreground - num_old
    means, gaps = {}, {}
    for name, weight in (("without", num_old), ("both", num_old + 1)):
        count = weight + num_new
        slack = weight * old_error + num_new * new_error + count * total_error
        means[name] = (weight * old + num_new * new) / count
        gaps[name] = max(Fraction(0), abs(means[name] - total) - slack / count)
    count = 1 + num_old + num_new
    background = count * total - num_old * old - num_new * new
    slack = num_old * old_error + num_new * new_error + count * total_error
    low, high = _BACKGROUND_RANGE
    gaps["old-without"] = max(Fraction(0), low - slack - background, background - high - slack) / count
    return Arithmetic(float(means["without"]), float(means["both"]), float(background), gaps)


def _printed(row: RowLike, name: str) -> tuple[Fraction, Fraction] | None:
    """Return a number and half a unit of its last digit, exactly; at least one decimal, as no paper prints fewer."""
    try:
        value = row[name]
    except KeyError:
        return None
    if value is None or value != value:  # a missing number is NaN in a frame, and NaN differs from itself
        return None
    digits = Decimal(repr(float(value)))
    exponent = min(-1, int(digits.as_tuple().exponent))
    return Fraction(digits), Fraction(10) ** exponent / 2


def _plain_name(method: str, dataset: str | None = None) -> str:
    plain = _letters(method)
    known = _aliases().get(method.lower()) or _aliases().get(plain, plain)
    if not isinstance(known, str):
        known = known.get(dataset or next(iter(known)), plain)
    return _letters(known)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def _published_names() -> dict[str, str]:
    return {_plain_name(row["method"]): str(row["method"]) for row in ledger_rows()}


@cache
def _aliases() -> dict[str, str | dict[str, str]]:
    found: dict[str, str | dict[str, str]] = load_yaml(Path(__file__).parent / "aliases.yaml")
    return found


@cache
def _read_file(path: Path) -> tuple[dict[str, Any], ...]:
    entries = load_yaml(path)
    if not isinstance(entries, list):
        raise StoreError(f"{path} is no list of rows.")
    return tuple(_read_row(entry, path, f"{path} row {place}") for place, entry in enumerate(entries, start=1))


def _read_row(entry: Any, path: Path, place: str) -> dict[str, Any]:
    row = read_fields(LedgerRow, entry, place)
    try:
        setting = parse_setting(entry["setting"])
    except CispbenchError as error:
        raise StoreError(f"{place}: {error}") from error
    home = f"{setting.dataset}-{setting.scenario}"
    if (setting.name, setting.dataset) != (entry["setting"], entry["dataset"]) or home != path.stem:
        raise StoreError(f"{place}: {entry['setting']} of {entry['dataset']} belongs in {home}.yaml as {setting.name}.")
    known = vars(row) | row.stated() | {"scenario": setting.scenario, "task": setting.task}
    return {name: known[name] for name in _COLUMNS}
