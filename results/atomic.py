"""Write files so that a reader sees the old content or the new one, never a part, and errors say what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

from cispbench.splits.errors import StoreError

_REASONS = (
    ({errno.ENOSPC, errno.EDQUOT}, "the disk is full or the quota is used up",
     "Free some space or choose another folder, and rerun."),
    ({errno.EROFS, errno.EACCES, errno.EPERM}, "it is read-only or not yours to write",
     "Change its permissions or choose another folder."),
    ({errno.ENOENT}, "its folder does not exist", "Create {folder} or choose another folder."),
    ({errno.EEXIST, errno.ENOTDIR}, "a file is in the way of a folder",
     "Move that file away or choose another folder."),
    ({errno.EISDIR}, "a folder is in the way of a file", "Move that folder away or choose another one."),
)  # fmt: skip
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whose folder must exist: temporary file beside it, fsync, rename.

    On any failure the temporary file is removed and ``path`` keeps what it held; what killed processes left of
    earlier attempts at this file is swept up. Two writers of the same content may meet. Raises StoreError.
    """
    # Not tempfile: its files are private to the user, and a store may be shared by several.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            # On the disk before the rename: after a power cut the new name could otherwise hold nothing.
            file.flush()
            os.fsync(file.fileno())
        try:
            temporary.replace(path)
        except FileNotFoundError:
            if not path.exists():
                raise
            # Another writer finished first and swept this one's file up.
        sync_folder(path.parent)
        # What killed writers of this file left beside it.
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            left.unlink(missing_ok=True)
    except OSError as error:
        raise explain_os_error("write", path, error) from error
    finally:
        # Gone after the rename; where even this fails, the error being raised says more than a second one would.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Create ``path`` and the folders above it; one that is already there is fine. Raises StoreError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error("create the folder", path, error) from error


def sync_folder(folder: Path) -> None:
    """Bring what has been renamed in ``folder`` to the disk, where its file system can. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; the rename is done, and nothing better is to be had there.
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def explain_os_error(action: str, path: Path, error: OSError) -> StoreError:
    """Return the StoreError of a system error: ``cannot <action> <path>``, why, and what to do."""
    reason, hint = error.strerror or type(error).__name__, "Check the disk, or choose another folder, and rerun."
    for numbers, known_reason, known_hint in _REASONS:
        if error.errno in numbers:
            reason, hint = known_reason, known_hint.format(folder=path.parent)
    return StoreError(f"cannot {action} {path}: {reason} ({type(error).__name__}, errno {error.errno}).", hint=hint)
