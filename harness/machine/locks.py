"""One process at a time in a folder: a file lock that ends with its holder, and a note that says who holds it.

The lock is ``flock`` (Linux and macOS, not Windows), taken by the package filelock. On NFS it works between machines
if the server and the mounts support it; a file system without locks is refused.

filelock does not say who holds a lock, and cannot look at one without the right to write. This file adds both: a note
of the holder (``lock.holder.json``), and ``is_held``. The lock alone decides: a killed process leaves its note behind,
and a note counts only while the lock is held.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from cispbench.results.atomic import explain_os_error, write_atomic
from cispbench.splits.errors import RunError, StoreError
from cispbench.splits.plain_files import read_plain
from cispbench.splits.strict_fields import read_fields

LOCK = "lock"
HOLDER = "lock.holder.json"
POLL_SECONDS = 0.2
# The first try lasts so long. ``is_held`` of another process takes the lock for a moment, and that is no holder.
GLANCE_SECONDS = 0.05
_MOST = 10_000  # bytes of a holder's note
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}


class HeldError(RunError):
    """Another process holds the lock of ``folder``, and the time to wait for it is over."""

    def __init__(self, message: str, *, hint: str | None = None, folder: Path = Path()) -> None:
        super().__init__(message, hint=hint)
        self.folder = folder


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: process id, start in UTC (ISO 8601, seconds), what it does, and a hash of its host's name."""

    pid: int
    since: str
    what: str
    host: str

    @property
    def here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == _host()

    @property
    def dead(self) -> bool:
        """Whether it is known to have ended; nothing is known of processes on other machines."""
        return self.here and not _alive(self.pid)


@contextmanager
def run_lock(
    folder: Path, what: str, wait: float | None, *, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold ``folder`` for this process; ``what`` tells others what is being done ("training step 3").

    ``wait``: seconds to wait for another holder, 0 not to wait, None to wait without limit; ``on_wait`` gets one line
    if it has to wait. The system frees the lock when its holder dies. Raises HeldError if the other holder stays,
    StoreError if the folder is missing, cannot be written or cannot be locked.
    """
    if not folder.is_dir():
        raise StoreError(f"cannot lock {folder}: there is no such folder.", hint="Create it, or name another one.")
    lock = FileLock(folder / LOCK, fallback_to_soft=False)  # a soft lock is a mere file, which outlives its holder
    try:
        try:
            _acquire(lock, folder, wait, on_wait)
            _write_holder(folder, what)
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise explain_os_error("lock", folder, error) from error
            raise StoreError(
                f"cannot lock {folder}: {error}.", hint="Use a file system that supports locks (flock)."
            ) from error
        yield
    finally:
        if lock.is_locked:
            # The note goes first: after the release it may be that of the next holder.
            with suppress(OSError):
                (folder / HOLDER).unlink()
            lock.release()


def _acquire(lock: FileLock, folder: Path, wait: float | None, on_wait: Callable[[str], None] | None) -> None:
    with suppress(Timeout):
        lock.acquire(timeout=GLANCE_SECONDS, poll_interval=GLANCE_SECONDS / 5)
        return
    if wait != 0:
        if on_wait is not None:
            limit = "until it ends" if wait is None else f"up to {wait:g} s"
            on_wait(f"{_at_work(folder)}; waiting {limit}")
        with suppress(Timeout):
            lock.acquire(timeout=-1 if wait is None else wait, poll_interval=POLL_SECONDS)
            return
    waited = f" This process waited for {wait:g} s." if wait else ""
    raise HeldError(
        f"{_at_work(folder)}.{waited}",
        hint="Wait for it to end or stop it; what it has finished is kept, and the same command goes on from there.",
        folder=folder,
    )


def _at_work(folder: Path) -> str:
    """Say in one line who is at work; a dead process is not named."""
    holder = read_holder(folder)
    if holder is None or holder.dead:
        return f"another process is already at work on {folder}"
    start = datetime.fromisoformat(holder.since)
    day = "" if start.date() == datetime.now(UTC).date() else f"{start:%Y-%m-%d} "
    machine = "on this machine" if holder.here else "on another machine"
    return (
        f"another process (pid {holder.pid}, since {day}{start:%H:%M:%S} UTC, {machine}) is already at work on "
        f"{folder}: {holder.what}"
    )


def read_holder(folder: Path) -> Holder | None:
    """Return the note of the last holder of ``folder``'s lock, None if there is none that can be read.

    The note alone does not tell whether the lock is still held.
    """
    try:
        path = folder / HOLDER
        holder = read_fields(Holder, json.loads(read_plain(path, _MOST).decode()), str(path))
        datetime.fromisoformat(holder.since)
    except (OSError, ValueError, RecursionError, StoreError):
        return None
    return holder


def is_held(folder: Path) -> bool:
    """Whether a process, on this machine or another, holds ``folder``'s lock now; needs no right but to read it."""
    try:
        # Without O_NONBLOCK the opening of a pipe in its place waits for ever.
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # never locked so far, or not readable for this user
        return False
    try:
        # A shared lock, because several may look at once and must not take one another for holders. filelock's would
        # need the right to write.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)  # which frees the shared lock
    return False


def who_holds(folder: Path) -> str | None:
    """Say in a line which process holds ``folder``'s lock now, None if nobody does."""
    return _at_work(folder) if is_held(folder) else None


def current_holder(folder: Path) -> Holder | None:
    """Return who holds ``folder``'s lock, None if nobody does or the holder has not written its note yet."""
    holder = read_holder(folder)  # first: most folders have no note, and reading costs less than locking
    return None if holder is None or holder.dead or not is_held(folder) else holder


def _write_holder(folder: Path, what: str) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = Holder(pid=os.getpid(), since=since, what=what, host=_host())
    write_atomic(folder / HOLDER, (json.dumps(asdict(holder)) + "\n").encode())


def _host() -> str:
    # A hash tells machines apart without naming them: stores are shared and may be published.
    return hashlib.sha256(platform.node().encode()).hexdigest()[:16]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # OverflowError: a number that no process can have
        return False
    except PermissionError:  # another user's process
        return True
    # A killed process keeps its number until its parent has waited for it, but holds no lock any more. Linux shows that
    # in /proc; on macOS such a process counts as alive.
    with suppress(OSError):
        return not Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].lstrip().startswith("Z")
    return True
