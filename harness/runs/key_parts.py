"""Why a step has another key than before: the parts of two keys, compared by name.

``plan.PlannedStep.made_of`` names the parts of a key, and the manifest of a trained step keeps them. Where the manifest
is gone, or was written by a version that did not keep them, the record tells all parts but the versions of the code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cispbench.harness.distributed.division import Division
from cispbench.harness.models.catalogue import trains_batch_norm
from cispbench.harness.recipes.layers import flat
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
    recipe, plain = record.recipe, record.step == 0 and shared_base
    phase = dict(recipe["optim"])
    if record.step:
        later = recipe["later"]
        # A length in ``later`` takes the place of the other kind of length.
        for mine, other in (("epochs", "iterations"), ("iterations", "epochs")):
            if later.get(mine) is not None:
                phase[other] = None
        phase |= later
    parts = {
        "data": record.data.fingerprint,
        "images": record.data.list_sha256,
        "classes": list(record.classes),
        "model": record.model.name,
        "weights": record.model.weights_sha256,
        "freeze_batch_norm": recipe["freeze_batch_norm"],
        "data_recipe": recipe["data"],
        "optim": phase,
        "method": None if plain else {
            "name": record.method.name, "version": record.method.version, "options": record.method.options,
            "code": record.method.code,
        },
        "seed": record.seed,
    }  # fmt: skip
    if trains_batch_norm(record.model.name, recipe["freeze_batch_norm"]):
        execution = record.execution
        count = Division(phase["batch"], execution.devices, execution.micro_batch).micro_batches
        if count > 1:
            parts["parts"] = count  # the key's name for the number of micro-batches
    return parts


def changed_parts(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[str]:
    """Return what differs between the parts of two keys of a step, each in words.

    The key of the step before is left out: what changed there is reported for that step. Versions of the code and
    ``--no-share`` are compared where both sides know them.
    """
    old, new = _by_name(before, step), _by_name(now, step)
    if new["code"] is None:  # a method that comes with cispbench: its record has a digest, its key has none
        old["code"] = None
    if "training" not in before:  # parts of a record
        for name in ("training", "models", "model_version", "apart", "companions"):
            new.pop(name, None)
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
    nested = ("optim", "data_recipe", "method", "parts", "previous")
    return {
        **{name: value for name, value in plain.items() if name not in nested},
        **flat(plain["data_recipe"], "data."),
        **flat(plain["optim"], "later." if step else "optim."),
        **flat(method.get("options", {}), "method."),
        "code": method.get("code"),
        f"the version of {method.get('name', 'the method')}": method.get("version"),
        "the number of micro-batches": plain.get("parts", 1),
    }
