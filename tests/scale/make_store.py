"""Make a store of ten thousand step records, to measure reports with: python tests/scale/make_store.py OUT.

A record that is there (``--like``) is varied: settings, steps, methods, models, seeds, kinds of data, and what was
counted. Texts are made once for each step and level of skill, and then filled in: as real ones they are, only many.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cispbench.results.checked_json import add_checksum
from cispbench.results.record import StepRecord, confusion_rows
from cispbench.results.record_fields import DataUsed, MethodUsed, ModelUsed
from cispbench.results.store import Store
from cispbench.splits.selection import golden_list, golden_steps
from cispbench.splits.settings import Setting, parse_setting

LIKE = Path(__file__).parents[1] / "results" / "record_schema_1.json"
SETTINGS = (
    "overlapped-19-1", "overlapped-15-5", "overlapped-15-1", "overlapped-10-1", "disjoint-15-1", "overlapped-100-50",
    "overlapped-100-10",
)  # fmt: skip
METHODS = ("finetune", "mib", "plop", "mbs", "lwf", "lwf_mc", "ilt")  # the rest are numbered
GROUPS = (("full", "paper"), ("full", "paper"), ("full", "paper"), ("mini", "mini"), ("synthetic", "quick"))
MODELS = {
    "paper": ("deeplabv3-resnet101", "segmenter-vit-b16"), "mini": ("deeplabv3-mobilenetv2",),
    "quick": ("segmenter-tiny",),
}  # fmt: skip
LEVELS = 12
METHOD, SEED, RUN, KEY = "method-to-fill-in", 987654321, "run-to-fill-in-" + "0" * 49, "key-to-fill-in"


def main(arguments: list[str]) -> None:
    """Write the store that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--like", type=Path, default=LIKE, help="a step record")
    parser.add_argument("--groups", type=int, default=len(GROUPS), help="3: nothing but full data")
    asked = parser.parse_args(arguments)
    like = StepRecord.from_json(asked.like.read_bytes(), str(asked.like))
    written = make_store(Store(asked.out), like, asked.records, asked.seeds, asked.groups)
    print(f"{written} records in {asked.out}")


def make_store(store: Store, like: StepRecord, records: int, seeds: int = 3, groups: int = len(GROUPS)) -> int:
    """Write whole runs into a store until it has at least so many records; return how many."""
    texts: dict[tuple[str, int, str, str, int], str] = {}
    written = number = 0
    while written < records:
        kind, profile = GROUPS[number % groups]
        turn = number // groups
        method = METHODS[turn] if turn < len(METHODS) else f"method-{number:04d}"
        model = MODELS[profile][turn % len(MODELS[profile])]
        for setting in map(parse_setting, SETTINGS):
            for seed in range(seeds):
                if written >= records:
                    return written
                level = (7 * number + seed) % LEVELS
                run_key = f"{number:06x}{SETTINGS.index(setting.name):02x}{seed:02x}".ljust(64, "0")
                for step in range(len(setting.steps)):
                    place = (setting.name, step, profile, model, level)
                    if place not in texts:
                        made = template(like, setting, step, kind, profile, model, level).to_json().decode()
                        texts[place] = re.sub(r'\n "sha256": .*', "", made)
                    _write(store, texts[place], setting, step, profile, model, method, seed, run_key)
                    written += 1
        number += 1
    return written


def template(
    like: StepRecord, setting: Setting, step: int, kind: str, profile: str, model: str, level: int
) -> StepRecord:
    """Return a record of a step with method, seed and keys to be filled in."""
    lists = golden_steps(setting) if kind == "full" else None
    train, sha256 = lists[step] if lists else (1000, "cd" * 32)
    test = golden_list(setting.dataset, "val")[0] if kind == "full" else 467
    return replace(
        like, setting=setting.name, dataset=setting.dataset, scenario=setting.scenario, task=setting.task,
        order=setting.order, learning_order=setting.learning_order, step=step, steps=len(setting.steps),
        classes=setting.steps[step].classes, method=MethodUsed(METHOD, 1, {}), profile=profile, seed=SEED,
        model=ModelUsed(model, 60_000_000, "imagenet", "ab" * 32), run_key=RUN, key=KEY,
        previous_key=f"{KEY}-before" if step else None, confusion=confusion_rows(counts(setting, step, level)),
        data=DataUsed(kind, f"fingerprint-{kind}-{setting.dataset}", train, test, sha256),
        recipe=like.recipe | {"evaluation": {"resize_short": 500, "crop": None}},
    )  # fmt: skip


def counts(setting: Setting, step: int, level: int) -> NDArray[np.int64]:
    """Return a confusion matrix (C, C) after a step: the higher the level, the more is right; what is old fades."""
    known, total = setting.num_classes(step), setting.num_foreground + 1
    random = np.random.default_rng([level, step, total])
    pixels = 30_000_000 // total
    matrix = np.zeros((total, total), dtype=np.int64)
    matrix[:, :known] = random.integers(0, pixels // 8 // known, (total, known))
    skill = pixels * (4 + level) // 20
    for index in range(known):
        matrix[index, index] += skill if index >= setting.old_classes(step) else skill // 2
    # As many pixels of each class after every step.
    matrix[:, 0] += pixels - matrix.sum(axis=1)
    return matrix


def _write(
    store: Store, text: str, setting: Setting, step: int, profile: str, model: str, method: str, seed: int, run_key: str
) -> None:
    run = f"{profile}-{model}-seed{seed}-{run_key[:10]}"
    folder = store.path.joinpath("runs", setting.dataset, setting.name, method, run)
    folder.mkdir(parents=True, exist_ok=True)
    filled = text.replace(METHOD, method).replace(str(SEED), str(seed)).replace(RUN, run_key)
    filled = filled.replace(f"{KEY}-before", f"{run_key[:20]}-{step - 1}").replace(KEY, f"{run_key[:20]}-{step}")
    (folder / f"step-{step}.json").write_bytes(add_checksum(filled))


if __name__ == "__main__":
    main(sys.argv[1:])
