"""The step store: the weights of every trained step, what its method keeps, and a manifest of its training.

A step is finished once ``steps/<key>/manifest.json`` exists. All files of a step are written into a draft folder beside
it, which is then renamed: other processes, also on other machines, see the whole step or nothing. A finished step is
never changed; a second process that finishes the same step leaves the first one's files.

Below ``--steps-dir``: ``steps/<key>/`` holds ``weights.safetensors``, ``method.safetensors`` (what the method keeps),
``manifest.json`` (with the checksums of the two) and the evaluations of those weights; ``work/<key>/`` the lock, the
checkpoint and the exemplars of a step in training; ``index/`` the data sets' indices. A key is the hash of all that
decides the weights. Whatever is found damaged is renamed to ``<name>.damaged-<number>``, for a user to look at; nothing
reads it again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cispbench.harness.machine.damaged import set_aside
from cispbench.harness.machine.locks import who_holds
from cispbench.harness.runs.step_files import MANIFEST_SCHEMA, evaluation_name, read_evaluation, read_manifest
from cispbench.results.atomic import explain_os_error, make_folder, sync_folder, write_atomic
from cispbench.results.checked_json import write_checked
from cispbench.results.record_files import list_folder
from cispbench.splits.errors import StoreError
from cispbench.splits.plain_files import NotPlainError, open_plain

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, METHOD, MANIFEST = "weights.safetensors", "method.safetensors", "manifest.json"
CHECKPOINT, EXEMPLARS = "checkpoint.pt", "exemplars.json"


def default_steps_dir() -> Path:
    """Return ``CISPBENCH_STEPS``, else ``.cispbench`` in the working folder."""
    return Path(os.environ.get("CISPBENCH_STEPS") or ".cispbench")


class DamagedStepError(StoreError):
    """A published step whose files are missing or are not what its manifest says."""


class DamagedEvaluationError(StoreError):
    """An evaluation of a step that is not what was written."""


class StepStore:
    """Trained steps below ``root``; several processes and users may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, key: str) -> Path:
        """Return the folder of a finished step."""
        return self.root / "steps" / key

    def work(self, key: str) -> Path:
        """Make and return the folder for the lock and the checkpoint of a step in training."""
        path = self.root / "work" / key
        make_folder(path)
        return path

    def in_work(self, key: str) -> str | None:
        """Say which process, here or on another machine, works on the step now; None if there is none."""
        return who_holds(self.root / "work" / key)

    def published(self) -> list[str]:
        """Return the keys of all finished steps, sorted."""
        folders, _, links = list_folder(self.root / "steps")
        names = sorted(path.name for path in (*folders, *links))
        return [name for name in names if "." not in name and self.has(name)]  # drafts and damaged steps have a dot

    def has(self, key: str) -> bool:
        """Whether the step is finished."""
        path = self.folder(key) / MANIFEST
        try:
            return path.is_file()
        except OSError as error:
            raise explain_os_error("look for", path, error) from error

    def manifest(self, key: str) -> dict[str, Any]:
        """Return what the step was made of and what its training cost. Raises StoreError."""
        path = self.folder(key) / MANIFEST
        try:
            return read_manifest(path, key)
        except (FileNotFoundError, NotADirectoryError) as error:  # the latter for a file in the step's place
            raise DamagedStepError(f"{path} is damaged: it is missing.") from error
        except ValueError as error:
            raise DamagedStepError(f"{path} is damaged: {error}.") from error
        except OSError as error:
            # Not damaged: on a disk that fails for a moment, a sound step would be set aside and trained again.
            raise explain_os_error("read", path, error) from error

    def verify(self, key: str, name: str = WEIGHTS) -> Path:
        """Return the file of the step's weights, or of what its method keeps, once its checksum is found right.

        Raises DamagedStepError for a file that is missing or changed, StoreError for a disk that fails.
        """
        path = self.folder(key) / name
        stated = self.manifest(key)["files"].get(name)
        try:
            with open_plain(path) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise DamagedStepError(f"{path} is damaged: it is missing.") from error
        except NotPlainError as error:
            raise DamagedStepError(f"{path} is damaged: {error}.") from error
        except OSError as error:
            raise explain_os_error("read", path, error) from error
        if found != stated:
            raise DamagedStepError(f"{path} is damaged: its checksum is not the one in the manifest.")
        return path

    def damage(self, key: str) -> DamagedStepError | None:
        """Return what is wrong with the step's files, None if nothing is. Raises StoreError for a disk that fails."""
        try:
            self.verify(key)
            self.verify(key, METHOD)
        except DamagedStepError as error:
            return error
        return None

    def load(self, key: str, name: str = WEIGHTS) -> dict[str, Tensor]:
        """Return the step's weights, or what its method keeps (``METHOD``). Raises as ``verify`` does."""
        from safetensors.torch import load_file

        # safetensors checks its header alone: it would load weights with flipped bits.
        path = self.verify(key, name)
        try:
            state: dict[str, Tensor] = load_file(path)
        except OSError as error:
            raise explain_os_error("read", path, error) from error
        return state

    def publish(
        self, key: str, weights: Mapping[str, Tensor], method: Mapping[str, Tensor], manifest: Mapping[str, Any]
    ) -> None:
        """Store a finished step, unless it is there already; a damaged one is set aside. Raises StoreError."""
        from safetensors.torch import save

        target = self.folder(key)
        if self.damage(key) is not None:  # as it is where there is nothing
            # In the same folder, because a rename is atomic only within one file system.
            draft = self.root / "steps" / f".{key}-{os.getpid()}"
            try:
                if target.exists():
                    self.set_aside(key)
                make_folder(draft)
                # Each file is brought to the disk before the rename. Otherwise a power failure could leave a manifest
                # whose weights are empty.
                files = {}
                for name, state in ((WEIGHTS, weights), (METHOD, method)):
                    data = save({k: tensor.cpu().contiguous() for k, tensor in state.items()})
                    write_atomic(draft / name, data)
                    files[name] = hashlib.sha256(data).hexdigest()
                write_checked(draft / MANIFEST, {**manifest, "schema": MANIFEST_SCHEMA, "key": key, "files": files})
                self._rename(draft, target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    def clean_up(self, key: str) -> list[str]:
        """Remove what nobody will need again: what killed processes left, and the checkpoint of a finished step.

        Only the holder of the step's lock may: drafts look all alike. Returns what could not be removed, in words; no
        run has to end for that.
        """
        troubles = []
        lefts = [*(self.root / "steps").glob(f".{key}-*")]
        for folder in (self.folder(key), self.root / "work" / key):
            lefts += folder.glob(".*.tmp")
        if self.has(key):  # until then, the checkpoint is all that a killed training can go on from
            lefts += [self.root / "work" / key / name for name in (CHECKPOINT, EXEMPLARS)]
        for left in lefts:
            try:
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            except OSError as error:
                troubles.append(f"cannot remove {left}, which nobody needs any more: {error}.")
        return troubles

    def set_aside(self, key: str) -> Path:
        """Move a damaged step out of the way and return its new place. Raises StoreError."""
        return set_aside(self.folder(key))

    def evaluation_file(self, key: str, evaluation_key: str) -> Path:
        """Return the file of an evaluation of the step's weights."""
        return self.folder(key) / evaluation_name(evaluation_key)

    def evaluation(self, key: str, evaluation_key: str) -> dict[str, Any] | None:
        """Return a stored evaluation of the step's weights, or None.

        Raises DamagedEvaluationError for one whose checksum or fields are wrong, StoreError for a disk that fails.
        """
        path = self.evaluation_file(key, evaluation_key)
        try:
            return read_evaluation(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise DamagedEvaluationError(f"{path} is damaged: {error}.") from error
        except OSError as error:
            raise explain_os_error("read", path, error) from error

    def write_evaluation(self, key: str, evaluation_key: str, content: Mapping[str, Any]) -> None:
        """Keep an evaluation beside the weights it belongs to."""
        path = self.evaluation_file(key, evaluation_key)
        write_checked(path, {**content, "key": evaluation_key, "step": key})

    @staticmethod
    def _rename(source: Path, target: Path) -> None:
        try:
            source.rename(target)
            sync_folder(target.parent)
        except OSError as error:
            if not target.exists():  # else another process was first, and its files are as good
                raise StoreError(
                    f"cannot publish {target}: {error}.", hint="Check the folder's permissions."
                ) from error
