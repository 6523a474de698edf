"""The file of a checkpoint: a first line with the SHA-256 sum of all that follows, then what ``torch.save`` writes.

torch compares no checksum of its own when it reads: a checkpoint with a flipped bit would be loaded as other weights.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

from cispbench.results.atomic import explain_os_error, write_atomic
from cispbench.splits.plain_files import NotPlainError, open_plain

# A first line of another format is that of another version of this file.
_WORDS = b"cispbench checkpoint 3, sha256 "
_HEAD_BYTES = len(_WORDS) + hashlib.sha256().digest_size * 2 + 1


class DamagedCheckpointError(ValueError):
    """A checkpoint that is not what was written. The message says what it is, without the file's name."""


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values with their checksum, all or nothing. Raises StoreError."""
    import torch  # here, because checksums are compared without it

    buffer = io.BytesIO()
    buffer.write(bytes(_HEAD_BYTES))
    torch.save(content, buffer)
    with buffer.getbuffer() as data:
        data[:_HEAD_BYTES] = _head(data[_HEAD_BYTES:])
    write_atomic(path, buffer.getvalue())


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return what ``write_checkpoint`` wrote, with all tensors on the CPU; None if there is no such file.

    Nothing is unpickled before the checksum is found right. Raises as ``verified_payload`` does.
    """
    payload = verified_payload(path)
    if payload is None:
        return None
    import torch

    content: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return content


def verified_payload(path: Path) -> bytes | None:
    """Return what torch wrote, None if there is no such file.

    Raises DamagedCheckpointError, and StoreError for a disk that fails: what cannot be read now may be sound.
    """
    try:
        with open_plain(path) as file:
            head, payload = file.read(_HEAD_BYTES), file.read()
    except FileNotFoundError:
        return None
    except NotPlainError as error:
        raise DamagedCheckpointError(str(error)) from error
    except OSError as error:
        raise explain_os_error("read", path, error) from error
    if not head.startswith(_WORDS):
        raise DamagedCheckpointError("it has no checksum: another version wrote it, or its first line is damaged")
    if head != _head(payload):
        raise DamagedCheckpointError("its checksum does not match")
    return payload


def _head(payload: bytes | memoryview) -> bytes:
    return _WORDS + hashlib.sha256(payload).hexdigest().encode() + b"\n"
