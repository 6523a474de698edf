"""The JSON files of a trained step: its manifest, and the evaluations of its weights.

Both carry a checksum of their content, and every field is checked, so that a damaged file is told from one whose
content can be relied on. Both functions raise OSError, or ValueError for a damaged file with a message that begins
with "it" and names no file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cispbench.harness.step import Exemplar
from cispbench.results.checked_json import ChecksumError, has_checksum, loads_once, parse_checked, read_checked
from cispbench.results.record_fields import Execution, ExemplarsUsed, GitState, Losses, TrainedFor
from cispbench.splits.errors import StoreError
from cispbench.splits.plain_files import read_plain
from cispbench.splits.strict_fields import read_fields

MANIFEST_SCHEMA = 2
WITHOUT_CHECKSUM = 1  # the schema of manifests that earlier versions wrote


@dataclass(frozen=True)
class Manifest:
    """The fields of a manifest. ``files``: the SHA-256 sum of each file of the step, by its name.

    ``memory``: the exemplars that the step was trained with, ``exemplars``: how many, and their bytes.

    Imported steps have ``imported`` and lack what is known of steps that were trained here.
    """

    schema: int
    key: str
    files: dict[str, str]
    previous_key: str | None
    parameters: int
    iterations: int
    losses: Losses
    train_seconds: float
    wall_seconds: float
    images_per_second: float
    resumed: bool
    skipped_steps: int
    peak_host_bytes: int
    peak_device_bytes: int | None
    environment: dict[str, Any]
    git: GitState
    created: str
    made_of: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, tuple[float | None, ...]] = field(default_factory=dict)  # of ``context.log``, as ``losses``
    trained_for: TrainedFor | None = None
    execution: Execution | None = None
    memory: tuple[Exemplar, ...] = ()
    exemplars: ExemplarsUsed | None = None
    method_code: str | None = None
    method_package: dict[str, Any] | None = None
    imported: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        named = len({(one.id, one.step) for one in self.memory})
        counted = self.exemplars.images if self.exemplars else 0
        if not named == counted == len(self.memory):
            raise ValueError(f"its memory names {named} exemplars, and it counts {counted}")


@dataclass(frozen=True)
class Evaluation:
    """The counts (C, C) of a step's weights on the test images, rows = ground truth, and what they cost.

    ``key``: the evaluation key; ``step``: the key of the step. All steps of a run have the same evaluation key.
    """

    key: str
    step: str
    confusion: tuple[tuple[int, ...], ...]
    seconds: float
    images: int

    def __post_init__(self) -> None:
        size = len(self.confusion)
        if not size or any(len(row) != size or min(row) < 0 for row in self.confusion):
            raise ValueError("its confusion matrix is not a square of counts")


def read_manifest(path: Path, key: str) -> dict[str, Any]:
    """Return the manifest of the step ``key``. Raises StoreError for one that a later version wrote."""
    data = read_plain(path)
    try:
        content, schema = parse_checked(data), MANIFEST_SCHEMA
    except ChecksumError:
        content, schema = _old_manifest(data), WITHOUT_CHECKSUM
        if not content:
            raise
    written = content.get("schema")
    if type(written) is int and written > schema == MANIFEST_SCHEMA:
        raise StoreError(
            f"{path} has the schema {written}, and this version reads up to {MANIFEST_SCHEMA}.",
            hint="Update cispbench.",
        )
    if type(written) is not int or written != schema or content.get("key") != key:
        raise ValueError("it is not the manifest of this step")
    # With the checksum right, a field that is not known here is one that a later version has added.
    known = Manifest.__dataclass_fields__ if schema == MANIFEST_SCHEMA else content
    _check(Manifest, {name: value for name, value in content.items() if name in known})
    return content


def evaluation_name(key: str) -> str:
    """Return the name of the file of an evaluation, by its evaluation key."""
    return f"evaluation-{key[:16]}.json"


def read_evaluation(path: Path) -> dict[str, Any]:
    """Return an evaluation; its ``key`` is the evaluation key, which fits the file's name."""
    content = read_checked(path)
    _check(Evaluation, content)
    if (path.name, path.parent.name) != (evaluation_name(content["key"]), content["step"]):
        raise ValueError("it is another evaluation, or that of another step")
    return content


def _old_manifest(data: bytes) -> dict[str, Any]:
    """Return a manifest without checksum, empty unless an earlier version wrote it.

    A flipped bit cannot make an old manifest of a new one: it would have to change the checksum's line and the schema.
    """
    try:
        content = {} if has_checksum(data) else loads_once(data.decode())
    except ValueError:
        return {}
    is_old = isinstance(content, dict) and content.get("schema") == WITHOUT_CHECKSUM and "sha256" not in content
    return content if is_old else {}


def _check(kind: type[Any], content: dict[str, Any]) -> None:
    try:
        read_fields(kind, content, "its content")
    except StoreError as error:
        raise ValueError(f"it has wrong fields: {error.message}") from error
