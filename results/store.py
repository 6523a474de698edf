"""The store of records: one JSON file a step, below ``<out>/runs``, made to be committed and compared."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cispbench.results.atomic import explain_os_error, make_folder, write_atomic
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import StepFacts
from cispbench.results.record_files import read_file, record_parts, run_files, run_folders, safe_part
from cispbench.results.run_rules import run_problems, step_problems
from cispbench.splits.errors import CispbenchError, SettingError, StoreError, UsageError
from cispbench.splits.settings import parse_setting
from cispbench.splits.strict_fields import refusal

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]

_COLUMNS = (
    "dataset", "setting", "scenario", "task", "order", "method", "method_version", "joint", "model", "profile",
    "data_kind", "seed", "step", "steps", "finished", "key", "run_key", "iterations", "train_seconds", "created",
    "record",
)  # fmt: skip

_NOT_MEASURED = "This cannot have been measured: restore it from version control, or delete it and rerun."
_NOT_WRITTEN = "It was not written: nobody could compare it. `cispbench data check` tells what is wrong with the data."


class Store:
    """The records below the folder ``path``, which need not exist before the first one is written."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def runs(self) -> Path:
        """The folder of all records."""
        return self.path / "runs"

    def place(self, record: StepRecord) -> Path:
        """Return the file of a record: ``runs/<dataset>/<setting>/<method>/<run>/step-<k>.json``."""
        return self.runs.joinpath(*record_parts(record))

    def prepare(self) -> None:
        """Make the folder and check that it can be written to, before hours of training. Raises StoreError."""
        folder = self.runs
        make_folder(folder)
        try:
            # A file without a name: two processes that probe at once cannot meet, and a killed one leaves nothing.
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise explain_os_error("write to", folder, error) from error

    def write(self, record: StepRecord) -> Path:
        """Write a record and return its file; one of the same key is left as it is.

        Raises StoreError if the disk refuses, if the file holds a record of another key, or its folder one of another
        run, or for a record that breaks a rule and could not be read again.
        """
        path = self.place(record)
        _refuse(path, step_problems(record, record.matrix()), _NOT_WRITTEN)
        if _exists(path):
            there = read_record(path)
            if (there.key, there.run_key) == (record.key, record.run_key):
                return path
            raise _taken(path, there.key, record.key)
        make_folder(path.parent)
        # Keys of two runs may begin alike, and their folder be the same.
        for other in run_files(path.parent)[:1]:
            if (there := read_record(other)).run_key != record.run_key:
                raise _taken(other, there.run_key, record.run_key)
        write_atomic(path, record.to_json())
        return path

    def find(self, key: str, run_key: str) -> StepRecord | None:
        """Return the record of a step's key within a run, or None.

        Raises StoreError if a file of it is unreadable, or the record is a submitted one: nothing was measured here.
        """
        for path in self.files(run_key):
            record = read_record(path)
            if (record.key, record.run_key) == (key, run_key):
                if record.origin != "measured":
                    raise foreign(record, path)
                return record
        return None

    def find_run(self, start: str) -> list[StepRecord]:
        """Return the records, ordered by step, of the run whose key starts with ``start``.

        Raises UsageError unless there is exactly one such run, StoreError naming a file that cannot be read.
        """
        # A folder's name ends in the first ten characters of its run's key: only few records need to be read.
        named = f"-{safe_part(start[:10])}"
        likely = [folder for folder in run_folders(self.runs) if start and named in folder.name]
        runs = [records for folder in likely if (records := read_run(folder))]
        found = [records for records in runs if records[0].run_key.startswith(start)]
        if len(found) != 1:
            several = f"{len(found)} runs ({', '.join(records[0].run_key[:12] for records in found[:3])})"
            raise UsageError(
                f"{several if found else 'no run'} in {self.path} with a key that starts with {start!r}.",
                hint="A run's key ends the name of its folder; `cispbench table --runs` lists the finished runs.",
            )
        return found[0]

    def records(self) -> list[StepRecord]:
        """Return every record, ordered by file and step. Raises StoreError naming a file that cannot be read."""
        return [record for folder in run_folders(self.runs) for record in read_run(folder)]

    def files(self, run_key: str | None = None) -> list[Path]:
        """Return the file of every record, or of those that may be of a run, ordered by folder and step.

        Raises StoreError as ``run_folders`` does.
        """
        ending = "" if run_key is None else f"-{safe_part(run_key[:10])}"
        return [path for folder in run_folders(self.runs, ending) for path in run_files(folder)]

    def last_files(self) -> list[Path]:
        """Return the file of the last recorded step of every run, finished or not, ordered by folder."""
        return list({path.parent: path for path in self.files()}.values())

    def steps(self) -> pd.DataFrame:
        """Return one row a record: its main fields, and the record itself in the column ``record``."""
        import pandas as pd

        return pd.DataFrame([_row(record) for record in self.records()], columns=list(_COLUMNS))


