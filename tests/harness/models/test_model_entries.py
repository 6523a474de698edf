"""Entries of models: each states true facts, reading them loads nothing heavy, and a wrong entry is found out."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.models.branches import BranchedDeepLabV3
from cispbench.harness.models.catalogue import MODELS, ModelSpec, build_model, lacking, model_spec, trains_batch_norm
from cispbench.harness.models.deeplab import DeepLabV3
from cispbench.harness.models.model_facts import wrong_facts
from cispbench.harness.models.segmenter import Segmenter
from cispbench.harness.runs.prepare import Preparer, UnservedError
from cispbench.harness.runs.request import RunRequest
from cispbench.harness.runs.step_store import StepStore
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
        "import sys; from cispbench.harness.models.catalogue import *; print({n: model_spec(n).weights for n in "
        "MODELS.names()}['deeplabv3-mobilenetv2'], 'torch' in sys.modules)"
    )
    assert run(code) == "mobilenet_v2-imagenet False"


def test_a_model_brings_the_slow_packages_that_it_names_and_no_other():
    slow = ("timm", "torchvision", "transformers")
    code = f"""
import sys, torch
from cispbench.harness.models.catalogue import *
with torch.device("meta"):
    for spec in sorted(map(model_spec, MODELS.names()), key=lambda spec: ("timm" in spec.imports, spec.imports)):
        spec.build(64)
        print(spec.name, *(name for name in {slow} if name in sys.modules))
"""
    for line in run(code).splitlines():
        name, *loaded = line.split()
        named = model_spec(name).imports
        assert set(loaded) == {*named, *(["torchvision"] if "timm" in named else [])}  # which timm itself imports


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (changed(offers=frozenset()), "offers is [], and the network shows ['linear']"),
        (changed(offers=frozenset({"linear", "branches"})), "and the network shows ['linear']"),
        (changed("deeplabv3-tiny-branches", offers=frozenset({"branches"})), "shows ['branch_features', 'branches']"),
        (changed("segmenter-tiny", offers=frozenset({"linear"})), "and the network shows []"),
    ],
)
def test_a_wrong_offer_is_found(entry, words):
    assert any(words in text for text in wrong_facts(entry)), wrong_facts(entry)


@pytest.mark.parametrize(
    ("cls", "offers", "words"),
    [
        (DeepLabV3, {"linear", "branches"}, "offers names 'branches', and its groups have none"),
        (BranchedDeepLabV3, set(), "offers names 'branches', and the network does not name them"),
        (BranchedDeepLabV3, {"branches", "linear"}, "offers names 'linear', and its groups are no linear classifiers"),
        (Segmenter, {"linear"}, "offers names 'linear', and its groups are no linear classifiers"),
    ],
)
def test_an_offer_that_a_network_only_claims_is_found(monkeypatch, cls, offers, words):
    monkeypatch.setattr(cls, "offers", frozenset(offers))
    names = {DeepLabV3: TINY, BranchedDeepLabV3: "deeplabv3-tiny-branches", Segmenter: "segmenter-tiny"}
    assert any(words in text for text in wrong_facts(model_spec(names[cls])))


def test_a_network_that_lacks_what_a_method_needs_is_refused_with_those_that_have_it():
    needs = frozenset({"branches", "branch_features"})
    assert lacking("deeplabv3-tiny-branches", needs) is None
    assert lacking("segmenter-tiny", frozenset()) is None
    reason = lacking(TINY, needs)
    assert reason is not None
    assert reason.startswith("it needs a network that offers branch_features, branches; choose one by --model: ")
    assert reason.partition("choose one by --model: ")[2].split(", ") == [
        name for name in MODELS.names() if name.endswith("-branches")
    ]
    assert str(lacking(TINY, frozenset({"attentions"}))).endswith("no installed network offers it")


def test_a_plan_refuses_a_method_whose_needs_the_network_lacks(tmp_path, monkeypatch):
    from cispbench.methods.finetune import FineTune

    monkeypatch.setattr(FineTune, "needs", frozenset({"branches"}))
    request = RunRequest("finetune", "overlapped-15-5", profile="quick", model=TINY)
    preparer = Preparer(StepStore(tmp_path), ProgressView(), plan_only=True)
    with pytest.raises(UnservedError, match=r"with deeplabv3-tiny: it needs .* branches; .* deeplabv3-tiny-branches"):
        preparer.prepare(request)
    assert preparer.prepare(dataclasses.replace(request, model="deeplabv3-tiny-branches")).recipe.model
