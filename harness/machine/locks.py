"""One process at a time in a folder: a file lock that dies with its holder, beside a note of who holds it."""

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

LOCK = "lock"
HOLDER = "lock.holder.json"
POLL_SECONDS = 0.2
GLANCE_SECONDS = 0.05  # longer than `is_held` of another process takes, which may be in the way meanwhile


class HeldError(RunError):
    """Another process holds the lock of ``folder``, and was not, or not any longer, to be waited for."""

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


@contextmanager
def run_lock(
    folder: Path, what: str, wait: float | None, *, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold ``folder`` for this process; ``what`` tells others what is being done ("training step 3").

    ``wait``: seconds to wait for another holder, 0 not to wait, None to wait without limit; ``on_wait`` is told once,
    in one line, that it waits. The system frees the lock when its holder dies, so a note left behind means nothing.
    Raises HeldError if the other holder stays, StoreError if the folder is missing or cannot be written.
    """
    if not folder.is_dir():
        raise StoreError(f"cannot lock {folder}: there is no such folder.", hint="Create it, or name another one.")
    lock = FileLock(folder / LOCK, fallback_to_soft=False)  # a soft lock would outlive its holder
    try:
        _acquire(lock, folder, wait, on_wait)
        try:
            _write_holder(folder, what)
        except BaseException:
            lock.release()
            raise
    except NotImplementedError as error:
        raise _no_locks(folder, error) from error
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise _no_locks(folder, error) from error
        raise explain_os_error("lock", folder, error) from error
    try:
        yield
    finally:
        # Removed before the release, for afterwards it may be the next holder's; left behind it does no harm.
        with suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()


def _no_locks(folder: Path, error: Exception) -> StoreError:
    return StoreError(f"cannot lock {folder}: {error}.", hint="Use a file system that knows locks (flock).")


def _acquire(lock: FileLock, folder: Path, wait: float | None, on_wait: Callable[[str], None] | None) -> None:
    with suppress(Timeout):
        lock.acquire(timeout=GLANCE_SECONDS, poll_interval=GLANCE_SECONDS / 5)
        return
    if wait != 0:
        if on_wait is not None:
            limit = "until it ends" if wait is None else f"up to {wait:g} s"
            on_wait(f"{_busy(folder)}; waiting {limit}")
        with suppress(Timeout):
            lock.acquire(timeout=-1 if wait is None else wait, poll_interval=POLL_SECONDS)
            return
    waited = f" It was waited for {wait:g} s." if wait else ""
    raise HeldError(
        f"{_busy(folder)}.{waited}",
        hint="Wait for it to end or stop it; what it has finished is kept, and the same command goes on from there.",
        folder=folder,
    )


def _busy(folder: Path) -> str:
    """Say who is at work; a note that no living process wrote is not believed."""
    holder = read_holder(folder)
    if holder is None:
        return f"another process is already at work on {folder}"
    here = holder.host == _host()
    if here and not _alive(holder.pid):
        return f"another process is already at work on {folder}"
    start = datetime.fromisoformat(holder.since)
    day = "" if start.date() == datetime.now(UTC).date() else f"{start:%Y-%m-%d} "
    machine = "on this machine" if here else "on another machine"
    return (
        f"another process (pid {holder.pid}, since {day}{start:%H:%M:%S} UTC, {machine}) is already at work on "
        f"{folder}: {holder.what}"
    )


def read_holder(folder: Path) -> Holder | None:
    """Return the note of the last holder of ``folder``'s lock, None if there is none that can be read.

    The note alone does not tell whether the lock is still held.
    """
    try:
        holder = Holder(**json.loads((folder / HOLDER).read_text(encoding="utf-8")))
        datetime.fromisoformat(holder.since)
    except (OSError, ValueError, TypeError):
        return None
    return holder if isinstance(holder.pid, int) else None


def is_held(folder: Path) -> bool:
    """Whether a process, on this machine or another, holds ``folder``'s lock now; needs no right but to read it."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:  # nobody has locked it yet, or nobody lets us see it
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def who_holds(folder: Path) -> str | None:
    """Say in a line which process holds ``folder``'s lock now, None if nobody does."""
    return _busy(folder) if is_held(folder) else None


def current_holder(folder: Path) -> Holder | None:
    """Return who holds ``folder``'s lock, None if nobody does or the holder has not written its note yet."""
    holder = read_holder(folder)  # first, for most folders have none
    if holder is None or not is_held(folder) or (holder.host == _host() and not _alive(holder.pid)):
        return None
    return holder


def _write_holder(folder: Path, what: str) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = Holder(pid=os.getpid(), since=since, what=what, host=_host())
    write_atomic(folder / HOLDER, (json.dumps(asdict(holder)) + "\n").encode())


def _host() -> str:
    """Hash the host's name: enough to tell two machines apart, and nothing that names one."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:16]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    # Killed, and not yet taken note of by the process that should: it holds nothing any more.
    with suppress(OSError):
        return not Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].lstrip().startswith("Z")
    return True
