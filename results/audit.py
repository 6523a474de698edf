"""Read all of a store and tell everything that is wrong in it, and bring records of older schemas to this one's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cispbench.results.atomic import write_atomic
from cispbench.results.checked_json import has_checksum
from cispbench.results.record import StepRecord
from cispbench.results.record_files import DEPTH, linked, list_folder, named_as_record, read_plain, step_number
from cispbench.results.run_rules import scored_from_files
from cispbench.results.store import Store, check_run, read_record
from cispbench.splits.errors import StoreError

_BEGINNING = 128  # bytes of a file that tell whether it carries a checksum


@dataclass(frozen=True)
class Problem:
    """A file or folder, what is wrong with it, and what to do."""

    path: Path
    what: str
    action: str


@dataclass(frozen=True)
class Audit:
    """How many records and runs were read without an error, how many without a checksum, and all that is wrong."""

    records: int
    runs: int
    unchecked: tuple[Path, ...]
    problems: tuple[Problem, ...]


def audit_records(store: Store) -> Audit:
    """Read every file below the store's folder ``runs`` by all rules for records and runs."""
    problems: list[Problem] = []
    unchecked: list[Path] = []
    runs: dict[Path, list[StepRecord]] = defaultdict(list)
    broken: set[Path] = set()
    for path in _files(store.runs, problems):
        home = len(path.relative_to(store.runs).parts) == DEPTH + 1
        if not (home and named_as_record(path)):
            action = (
                "Move it out of the store. A record lies at runs/<data set>/<setting>/<method>/<run>/step-<k>.json."
            )
            problems.append(Problem(path, f"{path} is no record, and nothing reads it.", action))
            continue
        try:
            runs[path.parent].append(read_record(path))
            if not has_checksum(read_plain(path, _BEGINNING)):
                unchecked.append(path)
        except StoreError as error:
            problems.append(_problem(path, error))
            broken.add(path.parent)
    for folder, records in runs.items():
        try:
            check_run(folder, [(record, record.matrix()) for record in records])
        except StoreError as error:
            problems.append(_problem(folder, error))
        # A record that is damaged is not missing.
        if folder not in broken and (missing := _missing(records)):
            what = f"{folder} has no record of step {', '.join(map(str, missing))}, though of later ones."
            problems.append(Problem(folder, what, "Restore it from version control, or rerun."))
    return Audit(sum(map(len, runs.values())), len(runs), tuple(unchecked), tuple(problems))


def rewrite_records(found: Audit) -> None:
    """Write the records of an audit that carry no checksum anew, with one; nothing else in them changes.

    To be called where the audit has found no problem, which a checksum would hide. Raises StoreError.
    """
    for path in found.unchecked:
        write_atomic(path, read_record(path).to_json())


def count_unchecked(store: Store) -> tuple[int, int]:
    """Return how many records of a store carry no checksum, and how many there are. Raises StoreError."""
    carried = [has_checksum(read_plain(path, _BEGINNING)) for path in store.files()]
    return carried.count(False), len(carried)


def _files(folder: Path, problems: list[Problem]) -> Iterator[Path]:
    """Yield all files below a folder, those of a run by step; note folders that cannot be read, and links."""
    try:
        listing = list_folder(folder)
    except StoreError as error:
        problems.append(_problem(folder, error))
        return
    problems += [_problem(link, linked(link)) for link in listing.links]
    yield from sorted([*listing.files, *filter(named_as_record, listing.folders)], key=step_number)
    for inner in listing.folders:
        yield from _files(inner, problems)


def _missing(records: list[StepRecord]) -> list[int]:
    """Return the steps without a record between or before those of a run."""
    if scored_from_files(records[0]):  # each is scored for itself
        return []
    there = {record.step for record in records}
    # A run that begins at an imported step names none before it.
    first = 0 if records[0].previous_key is not None else min(there)
    return sorted(set(range(first, max(there))) - there)


def _problem(path: Path, error: StoreError) -> Problem:
    return Problem(path, error.message, error.hint or "")
