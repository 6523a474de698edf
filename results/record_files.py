"""The files below a store's folder ``runs``, listed and read so that nothing is left out without a word.

``pathlib``'s ``glob`` passes over folders that it may not read, and follows links out of the store.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from cispbench.results.record_fields import StepFacts
from cispbench.splits.errors import StoreError
from cispbench.splits.plain_files import open_plain

DEPTH = 4  # folders of data set, setting, method and run


class Listing(NamedTuple):
    """What lies in a folder: folders, links to folders, and all else."""

    folders: list[Path]
    files: list[Path]
    links: list[Path]


def record_parts(record: StepFacts) -> tuple[str, ...]:
    """Return where a record lies below ``runs``: folders of data set, setting, method and run, and its file's name."""
    run = f"{record.profile}-{record.model.name}-seed{record.seed}-{record.run_key[:10]}"
    names = (record.dataset, record.setting, record.method.name, run)
    return (*map(safe_part, names), f"step-{record.step}.json")


def safe_part(name: str) -> str:
    """Return a name as one part of a path: no separators or colons, and nothing that climbs or hides."""
    return re.sub(r"^\.|[^A-Za-z0-9._+-]", "_", name)


def run_folders(runs: Path, ending: str = "") -> list[Path]:
    """Return the folders of runs below ``runs`` whose names end in ``ending``, in order; none if there is no ``runs``.

    Raises StoreError naming a folder that cannot be read or is a link.
    """
    folders = [runs]
    for _ in range(DEPTH):
        listings = [list_folder(folder) for folder in folders]
        links = [link for listing in listings for link in listing.links]
        if links:
            raise linked(links[0])
        folders = [inner for listing in listings for inner in listing.folders]
    return [folder for folder in folders if folder.name.endswith(ending)]


def run_files(folder: Path) -> list[Path]:
    """Return what is named as a record in a run's folder, ordered by step. Raises StoreError."""
    # A folder or link of such a name is among them, so that reading it is an error.
    named = [path for kind in list_folder(folder) for path in kind if named_as_record(path)]
    # By number, not by name: step-10 comes after step-9.
    return sorted(named, key=step_number)


def named_as_record(path: Path) -> bool:
    """Return whether a file's name is meant for a record: ``step-<k>.json``, or something near it."""
    return path.name.startswith("step-") and path.suffix == ".json"


def step_number(path: Path) -> int:
    """Return the number of the step in the name of a record's file; -1 if there is none."""
    found = re.fullmatch(r"step-([0-9]+)\.json", path.name)
    return int(found[1]) if found else -1


def list_folder(folder: Path) -> Listing:
    """Return what lies in a folder, each by name; nothing if it is not there.

    Raises StoreError naming a folder that cannot be read, or a link to nothing.
    """
    folders: list[Path] = []
    files: list[Path] = []
    links: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                kind = files if not entry.is_dir() else links if entry.is_symlink() else folders
                kind.append(folder / entry.name)
    except OSError as error:
        # Asked after the attempt: a folder above that may not be entered would look like one that is not there.
        if isinstance(error, FileNotFoundError) and not folder.is_symlink():
            return Listing([], [], [])
        reason, hint = error.strerror or type(error).__name__, "Change its permissions, or move it out of the store."
        if isinstance(error, NotADirectoryError):
            reason, hint = "a file is in the way of a folder", "Move that file away, or choose another folder."
        raise StoreError(f"cannot read the folder {folder}: {reason}.", hint=hint) from error
    return Listing(folders, files, links)


def linked(path: Path) -> StoreError:
    """Return the error of a symbolic link in a store."""
    return StoreError(
        f"{path} is a symbolic link.",
        hint="A store holds its records themselves, so that they go along when it is copied: put them there.",
    )


def read_file(path: Path, size: int = -1) -> bytes:
    """Return the content of a record's file, or its first ``size`` bytes.

    Raises StoreError if it cannot be read, or is a link or a pipe.
    """
    try:
        with open_plain(path, follow=False) as file:
            return file.read(size)
    except OSError as error:
        if path.is_symlink():
            raise linked(path) from error
        raise StoreError(f"cannot read {path}: {error}.", hint="Restore it, or delete it and rerun.") from error
