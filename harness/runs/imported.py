"""Steps that were trained elsewhere: a released checkpoint becomes a step of the store, from which a run goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cispbench.harness.machine.environment import describe_environment, describe_git
from cispbench.harness.models.catalogue import VERSION as MODELS_VERSION
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.models.released import ReleasedState, load_released, released_code, translate
from cispbench.harness.models.weight_files import file_sha256, read_state
from cispbench.harness.runs.step_store import StepStore
from cispbench.splits.errors import StoreError, UsageError, WeightsError
from cispbench.splits.settings import Setting

if TYPE_CHECKING:
    from cispbench.harness.models.interface import IncrementalModel

IMPORTED = "imported:"  # before the code base's name, in place of the pre-trained weights


@dataclass(frozen=True)
class ImportedStep:
    """A step of the store that no training of ours has made.

    ``code``: the code base it comes from; ``sha256``: of the file; ``classes``: class numbers in order of learning,
    background first; ``image_size``: side of the images that a ViT's position grid is for, pixels.
    """

    key: str
    step: int
    code: str
    model: str
    sha256: str
    classes: tuple[int, ...]
    image_size: int
    parameters: int
    in_place_abn: bool

    def unfit(self, setting: Setting, model: str, image_size: int) -> str | None:
        """Return why a run on ``setting`` with ``model`` cannot go on from this step, or None if it can."""
        if model != self.model:
            return f"it holds a {self.model}, and the recipe asks for {model} (--model {self.model})"
        known = setting.num_classes(self.step) if self.step <= setting.last_step else 0
        if known != len(self.classes):
            learnt = len(self.classes) - 1
            return f"at step {self.step} it has learnt {learnt} classes, not the {max(known - 1, 0)} of {setting.name}"
        if setting.learning_order[:known] != self.classes:
            return f"it has learnt its classes in another order than {setting.name} does"
        if image_size != self.image_size:
            return f"it was imported for crops of {self.image_size}, and data.crop is {image_size}"
        return None


def import_checkpoint(
    path: Path, code_name: str, setting: Setting, steps: StepStore, model: str | None = None, image_size: int = 512
) -> ImportedStep:
    """Publish a checkpoint of released code as a step of ``setting``, the one whose classes it has learnt.

    The step is told by the number of classifiers; ``model`` defaults to the first that the code base fills. The same
    file imported again is the same step. Raises UsageError for an unknown code base or a model of another, and
    WeightsError for a file that cannot be read safely or does not fit the setting or the model.
    """
    code = released_code(code_name)
    model = model or code.models[0]
    if model not in code.models:
        raise UsageError(f"checkpoints of {code_name} do not fit {model}.", hint=f"They fit {', '.join(code.models)}.")
    if code.layout == "segmenter" and image_size % 16:
        raise UsageError(
            f"a crop of {image_size} is no whole number of the ViT's patches of 16.", hint="Use --crop 512."
        )
    released = translate(read_state(path), code.layout, str(path))
    _check_groups(released, setting, path)
    network = build_model(model, image_size)
    load_released(network, released, str(path))
    return publish_released(network, released, path, code_name, setting, steps, model, image_size)


def publish_released(
    network: IncrementalModel,
    released: ReleasedState,
    path: Path,
    code_name: str,
    setting: Setting,
    steps: StepStore,
    model: str,
    image_size: int,
) -> ImportedStep:
    """Publish ``network``, which holds the weights of ``released``, under a key made of the file and its meaning."""
    step = len(released.groups) - 1
    facts: dict[str, Any] = {
        "step": step,
        "code": code_name,
        "model": model,
        "sha256": file_sha256(path),
        "classes": list(setting.learning_order[: setting.num_classes(step)]),
        "image_size": image_size,
        "in_place_abn": released.in_place_abn,
    }
    content = json.dumps({"imported": facts, "models": MODELS_VERSION}, sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()
    facts["parameters"] = sum(parameter.numel() for parameter in network.parameters())
    steps.publish(key, network.state_dict(), {}, _manifest(facts, path))
    return _imported(key, facts)


def _check_groups(released: ReleasedState, setting: Setting, path: Path) -> None:
    count = len(released.groups)
    expected = tuple(setting.new_classes(step) for step in range(min(count, len(setting.steps))))
    if released.groups != expected:
        found, wanted = (" + ".join(map(str, sizes)) for sizes in (released.groups, expected))
        raise WeightsError(
            f"{path} has learnt {found} classes (background in the first), and {setting.name} has {wanted} "
            f"up to step {min(count, len(setting.steps)) - 1}.",
            hint="Name the setting that the checkpoint was trained on.",
        )


def _manifest(facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a manifest like that of a trained step, with what is unknown as nothing."""
    return {
        "schema": 1,
        "imported": {**facts, "file": path.name, "source": released_code(facts["code"]).source},
        "previous_key": None,
        "parameters": facts["parameters"],
        "iterations": 0,
        "losses": {"iterations": [], "terms": {}},
        "train_seconds": 0.0,
        "wall_seconds": 0.0,
        "images_per_second": 0.0,
        "resumed": False,
        "skipped_steps": 0,
        "peak_host_bytes": 0,
        "peak_device_bytes": None,
        "environment": {**describe_environment("cpu"), "imported": {**facts, "file": path.name}},
        "git": dict(describe_git()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def find_imported(steps: StepStore, prefix: str) -> ImportedStep:
    """Return the imported step whose key starts with ``prefix``. Raises UsageError unless there is exactly one."""
    keys = [key for key in steps.published() if key.startswith(prefix)] if prefix else []
    if len(keys) != 1:
        found = "no step" if not keys else f"{len(keys)} steps"
        raise UsageError(
            f"--start-from {prefix}: {found} in {steps.root} with a key that starts so.",
            hint="Give the key that `cispbench import checkpoint` printed, and the same --steps-dir.",
        )
    facts = steps.manifest(keys[0]).get("imported")
    if not isinstance(facts, dict):
        raise UsageError(
            f"--start-from {prefix}: that step was trained here, not imported.",
            hint="Leave --start-from out: a run finds the steps it shares by itself.",
        )
    return _imported(keys[0], facts)


def _imported(key: str, facts: dict[str, Any]) -> ImportedStep:
    names = ("step", "code", "model", "sha256", "image_size", "parameters", "in_place_abn")
    try:
        return ImportedStep(key=key, classes=tuple(facts["classes"]), **{name: facts[name] for name in names})
    except KeyError as error:
        raise StoreError(
            f"the manifest of the imported step {key[:10]} has no {error}.", hint="Import it again."
        ) from error
