"""A checkpoint of a paper's released code becomes a step of the store, which can be evaluated and trained further."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cispbench.harness.models.catalogue import VERSION as MODELS_VERSION
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.models.released import ReleasedCode, ReleasedState, load_released, released_code, translate
from cispbench.harness.models.weight_files import file_sha256, read_state
from cispbench.harness.runs.imported import ImportedStep
from cispbench.harness.runs.recording import step_manifest
from cispbench.harness.runs.request import ImportRequest
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.training.job import TrainingLog
from cispbench.splits.errors import UsageError, WeightsError
from cispbench.splits.settings import Setting, parse_setting


def import_checkpoint(request: ImportRequest, steps: StepStore) -> ImportedStep:
    """Publish a checkpoint of released code as a step of the request's setting.

    Its number of classifiers tells which step it is. The same file imported again is the same step. Raises UsageError
    for an unknown code base or a model of another, and WeightsError for a file that cannot be read safely or does not
    fit the setting or the model.
    """
    setting, code, file = parse_setting(request.setting), released_code(request.code), request.file
    model = _model_of(request, code)
    released = translate(read_state(file), code.layout, str(file))
    _check_groups(released, setting, file)
    network = build_model(model, request.crop)
    load_released(network, released, str(file))
    step = len(released.groups) - 1
    meaning: dict[str, Any] = {
        "step": step,
        "code": code.name,
        "model": model,
        "sha256": file_sha256(file),
        "classes": setting.learning_order[: setting.num_classes(step)],
        "image_size": request.crop,
        "in_place_abn": released.in_place_abn,
    }
    # The key is made of the file and of what it is taken for: the same file for another setting is another step.
    content = json.dumps({"imported": meaning, "models": MODELS_VERSION}, sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()
    made = step_manifest(network, TrainingLog(), "cpu")
    imported = ImportedStep(key=key, parameters=made["parameters"], **meaning)
    facts = {name: value for name, value in asdict(imported).items() if name != "key"} | {"file": file.name}
    manifest = made | {
        "previous_key": None,
        "imported": facts | {"source": code.source},
        "environment": made["environment"] | {"imported": facts},
    }
    steps.publish(key, network.state_dict(), {}, manifest)
    return imported


def _model_of(request: ImportRequest, code: ReleasedCode) -> str:
    model = request.model or code.models[0]
    if model not in code.models:
        raise UsageError(f"checkpoints of {code.name} do not fit {model}.", hint=f"They fit {', '.join(code.models)}.")
    if code.layout == "segmenter" and request.crop % 16:
        raise UsageError(
            f"a crop of {request.crop} is not a multiple of the ViT's patch size, 16.", hint="Use --crop 512."
        )
    return model


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
