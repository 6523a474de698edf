"""Recipes: layers, conditions, overrides, and every way of getting one wrong."""

from __future__ import annotations

import dataclasses

import pytest

from cispbench.harness.recipes.fields import OptimRecipe, Recipe, load_strict
from cispbench.harness.recipes.layers import SourcedRecipe, load_recipe, resolve_recipe
from cispbench.harness.recipes.overrides import parse_override
from cispbench.harness.recipes.recipe_files import PROFILES
from cispbench.harness.registry import load_method, method_names
from cispbench.splits.errors import RecipeError, UsageError
from cispbench.splits.settings import paper_table, parse_setting

BUILT_IN = ["finetune", "joint", "mib", "plop", "mbs"]


def recipe(method: str = "mbs", setting: str = "overlapped-15-1", profile: str = "paper", **more):
    return load_recipe(load_method(method), parse_setting(setting), profile, **more)


def sourced(method: str = "mbs", setting: str = "overlapped-15-1", profile: str = "paper", **more) -> SourcedRecipe:
    return resolve_recipe(load_method(method), parse_setting(setting), profile, **more)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("method", BUILT_IN)
def test_every_method_has_a_recipe_for_every_setting_of_the_papers_table(method, profile):
    for setting in paper_table():
        loaded = load_recipe(load_method(method), setting, profile)
        assert loaded.phase(0).lr > 0
        assert loaded.phase(1).lr > 0


def test_built_in_methods_are_registered():
    assert set(BUILT_IN) <= set(method_names())


@pytest.mark.parametrize("method", method_names())
def test_every_value_of_a_papers_recipe_has_a_source(method):
    for setting in paper_table():
        found = resolve_recipe(load_method(method), setting, "paper")
        # A wrapper's `base_options` are a section of their own, of which each value has a source.
        names = {field.name for field in dataclasses.fields(load_method(method).Options)} - {"base_options"}
        options = [f"method.{name}" for name in names]
        optim = [
            f"optim.{field.name}" for field in dataclasses.fields(OptimRecipe) if field.name not in ("rates", "decay")
        ]
        assert {*options, *optim, "optim.rates.encoder", "model", "weights", "data.void", "later.lr"} <= set(
            found.sources
        )
        assert set(found.values) == set(found.sources)
        without = [path for path, source in found.sources.items() if len(source) < 10 or "no source" in source]
        assert without == [], f"{method} on {setting.name}"


RESNET = {
    "model": "deeplabv3-resnet101", "weights": "pretrained", "freeze_batch_norm": False,
    "data.crop": 512, "data.resize": "area", "data.scale": [0.5, 2.0], "data.ratio": [3 / 4, 4 / 3], "data.flip": 0.5,
    "data.resize_short": None, "data.normalise": "imagenet", "evaluation.resize_short": 512, "evaluation.crop": 512,
    "optim.lr": 0.01, "later.lr": 0.001, "optim.momentum": 0.9, "optim.nesterov": True, "optim.weight_decay": 1e-4,
    "optim.schedule": "poly", "optim.power": 0.9, "optim.batch": 24, "optim.warmup": 0, "optim.clip": None,
    "optim.iterations": None,
}  # fmt: skip
SEGMENTER = {
    "model": "segmenter-vit-b16", "weights": "pretrained",
    "data.crop": 512, "data.resize_short": 512, "data.resize": "scale", "data.scale": [0.5, 2.0], "data.flip": 0.5,
    "data.pad": "all-sides", "data.pad_label": 0, "data.normalise": "imagenet",
    "evaluation.resize_short": 512, "evaluation.crop": 512,
    "optim.lr": 0.001, "optim.momentum": 0.9, "optim.nesterov": True, "optim.weight_decay": 1e-5,
    "optim.schedule": "constant", "optim.precision": "fp16", "optim.iterations": None, "optim.clip": None,
    "method.threshold": 0.7, "data.void": "void",
}  # fmt: skip
PLOP = {
    "method.scales": [1, 2, 4], "method.bins": 100, "method.minimum": 0.001, "method.median": "released",
    "method.entropy": "mean", "method.adaptive_factor": True, "method.void_in_mean": True, "data.void": "void",
    "optim.precision": "fp16",
}  # fmt: skip
MIB = {"method.alpha": 1.0, "method.void_in_mean": True, "method.balanced_init": True, "optim.precision": "fp32"}
VOC, ADE = {"optim.epochs": 30.0}, {"optim.epochs": 60.0, "data.void": "void"}
VOID = {"data.void": "background"}


