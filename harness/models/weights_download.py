"""Download pre-trained weights by name, resume a broken download, and check the file.

We have our own code because no library does all of it. ``torch.hub.download_url_to_file`` and ``pooch`` start again
from the first byte after a broken connection, and neither lets the processes of a sweep wait for one download.
"""

from __future__ import annotations

import http.client
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cispbench.harness.machine.locks import run_lock
from cispbench.harness.models.weight_files import file_sha256
from cispbench.harness.models.weights_first_use import compare_first_use, keep_first_use
from cispbench.harness.models.weights_table import WeightsEntry, load_table
from cispbench.splits.errors import StoreError, UsageError, WeightsError, nearest

DownloadProgress = Callable[[int, int | None], None]

BLOCK_BYTES = 1 << 18
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


def fetch(
    name: str,
    folder: Path,
    *,
    retries: int = 4,
    timeout: float = 30.0,
    allow_unverified: bool = False,
    progress: DownloadProgress | None = None,
    note: Callable[[str], None] | None = None,
) -> Path:
    """Return the file of the weights ``name`` in ``folder``, checked, and downloaded first if it is not there.

    A broken download is resumed after 1, 2, 4 ... seconds, at most ``retries`` times; ``timeout``
    (seconds) is for each answer. ``progress`` is given the bytes done and in all (None if unknown), ``note`` single
    lines (standard error by default). Without a known checksum nothing is downloaded unless ``allow_unverified``. Where
    the full SHA-256 is not known, that of the first use is kept beside the file, and compared at every later use.
    Raises UsageError for an unknown name, WeightsError if the file cannot be fetched or is not the right one.
    """
    table = load_table()
    if name not in table:
        raise UsageError(f"no weights are called {name!r}.", hint=nearest(name, table))
    entry, say = table[name], note or _to_stderr
    target = folder / entry.file_name
    if not target.is_file():
        if not entry.digits and not allow_unverified:
            raise WeightsError(
                f"the weights {name!r} ({entry.source}) cannot be verified: no checksum of them is published.",
                hint=f"Fetch {entry.url} as {target}, or allow the download by --weights {name}; its SHA-256 is kept "
                "at the first use and compared at every later use.",
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with run_lock(folder, f"fetching the weights {name}", None, on_wait=say):
                if not target.is_file():
                    part = _download(entry, target, retries, timeout, progress, say)
                    digest = _verify(entry, part)
                    if entry.sha256 is None:
                        compare_first_use(entry, target, digest)
                    part.replace(target)
        except (OSError, StoreError) as error:
            raise WeightsError(f"cannot store the weights {name!r} as {target}: {error}.") from error
    digest = _verify(entry, target)
    if entry.sha256 is None and not compare_first_use(entry, target, digest):
        keep_first_use(entry, target, digest)
        say(
            f"weights {name}: not verified, since no full SHA-256 is published; that of {target} is {digest}, "
            "which is kept and compared from now on"
        )
    return target


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def _verify(entry: WeightsEntry, path: Path) -> str:
    """Return the file's SHA-256; a file with a wrong one is removed."""
    digest, size = file_sha256(path), path.stat().st_size
    if digest.startswith(entry.digits) and entry.bytes in (None, size):
        return digest
    with suppress(OSError):
        path.unlink()
    digits = f"SHA-256 {entry.digits}{'' if entry.sha256 else '...'}" if entry.digits else ""
    wanted = " and ".join(filter(None, [digits, f"{entry.bytes} bytes" if entry.bytes else ""]))
    raise WeightsError(
        f"the weights {entry.name!r} in {path} have SHA-256 {digest} and {size} bytes, those of {entry.url} {wanted}. "
        f"The file {'could not be' if path.exists() else 'was'} removed.",
        hint="The same command fetches it again; if that ends like this too, what the URL serves has changed.",
    )


def _download(
    entry: WeightsEntry,
    target: Path,
    retries: int,
    timeout: float,
    progress: DownloadProgress | None,
    say: Callable[[str], None],
) -> Path:
    """Download into ``<target>.part`` with retries. Raises WeightsError if that fails."""
    part = target.with_name(target.name + ".part")
    if not entry.digits:
        # Without a checksum nobody would notice that the file behind the URL has changed since the part was written.
        part.unlink(missing_ok=True)
    attempt = 0
    while True:
        try:
            _transfer(entry, part, timeout, progress)
            return part
        except NETWORK_ERRORS as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
                if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                    part.unlink(missing_ok=True)
            if attempt >= retries or not _may_pass(error, entry.url):
                raise WeightsError(
                    f"cannot fetch the weights {entry.name!r} from {entry.url}: {error}.",
                    hint=f"Fetch that URL by other means and put the file as {target.name} into {target.parent}, or "
                    "give a file of your own by --weights FILE, or start from random values by --weights none.",
                ) from error
            say(f"weights {entry.name}: {error}; trying again in {2**attempt} s")
        time.sleep(2**attempt)
        attempt += 1


def _may_pass(error: Exception, url: str) -> bool:
    """Return whether a retry may succeed."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 416, 425, 429) or error.code >= 500
    certificate = isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)
    return not certificate and not url.startswith("file:")


def _transfer(entry: WeightsEntry, part: Path, timeout: float, progress: DownloadProgress | None) -> None:
    """Append what ``part`` lacks, or write the whole file if the server does not send a range."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "cispbench"} | ({"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(urllib.request.Request(entry.url, headers=headers), timeout=timeout) as response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        if resumed and not (response.headers["Content-Range"] or "").startswith(f"bytes {start}-"):
            part.unlink()
            raise http.client.HTTPException("the server sent another part of the file than it was asked for")
        done = start if resumed else 0
        length = response.headers["Content-Length"]
        total = done + int(length) if length else entry.bytes
        with part.open("ab" if resumed else "wb") as out:
            while block := _read_block(response):
                out.write(block)
                done += len(block)
                if progress is not None:
                    progress(done, total)
    if total is not None and done < total:
        raise http.client.HTTPException(f"the connection ended after {done} of {total} bytes")


def _read_block(response: Any) -> bytes:
    try:
        block: bytes = response.read(BLOCK_BYTES)
    except OSError as error:
        # An error of the network, which a retry may solve; a full disk, also an OSError, is not caught here.
        raise urllib.error.URLError(error) from error
    return block
