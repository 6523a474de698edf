"""Move damaged files and folders out of the way, so that a user can look at them and no later run meets them again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cispbench.results.atomic import explain_os_error, sync_folder

ASIDE = ".damaged-"  # in the name of whatever was set aside


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to ``<name>.damaged-<number>`` beside it; return its new place.

    Raises StoreError.
    """
    number = 0
    while os.path.lexists(aside := path.with_name(f"{path.name}{ASIDE}{number}")):
        number += 1
    try:
        path.rename(aside)
        sync_folder(path.parent)
    except OSError as error:
        raise explain_os_error("set aside", path, error) from error
    return aside


def require_file(path: Path) -> None:
    """Raise ValueError if ``path`` is a folder, a pipe or the like: to open a pipe would wait for a writer.

    Raises OSError if there is nothing, or the disk fails.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a file")
