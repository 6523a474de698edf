"""The store of records: one JSON file a step, below ``<out>/runs``, made to be committed and compared."""

from __future__ import annotations

import glob
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cispbench.results.atomic import explain_os_error, make_folder, write_atomic
from cispbench.results.record import StepRecord
from cispbench.splits.errors import StoreError, UsageError

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = (
    "dataset", "setting", "scenario", "task", "order", "method", "method_version", "joint", "model", "profile",
    "data_kind", "seed", "step", "steps", "finished", "key", "run_key", "iterations", "train_seconds", "created",
    "record",
)  # fmt: skip


class Store:
    """The records below the folder ``path``, which need not exist before the first one is written."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def place(self, record: StepRecord) -> Path:
        """Return the file of a record: ``runs/<dataset>/<setting>/<method>/<run>/step-<k>.json``."""
        run = f"{record.profile}-{record.model.name}-seed{record.seed}-{record.run_key[:10]}"
        parts = (record.dataset, record.setting, record.method.name, run)
        return self.path.joinpath("runs", *(_safe(part) for part in parts), f"step-{record.step}.json")

    def prepare(self) -> None:
        """Make the folder and check that it can be written to, before hours of training. Raises StoreError."""
        folder = self.path / "runs"
        make_folder(folder)
        try:
            # A file without a name: two processes that probe at once cannot meet, and a killed one leaves nothing.
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise explain_os_error("write to", folder, error) from error

    def write(self, record: StepRecord) -> Path:
        """Write a record and return its file; one of the same key is left as it is.

        Raises StoreError if the disk refuses, or if the file holds a record of another key.
        """
        path = self.place(record)
        if _exists(path):
            there = read_record(path)
            if (there.key, there.run_key) == (record.key, record.run_key):
                return path
            raise StoreError(
                f"{path} holds another record (key {there.key[:10]}, not {record.key[:10]}).",
                hint="Move it away, or write to another --out.",
            )
        make_folder(path.parent)
        write_atomic(path, record.to_json().encode())
        return path

    def find(self, key: str, run_key: str) -> StepRecord | None:
        """Return the record of a step's key within a run, or None.

        Raises StoreError if a file of it is unreadable, or the record is a submitted one: nothing was measured here.
        """
        for path in sorted(self.path.glob(f"runs/*/*/*/*-{_safe(run_key[:10])}/step-*.json")):
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
        likely = self.path.glob(f"runs/*/*/*/*-{glob.escape(_safe(start[:10]))}*") if start else ()
        runs = [records for folder in sorted(likely) if (records := read_run(folder))]
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
        return [read_record(path) for path in self._files()]

    def last_files(self) -> list[Path]:
        """Return the file of the last recorded step of every run, finished or not, ordered by folder."""
        return list({path.parent: path for path in self._files()}.values())

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("runs/*/*/*/*/step-*.json"), key=lambda path: (path.parent, step_number(path)))

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
    """Read one record. Raises StoreError naming the file and what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read {path}: {error}.", hint="Restore it, or delete it and rerun.") from error
    return StepRecord.from_json(text, str(path))


def read_run(folder: Path) -> list[StepRecord]:
    """Return the records of a run's folder, ordered by step. Raises StoreError as ``read_record`` does."""
    return [read_record(path) for path in sorted(folder.glob("step-*.json"), key=step_number)]


def step_number(path: Path) -> int:
    """Return the number of the step in the name of a record's file; -1 if there is none."""
    found = re.fullmatch(r"step-([0-9]+)\.json", path.name)
    return int(found[1]) if found else -1


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise StoreError(f"cannot look for {path}: {error}.", hint="Check its permissions.") from error


def _safe(part: str) -> str:
    """Return a name as one part of a path: no separators or colons, and nothing that climbs or hides."""
    return re.sub(r"^\.|[^A-Za-z0-9._+-]", "_", part)


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
