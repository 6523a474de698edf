"""Entries of models: each states true facts, reading them loads nothing heavy, and a wrong entry is found out."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from cispbench.harness.models.catalogue import MODELS, ModelSpec, build_model, model_spec, trains_batch_norm
from cispbench.harness.models.model_facts import wrong_facts
from cispbench.splits.errors import CispbenchError, UsageError

TINY = "deeplabv3-tiny"


@pytest.mark.parametrize("name", MODELS.names())
def test_every_installed_model_states_true_facts(name):
    assert wrong_facts(model_spec(name)) == []


@pytest.mark.parametrize("name", [TINY, "segmenter-tiny", "segmenter-mobilenetv2"])
@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norm_that_trains_is_what_the_modules_show(name, frozen):
    model = build_model(name, 24)
    model.freeze_batch_norm = frozen
    assert trains_batch_norm(name, {"encoder"} if frozen else ()) == model.trains_batch_norm()


def changed(name: str = TINY, **facts: object) -> ModelSpec:
    return dataclasses.replace(model_spec(name), **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (changed(batch_norm_in=("encoder",)), "batch_norm_in is ('encoder',), and ('encoder', 'decoder') holds"),
        (changed("segmenter-tiny", batch_norm_in=("decoder",)), "and no section holds batch norms"),
        (changed(least_images=1), "least_images is 1, and it cannot be trained on as few images"),
        (changed(least_images=3), "least_images is 3, and it can be trained on fewer images"),
        (changed(weights="resnet19-imagenet"), "'resnet19-imagenet' is no name of weights.yaml"),
        (changed(weights="resnet18-imagenet"), "the encoder TinyCNN has no backbone to take them"),
    ],
)
def test_a_wrong_fact_is_found(entry, words):
    assert any(words in text for text in wrong_facts(entry)), wrong_facts(entry)


def test_facts_that_are_out_of_range_are_refused():
    with pytest.raises(CispbenchError, match="least_images is at least 1, not 0"):
        changed(least_images=0)
    with pytest.raises(CispbenchError, match="Sections are encoder, decoder, classifier"):
        changed(batch_norm_in=("head",))


def test_unknown_model_offers_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'segmenter-vit-b16'"):
        model_spec("segmenter-vit-b")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_reading_facts_loads_no_torch():
    code = (
        "import sys; from cispbench.harness.models.catalogue import *; print([model_spec(n).weights for n in "
        "MODELS.names()][0], 'torch' in sys.modules)"
    )
    assert run(code) == "mobilenet_v2-imagenet False"


def test_a_model_brings_the_slow_packages_that_it_names_and_no_other():
    slow = ("timm", "transformers")
    code = f"""
import sys, torch
from cispbench.harness.models.catalogue import *
with torch.device("meta"):
    for spec in sorted(map(model_spec, MODELS.names()), key=lambda spec: spec.imports):
        spec.build(64)
        print(spec.name, *(name for name in {slow} if name in sys.modules))
"""
    for line in run(code).splitlines():
        name, *loaded = line.split()
        assert tuple(loaded) == model_spec(name).imports
