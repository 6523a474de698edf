"""Move damaged files and folders out of the way, so that a user can look at them and no later run meets them again."""

from __future__ import annotations

import os
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