@pytest.mark.parametrize(
    ("method", "setting", "expected"),
    [
        ("finetune", "overlapped-19-1", RESNET | VOC | VOID),
        ("finetune", "overlapped-50-50", RESNET | ADE),
        ("joint", "overlapped-15-5", RESNET | VOC | VOID),
        ("joint", "overlapped-100-50", RESNET | ADE),
        ("mib", "disjoint-15-5", RESNET | VOC | VOID | MIB | {"method.distillation": 10.0}),
        ("mib", "disjoint-15-1", RESNET | VOC | VOID | MIB | {"method.distillation": 100.0}),
        ("mib", "overlapped-10-1", RESNET | VOC | VOID | MIB | {"method.distillation": 10.0}),
        ("mib", "overlapped-100-5", RESNET | ADE | MIB | {"method.distillation": 10.0}),
        ("plop", "overlapped-15-1", RESNET | VOC | PLOP | {"method.pod": 0.01, "method.pod_logits": 5e-4}),
        ("plop", "overlapped-10-1", RESNET | VOC | PLOP | {"later.epochs": 10, "method.pod_logits": 5e-4}),
        ("plop", "overlapped-100-10", RESNET | ADE | PLOP | {"method.pod": 0.001, "method.pod_logits": 1e-5}),
        (
            "mbs",
            "disjoint-19-1",
            SEGMENTER | {"optim.batch": 16, "optim.epochs": 32.0, "later.lr": 1e-4, "method.distillation": 25.0},
        ),
        (
            "mbs",
            "overlapped-100-50",
            SEGMENTER | {"optim.batch": 8, "optim.epochs": 64.0, "later.lr": 5e-4, "method.distillation": 50.0},
        ),
    ],
)
def test_the_papers_values(method, setting, expected):
    values = sourced(method, setting).values
    assert {path: values.get(path, "missing") for path in expected} == expected


@pytest.mark.parametrize(
    ("method", "setting", "like"),
    [
        ("mib", "overlapped-5-1", "overlapped-15-5"),
        ("plop", "disjoint-10-5", "overlapped-15-5"),
        ("plop", "ade:overlapped-10-1", "overlapped-100-50"),
        ("mib", "ade:overlapped-15-1", "overlapped-100-50"),
        ("mbs", "voc:overlapped-4-4", "overlapped-15-1"),
    ],
)
def test_other_tasks_have_the_data_sets_general_values(method, setting, like):
    assert sourced(method, setting).values == sourced(method, like).values


def test_a_published_order_has_its_tasks_values():
    assert sourced("mib", "overlapped-15-1-b").values == sourced("mib", "overlapped-15-1").values


def test_the_source_is_that_of_the_layer_that_set_a_value_last():
    voc, ade = sourced("mbs", "overlapped-15-1").sources, sourced("mbs", "overlapped-100-10").sources
    for path in ("optim.batch", "optim.epochs", "later.lr"):
        assert "voc.yaml" in voc[path] and "ade20k.yaml" in ade[path]
    assert "voc.yaml" in voc["method.distillation"] and "ade20k.yaml" in ade["method.distillation"]
    assert ade["method.threshold"] == voc["method.threshold"]
    assert "issue 43" in sourced("mib", "overlapped-15-1").sources["method.distillation"]
    assert "issue 43" not in sourced("mib", "overlapped-15-5").sources["method.distillation"]


def test_what_the_command_line_sets_says_so():
    plain = sourced("mib").sources
    changed = sourced("mib", model="deeplabv3-resnet50", overrides=["optim.lr=0.5", "method.alpha=2", "later.lr=0.1"])
    spoken = {path: source for path, source in changed.sources.items() if source != plain[path]}
    assert spoken == {"model": "--model", "optim.lr": "--set", "method.alpha": "--set", "later.lr": "--set"}


def test_the_length_that_a_change_takes_away_has_its_source():
    found = sourced("mib", overrides=["optim.iterations=7"])
    assert (found.values["optim.epochs"], found.values["optim.iterations"]) == (None, 7)
    assert found.sources["optim.epochs"] == found.sources["optim.iterations"] == "--set"


def test_values_that_no_layer_sets_are_defaults():
    found = sourced("mbs", profile="quick")
    assert found.values["method.patch_mean"] == "positive"
    assert found.sources["method.patch_mean"] == found.sources["optim.momentum"] == "default"
    assert found.sources["optim.lr"].startswith("ours")


@pytest.mark.parametrize(("word", "kept"), [("true", "true"), ("released", "released")])
def test_a_choice_of_words_takes_words_that_yaml_reads_otherwise(word, kept):
    assert recipe("plop", overrides=[f"method.median={word}"]).method["median"] == kept


