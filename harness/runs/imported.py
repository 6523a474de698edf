"""Steps that were trained elsewhere, as a run finds them in the step store; ``importing.py`` puts them there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cispbench.harness.runs.step_store import DamagedStepError, StepStore
from cispbench.splits.errors import StoreError, UsageError
from cispbench.splits.settings import Setting
from cispbench.splits.strict_fields import read_fields

IMPORTED = "imported:"  # before the code base's name, in place of the pre-trained weights


@dataclass(frozen=True)
class ImportedStep:
    """A step of the store that was trained by the released code of a paper.

    ``code``: the code base it comes from; ``sha256``: of the file; ``classes``: class numbers in order of learning,
    background first; ``image_size``: side of the images that a ViT's position grid is for, pixels;
    ``in_place_abn``: the scales of its norms were converted.
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


def find_imported(steps: StepStore, prefix: str) -> ImportedStep:
    """Return the imported step whose key starts with ``prefix``. Raises UsageError unless there is exactly one."""
    keys = [key for key in steps.published() if key.startswith(prefix)] if prefix else []
    if len(keys) != 1:
        found = "no step" if not keys else f"{len(keys)} steps"
        raise UsageError(
            f"--start-from {prefix}: {found} in {steps.root} with a key that starts so.",
            hint="Give the key that `cispbench import checkpoint` printed, and the same --steps-dir.",
        )
    try:
        facts = steps.manifest(keys[0]).get("imported")
    except DamagedStepError as error:
        raise StoreError(error.message, hint="Import its checkpoint again.") from error
    if not isinstance(facts, dict):
        raise UsageError(
            f"--start-from {prefix}: that step was trained here, not imported.",
            hint="Leave --start-from out: a run finds the steps it shares by itself.",
        )
    return _from_facts(keys[0], facts)


def _from_facts(key: str, facts: dict[str, Any]) -> ImportedStep:
    known = {name: facts[name] for name in ImportedStep.__dataclass_fields__ if name in facts}
    return read_fields(ImportedStep, known | {"key": key}, f"the manifest of the imported step {key[:10]}")
