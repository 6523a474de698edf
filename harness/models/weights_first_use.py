"""The SHA-256 of weights at their first use, for those whose full SHA-256 is not published: trust on first use.

It lies beside the file, as ``<file>.first-use.json``. It cannot tell whether the first file was the right one, but all
runs that share the folder start from the same values, and a file that changes is an error.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from cispbench.harness.models.weights_table import WeightsEntry
from cispbench.results.checked_json import ChecksumError, read_checked, write_checked
from cispbench.splits.errors import StoreError, WeightsError
from cispbench.splits.strict_fields import read_fields


@dataclass(frozen=True)
class FirstUse:
    """The ``weights`` by name, the ``digest`` (SHA-256) of their file, and ``when`` it was taken (UTC)."""

    weights: str
    digest: str
    when: str


def first_use_path(target: Path) -> Path:
    """Return where the first use of a file of weights is kept."""
    return target.with_name(f"{target.name}.first-use.json")


def compare_first_use(entry: WeightsEntry, target: Path, digest: str) -> bool:
    """Return whether a first use of ``target`` is kept. Raises WeightsError if ``digest`` is another than then."""
    path = first_use_path(target)
    again = f"If you trust the file as it is now, delete {path}."
    try:
        content = read_checked(path)
    except FileNotFoundError:
        return False
    except (OSError, ChecksumError) as error:
        raise WeightsError(f"the SHA-256 kept in {path} cannot be read: {error}.", hint=again) from error
    first = read_fields(FirstUse, content, str(path), WeightsError)
    if first.digest != digest:
        raise WeightsError(
            f"the weights {entry.name!r} for {target} have SHA-256 {digest}, and had {first.digest} when they were "
            f"first used ({first.when}): they have changed.",
            hint=f"Results of the two are not comparable. {again}",
        )
    return True


def keep_first_use(entry: WeightsEntry, target: Path, digest: str) -> None:
    """Keep the SHA-256 of a file that was never used before. Raises WeightsError."""
    first = FirstUse(entry.name, digest, datetime.now(UTC).isoformat(timespec="seconds"))
    try:
        write_checked(first_use_path(target), asdict(first))
    except StoreError as error:
        raise WeightsError(f"cannot keep the SHA-256 of {target}: {error.message}", hint=error.hint) from error
