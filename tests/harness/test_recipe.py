"""Recipes: layers, conditions, overrides, and every way of getting one wrong."""

from __future__ import annotations

import pytest

from cispbench.harness.recipe import OptimRecipe, Recipe, load_strict
from cispbench.harness.recipe_files import PROFILES, load_recipe, parse_override
from cispbench.harness.registry import load_method, method_names
from cispbench.splits.errors import RecipeError, UsageError
from cispbench.splits.settings import paper_table, parse_setting

BUILT_IN = ["finetune", "joint", "mib", "plop", "mbs"]


def recipe(method: str = "mbs", setting: str = "overlapped-15-1", profile: str = "paper", **more):
    return load_recipe(load_method(method), parse_setting(setting), profile, **more)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("method", BUILT_IN)
def test_every_method_has_a_recipe_for_every_setting_of_the_papers_table(method, profile):
    for setting in paper_table():
        loaded = load_recipe(load_method(method), setting, profile)
        assert loaded.phase(0).lr > 0
        assert loaded.phase(1).lr > 0


def test_built_in_methods_are_registered():
    assert set(BUILT_IN) <= set(method_names())


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
        ("optim.lrr=1", "unknown key recipe.optim.lrr. Did you mean 'lr'?"),
        ("optim.lr=fast", "recipe.optim.lr must be of type float, not 'fast'"),
        ("data.flip=true", "recipe.data.flip must be of type float"),
        ("optim.batch=2.5", "recipe.optim.batch must be of type int"),
        ("optim.schedule=poli", "recipe.optim.schedule is 'poli'. Did you mean 'poly'?"),
        ("later.lrr=1", "unknown key later.lrr"),
        ("method.thresold=0.5", "unknown key method.thresold. Did you mean 'threshold'?"),
        ("method.threshold=high", "method.threshold must be of type float"),
        ("optim=5", "recipe.optim must be a mapping"),
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
    assert "recipe.modell" in text
    assert "recipe.weights" in text
    assert "recipe.model is missing" in text


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
        ("optim: {lrr: 1}", "unknown key 'lrr'. Did you mean 'lr'?"),
        ("optim: {lr: fast}", "lr must be of type float, not 'fast'"),
        ("later: {lrr: 1}", "unknown key 'lrr'. Did you mean 'lr'?"),
        ("method: {wieght: 1}", "unknown key 'wieght'. Did you mean 'weight'?"),
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
