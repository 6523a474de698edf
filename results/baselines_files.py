"""Read and write baseline files: scores of earlier quick and mini runs, which ``cispbench check`` compares to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cispbench.results.atomic import make_folder, write_atomic
from cispbench.results.checked_json import add_checksum, has_checksum, loads_once, verify_checksum
from cispbench.splits.errors import StoreError
from cispbench.splits.plain_files import read_plain
from cispbench.splits.strict_fields import read_fields

SCHEMA = 2
WITHOUT_CHECKSUM = 1  # the schema of files that earlier versions wrote
COMMITTED = Path(__file__).parent / "baselines"


@dataclass(frozen=True)
class Figure:
    """A score over seeds, in percent: its mean and sample standard deviation (None for a single seed)."""

    mean: float
    spread: float | None


@dataclass(frozen=True)
class BaselineCell:
    """What a method has scored on a setting after the last step.

    ``recipe``: digest of the recipe without the method's options, because a change of these is what a check looks for;
    ``data``: the fingerprint of real data, None for the synthetic scenes. A score is None where it is undefined.
    """

    dataset: str
    setting: str
    method: str
    model: str
    recipe: str
    data: str | None
    seeds: tuple[int, ...]
    old: Figure | None
    new: Figure | None
    all: Figure | None

    @property
    def identity(self) -> tuple[str | None, ...]:
        """What a measured cell must have in common with this one to be compared."""
        return self.dataset, self.setting, self.method, self.model, self.recipe, self.data


@dataclass(frozen=True)
class Change:
    """When and why figures were written, how many cells, and on what machine and software."""

    date: str
    reason: str
    cells: int
    environment: str


@dataclass(frozen=True)
class Baselines:
    """The baselines of one kind of data and profile; ``protocol`` as ``name vN``.

    ``machine``: percentage points by which a mean may move with the processor alone; ``command``: what makes the runs.
    """

    schema: int
    kind: str
    profile: str
    protocol: str
    machine: float
    command: str
    cells: tuple[BaselineCell, ...]
    history: tuple[Change, ...]


def read_baselines(folder: Path) -> list[Baselines]:
    """Return the baselines of a folder, ordered by file; none if it holds none. Raises StoreError naming the file."""
    if not folder.is_dir():
        raise StoreError(f"there is no folder {folder}.", hint="Name the folder of the baselines by --baselines.")
    return [_read(path) for path in sorted(folder.glob("*.json"))]


def write_baselines(folder: Path, baselines: Baselines) -> Path:
    """Write the baselines of a kind of data and profile, and return their file. Raises StoreError."""
    make_folder(folder)
    path = baselines_path(folder, baselines)
    write_atomic(path, add_checksum(json.dumps(asdict(baselines), indent=1, allow_nan=False) + "\n"))
    return path


def baselines_path(folder: Path, baselines: Baselines) -> Path:
    """Return the file of the baselines of a kind of data and profile."""
    return folder / f"{baselines.kind}-{baselines.profile}.json"


def merged(old: Sequence[BaselineCell], new: Sequence[BaselineCell]) -> tuple[BaselineCell, ...]:
    """Return the old cells with the new ones in their place or after them, ordered."""
    kept = {cell.identity: cell for cell in (*old, *new)}
    return tuple(sorted(kept.values(), key=lambda cell: (*cell.identity[:-1], cell.data or "")))


def _read(path: Path) -> Baselines:
    try:
        data = read_plain(path)
        value = loads_once(data.decode())
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema == SCHEMA or has_checksum(data):
            verify_checksum(data)
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}.", hint="Restore it from version control.") from error
    if schema not in (WITHOUT_CHECKSUM, SCHEMA):
        raise StoreError(
            f"{path}: schema is {schema!r}, and this version reads up to {SCHEMA}.", hint="Update cispbench."
        )
    value.pop("sha256", None)
    return read_fields(Baselines, value, str(path))
