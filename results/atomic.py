"""Write files so that a reader sees the old content or the new one, never a part, and errors say what to do."""

from __future__ import annotations

import contextlib
import errno
import glob
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
# Some network file systems cannot sync a folder; one that may be written to and not read cannot be opened for it.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES}
_ATTEMPTS = 10


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whose folder must exist: temporary file beside it, fsync, rename.

    A symbolic link stays, and the file that it points to is written; one that points to nothing is an error. Several
    writers may meet: each one's content is whole, and the last rename wins. On a failure before the rename the
    temporary file is removed and ``path`` keeps what it held. What killed processes left of earlier attempts at this
    file is swept up. Raises StoreError.
    """
    try:
        real = _real_file(path)
        for attempt in range(1, _ATTEMPTS + 1):
            # False: another writer took the file for a leftover before it was locked. Begin again.
            if _renamed(real, data, last=attempt == _ATTEMPTS):
                break
        sync_folder(real.parent)
    except OSError as error:
        raise explain_os_error("write", path, error) from error
    # The write is done: whatever happens to leftovers is no failure of it.
    with contextlib.suppress(OSError):
        _remove_leftovers(real)


def make_folder(path: Path) -> None:
    """Create ``path`` and the folders above it, on the disk too; one that is already there is fine. Raises StoreError.

    Where a symbolic link to a folder is in its place, that folder is used.
    """
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        # A folder's name stands in its parent: after a power cut it could otherwise be missing with all it holds.
        for folder in reversed(missing):
            sync_folder(folder.parent)
    except OSError as error:
        raise explain_os_error("create the folder", path, error) from error


def sync_folder(folder: Path) -> None:
    """Bring what has been renamed in ``folder`` to the disk, where its file system can. Raises OSError."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # The rename is done, and nothing better is to be had there.
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def explain_os_error(action: str, path: Path, error: OSError) -> StoreError:
    """Return the StoreError of a system error: ``cannot <action> <path>``, why, and what to do."""
    reason, hint = error.strerror or type(error).__name__, "Check the disk, or choose another folder, and rerun."
    for numbers, known_reason, known_hint in _REASONS:
        if error.errno in numbers:
            reason, hint = known_reason, known_hint.format(folder=path.parent)
    return StoreError(f"cannot {action} {path}: {reason} ({type(error).__name__}, errno {error.errno}).", hint=hint)


def _real_file(path: Path) -> Path:
    """Return the file to be written: ``path``, or what it points to. Raises StoreError for a link to nothing."""
    if not path.is_symlink():
        return path
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise StoreError(
            f"cannot write {path}: it is a symbolic link that points to no file.",
            hint="Remove the link, or choose another file.",
        ) from error


def _renamed(path: Path, data: bytes, *, last: bool) -> bool:
    """Write a temporary file and rename it to ``path``; return False where its name was taken away before that.

    ``last``: raise FileNotFoundError then.
    """
    import fcntl  # Windows has none, and the command line has to come up there to say so

    # Not tempfile: its files are private to the user, and a store may be shared by several.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            # Held until after the rename: a locked file is no leftover. Without locks nobody sweeps (see below).
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            file.write(data)
            # On the disk before the rename: after a power cut the new name could otherwise hold nothing.
            file.flush()
            os.fsync(file.fileno())
            try:
                temporary.replace(path)
            except FileNotFoundError:
                if last:
                    raise
                return False
        return True
    finally:
        # Gone after the rename; where even this fails, the error being raised says more than a second one would.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of writers of ``path`` that are no more: nobody holds their lock. Raises OSError."""
    import fcntl

    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
