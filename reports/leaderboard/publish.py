"""Publish several files together, so that a reader never finds new ones beside old ones."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from cispbench.results.atomic import explain_os_error, sync_folder, write_atomic


def publish(files: Mapping[Path, bytes], removed: Iterable[Path] = ()) -> None:
    """Write ``files``, whose folders must exist, and remove others; none changes before all contents are on the disk.

    A full disk, or a process killed while it writes, leaves every file as it was, and the next call takes the place of
    what was left half done. No file system renames several files at one stroke: a kill within the renames at the end, a
    moment in which nothing is written, can leave some files new and others old, each of them whole. Raises StoreError.
    """
    # The same names in every call: what a killed one has left is written over.
    staged = {path: path.with_name(f".{path.name}.new") for path in files}
    path = Path()
    try:
        for path, content in files.items():
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            write_atomic(staged[path], content)
        for path in files:
            try:
                staged[path].replace(path)
            except FileNotFoundError:
                if not path.exists():
                    raise
                # Another call was faster, and has published its own.
        for path in removed:
            path.unlink(missing_ok=True)
        for folder in dict.fromkeys(path.parent for path in files):
            sync_folder(folder)
    except OSError as error:
        raise explain_os_error("write", path, error) from error
    finally:
        for left in staged.values():
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