def foreign(record: StepRecord, path: Path) -> StoreError:
    """Return the error of a record, not measured here, in the file that a run would write."""
    return StoreError(
        f"{path} is {record.origin}: it was not measured here, and the run that would measure it has the same keys.",
        hint="Run into another --out and compare the two, or move it away.",
    )


def read_record(path: Path) -> StepRecord:
    """Read one record of a store. Raises StoreError naming the file and what is wrong with it."""
    record = StepRecord.from_json(read_file(path), str(path))
    check_stored(path, record, record.matrix())
    return record


def read_run(folder: Path) -> list[StepRecord]:
    """Return the records of a run's folder, ordered by step. Raises StoreError as ``read_record`` does.

    It is raised, too, where records do not fit together; it then names the folder.
    """
    records = [read_record(path) for path in run_files(folder)]
    check_run(folder, [(record, record.matrix()) for record in records])
    return records


def check_stored(path: Path, record: StepFacts, counts: Counts) -> None:
    """Raise StoreError unless a record is at its place, and the rules for every record hold."""
    place = record_parts(record)
    if path.parts[-len(place) :] != place:
        raise StoreError(
            f"{path} holds the record of {'/'.join(place)}.",
            hint="Move it to that place below runs, or delete it: a copy is no measurement.",
        )
    try:
        parse_setting(record.setting)
    except CispbenchError as error:
        install = "Install the package that offers its data set, or move the record out of the store."
        hint = install if isinstance(error, SettingError) else error.hint  # a broken package has one of its own
        raise StoreError(f"{path}: {error.message}", hint=hint) from error
    _refuse(path, step_problems(record, counts), _NOT_MEASURED)


def check_run(folder: Path, steps: Sequence[tuple[StepFacts, Counts]]) -> None:
    """Raise StoreError naming the folder unless the recorded steps of a run, in their order, fit together."""
    _refuse(folder, run_problems(steps) if steps else [], _NOT_MEASURED)


def _refuse(path: Path, found: Sequence[str], hint: str) -> None:
    if found:
        broken = refusal(str(path), [f"{text}." for text in found], StoreError)
        raise StoreError(broken.message, hint=hint)


def _taken(path: Path, there: str, key: str) -> StoreError:
    return StoreError(
        f"{path} holds another record (key {there[:10]}, not {key[:10]}).",
        hint="Move it away, or write to another --out.",
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists() or os.path.lexists(path)
    except OSError as error:
        raise StoreError(f"cannot look for {path}: {error}.", hint="Check its permissions.") from error


def _row(record: StepRecord) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in _COLUMNS if hasattr(record, name)}
    return row | {
        "method": record.method.name,
        "method_version": record.method.version,
        "model": record.model.name,
        "data_kind": record.data.kind,
        "train_seconds": record.timing.train_seconds,
        "record": record,
    }
