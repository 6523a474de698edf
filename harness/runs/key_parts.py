"""Why a step has another key than before: the parts of two keys, compared by name.

``plan.PlannedStep.made_of`` names the parts of a key, and the manifest of a trained step keeps them. Where the manifest
is gone, or was written by a version that did not keep them, the record tells all parts but the versions of the code.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from cispbench.harness.distributed.division import Division
from cispbench.harness.models.catalogue import trains_batch_norm
from cispbench.harness.recipes.fields import read_recipe
from cispbench.harness.recipes.merging import flat
from cispbench.harness.recipes.old_names import with_current_names
from cispbench.results.record import StepRecord

# Parts that are reported by a sentence; of the others both values are shown.
SENTENCES = {
    "data": "the data changed",
    "images": "the data changed",
    "classes": "the classes changed",
    "weights": "the pre-trained weights changed",
    "apart": "--no-share was given or left out",
    "companions": "the maps of the companions changed",
    "code": "the code of the method changed",
}


def parts_from_record(record: StepRecord, shared_base: bool) -> dict[str, Any]:
    """Return what the record of a step tells of the parts of its key.

    ``shared_base``: whether the method leaves itself out of step 0. Versions of the code are not in a record.
    """
    recipe, plain = read_recipe(record.recipe, f"the recipe of step {record.step}"), record.step == 0 and shared_base
    phase = recipe.phase(record.step)
    parts = {
        "data": record.data.fingerprint,
        "images": record.data.list_sha256,
        "classes": list(record.classes),
        "model": record.model.name,
        "weights": record.model.weights_sha256,
        "freeze_batch_norm": recipe.freeze_batch_norm,
        "data_recipe": recipe.as_recorded()["data"],
        "optim": phase.as_recorded(),
        "phases": {name: recipe.phase(record.step, name).as_recorded() for name in recipe.phases},
        "method": None if plain else {
            "name": record.method.name, "version": record.method.version, "options": record.method.options,
            "code": record.method.code,
        },
        "seed": record.seed,
    }  # fmt: skip
    if trains_batch_norm(record.model.name, recipe.fixed_norms(phase)):
        execution = record.execution
        count = Division(phase.batch, execution.devices, execution.micro_batch).micro_batches
        if count > 1:
            parts["parts"] = count  # the key's name for the number of micro-batches
    return parts


def changed_parts(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[str]:
    """Return what differs between the parts of two keys of a step, each in words.

    The key of the step before is left out: what changed there is reported for that step. Versions of the code and
    ``--no-share`` are compared where both sides know them.
    """
    of_record = "training" not in before
    if of_record:  # it does not say which phases the step had
        both = before["phases"].keys() & now.get("phases", {}).keys()
        before, now = _with_phases(before, both), _with_phases(now, both)
    old, new = _by_name(before, step), _by_name(now, step)
    if new["code"] is None:  # a method that comes with cispbench: its record has a digest, its key has none
        old["code"] = None
    if of_record:
        unknown = ["training", "models", "model_version", "apart", "companions"]
        unknown += [f"the version of {base}" for base in _bases(now)]
        for name in unknown:
            new.pop(name, None)
        if _bases(now):  # the digest of a record is that of the wrapper and its base together
            old["code"] = new["code"]
    sentences = SENTENCES if old["code"] else {**SENTENCES, "code": "the key now holds the digest of the method's code"}
    changes: dict[str, None] = {}
    for name in dict.fromkeys([*new, *old]):
        if new.get(name) != old.get(name):
            values = f"{name} is {new.get(name, 'not set')}, was {old.get(name, 'not set')}"
            changes[sentences.get(name, values)] = None
    return list(changes)


def _by_name(parts: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return the parts by the names that ``--set`` takes, as a manifest holds them: lists, no tuples."""
    plain = json.loads(json.dumps(dict(parts)))
    method = plain.get("method") or {}
    nested = ("optim", "phases", "data_recipe", "method", "parts", "previous")
    phases = {"later" if step else "optim": plain.get("optim", {}), "phases": plain.get("phases", {})}
    return {
        **{name: value for name, value in plain.items() if name not in nested},
        **flat(plain["data_recipe"], "data."),
        **flat(with_current_names(phases, "key")),
        **flat(method.get("options", {}), "method."),
        "code": _codes(method),
        f"the version of {method.get('name', 'the method')}": method.get("version"),
        **{f"the version of {name}": base["version"] for name, base in _bases(plain).items()},
        "the number of micro-batches": plain.get("parts", 1),
    }


def _with_phases(parts: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    found = {name: phase for name, phase in parts.get("phases", {}).items() if name in names}
    return {**parts, "phases": found}


def _bases(parts: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the part of a wrapper's base by its name, and of that one's base."""
    found: dict[str, Mapping[str, Any]] = {}
    method = parts.get("method") or {}
    while "base" in method:
        method = method["base"]
        found[method["name"]] = method
    return found


def _codes(method: Mapping[str, Any]) -> Any:
    """Return the digest of a method's code, of a wrapper's and its bases' as a list; None where the key has none."""
    codes = [method.get("code"), *(base.get("code") for base in _bases({"method": method}).values())]
    return codes[0] if len(codes) == 1 else codes if any(codes) else None