def test_a_layer_without_a_source_is_told_by_its_file(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "fourth.yaml").write_text("quick:\n  - optim: {lr: 0.3}\n")
    (tmp_path / "fourth_party.py").write_text(
        "from cispbench.methods.finetune import FineTune\n\nclass Fourth(FineTune):\n    name = 'fourth'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import importlib
    import sys

    module = importlib.import_module("fourth_party")
    try:
        found = resolve_recipe(module.Fourth, parse_setting("overlapped-15-1"), "quick")
    finally:
        sys.modules.pop("fourth_party")
    assert found.values["optim.lr"] == 0.3
    assert found.sources["optim.lr"] == "fourth.yaml, which gives no source"


@pytest.mark.parametrize(
    ("method", "setting", "expected"),
    [
        ("mib", "overlapped-15-1", 100.0),
        ("mib", "overlapped-15-1-b", 100.0),
        ("mib", "overlapped-15-5", 10.0),
        ("mib", "overlapped-100-10", 10.0),
        ("mbs", "overlapped-15-1", 25.0),
        ("mbs", "overlapped-100-10", 50.0),
    ],
)
def test_distillation_weights_of_the_papers(method, setting, expected):
    assert recipe(method, setting).method["distillation"] == expected


def test_learning_rate_factors_of_mbs():
    voc, ade = recipe("mbs", "overlapped-15-1"), recipe("mbs", "overlapped-100-10")
    assert voc.phase(1).lr == pytest.approx(0.1 * voc.phase(0).lr)
    assert ade.phase(1).lr == pytest.approx(0.5 * ade.phase(0).lr)
    assert (voc.optim.batch, voc.optim.epochs, ade.optim.batch, ade.optim.epochs) == (16, 32.0, 8, 64.0)


def test_another_model_brings_its_familys_values():
    loaded = recipe("mbs", model="deeplabv3-resnet50")
    assert (loaded.data.normalise, loaded.optim.batch) == ("imagenet", 24)
    assert loaded.method["distillation"] == 25.0


def test_methods_of_a_family_share_their_base():
    bases = {str((r.model, r.data, r.phase(0))) for r in (recipe(m, profile="quick") for m in BUILT_IN if m != "joint")}
    assert len(bases) == 1


def test_overrides_reach_one_value_and_keep_the_rest():
    changed, plain = recipe(overrides=["optim.lr=0.5", "method.threshold=0.9"]), recipe()
    assert (changed.optim.lr, changed.method["threshold"]) == (0.5, 0.9)
    assert changed.optim.momentum == plain.optim.momentum


def test_setting_epochs_takes_iterations_away():
    loaded = recipe(profile="quick", overrides=["optim.epochs=2", "later.epochs=1"])
    assert (loaded.optim.epochs, loaded.optim.iterations) == (2.0, None)
    assert (loaded.phase(1).epochs, loaded.phase(1).iterations) == (1.0, None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "recipe: unknown key 'optim.lrr'. Did you mean 'optim.lr'?"),
        ("optim.lr=fast", "recipe: optim.lr is 'fast', not a number"),
        ("data.flip=true", "recipe: data.flip is True, not a number"),
        ("optim.batch=2.5", "recipe: optim.batch is 2.5, not a whole number"),
        ("optim.schedule=poli", "recipe: optim.schedule is 'poli', not 'poly' or 'constant'. Did you mean 'poly'?"),
        ("later.lrr=1", "recipe: unknown key 'later.lrr'"),
        ("method.thresold=0.5", "recipe: unknown key 'method.thresold'. Did you mean 'method.threshold'?"),
        ("method.threshold=high", "recipe: method.threshold is 'high', not a number"),
        ("optim=5", "recipe: optim is 5, not a mapping"),
        ("nothing", "is not of the form section.key=value"),
    ],
)
def test_wrong_overrides_name_key_and_value(override, message):
    with pytest.raises(RecipeError) as caught:
        recipe(overrides=[override])
    assert message in str(caught.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(RecipeError) as caught:
        load_strict(Recipe, {"modell": 1, "weights": 3}, "recipe")
    text = str(caught.value)
    assert "unknown key 'modell'" in text
    assert "weights is 3, not text or null" in text
    assert "model is missing" in text


def test_epochs_and_iterations_exclude_each_other():
    with pytest.raises(RecipeError, match="either epochs or iterations"):
        OptimRecipe(epochs=1, iterations=1)
    with pytest.raises(RecipeError, match="either epochs or iterations"):
        OptimRecipe()


def test_unknown_profile():
    with pytest.raises(UsageError, match="Did you mean 'paper'"):
        recipe(profile="papr")


def test_overrides_are_yaml_1_2():
    assert parse_override("optim.lr=1e-5") == {"optim": {"lr": 1e-5}}
    assert parse_override("a.b=no") == {"a": {"b": "no"}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("optim: {lrr: 1}", "unknown key 'optim.lrr'. Did you mean 'lr'?"),
        ("optim: {lr: fast}", "optim.lr is 'fast', not a number"),
        ("later: {lrr: 1}", "unknown key 'later.lrr'. Did you mean 'lr'?"),
        ("method: {wieght: 1}", "unknown key 'method.wieght'. Did you mean 'weight'?"),
        ("modell: x", "unknown key 'modell'. Did you mean 'model'?"),
    ],
)
def test_a_wrong_recipe_file_is_named(tmp_path, monkeypatch, line, message):
    import sys

    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "third.yaml").write_text(f"quick:\n  - source: ours\n    {line}\n")
    (tmp_path / "third_party.py").write_text(
        "from dataclasses import dataclass\n"
        "from cispbench.methods.finetune import FineTune\n\n"
        "@dataclass(frozen=True)\nclass Options:\n    weight: float = 1.0\n\n"
        "class Third(FineTune):\n    name = 'third'\n    Options = Options\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    module = importlib.import_module("third_party")
    try:
        with pytest.raises(RecipeError) as caught:
            load_recipe(module.Third, parse_setting("overlapped-15-1"), "quick")
    finally:
        sys.modules.pop("third_party")
    assert str(tmp_path / "recipes" / "third.yaml") in str(caught.value)
    assert message in str(caught.value)
