"""Quirks: read strictly, in force where their option says so, switched by their own words, and kept in the record."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.recipes.fields import load_strict
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.recipes.quirks import Quirk, quirk_states, quirks_in_force, read_quirks
from cispbench.harness.registry import load_method, method_names
from cispbench.harness.runs.plan import plan_run
from cispbench.harness.runs.recording import step_record
from cispbench.harness.training.optimisation import rates
from cispbench.splits.errors import RecipeError
from cispbench.splits.settings import paper_table, parse_setting

QUIRKS = [(name, quirk.name) for name in method_names() for quirk in read_quirks(load_method(name))]


def names(method: str, setting: str = "overlapped-15-1", profile: str = "paper", **more) -> set[str]:
    cls, chosen = load_method(method), parse_setting(setting)
    return {quirk.name for quirk in quirks_in_force(cls, chosen, load_recipe(cls, chosen, profile, **more))}


@pytest.mark.parametrize(
    ("method", "setting", "expected"),
    [
        ("finetune", "overlapped-15-1", {"void_as_background"}),
        ("finetune", "overlapped-100-10", set()),
        ("mib", "overlapped-15-1", {"void_as_background", "void_in_mean"}),
        ("mib", "overlapped-100-10", {"void_in_mean"}),
        ("plop", "overlapped-15-1", {"median", "mean_entropy", "void_in_mean"}),
        ("plop", "overlapped-10-1", {"median", "mean_entropy", "void_in_mean", "short_steps"}),
        ("plop", "overlapped-100-10", {"median", "mean_entropy", "void_in_mean", "weak_pod"}),
        (
            "mbs",
            "overlapped-15-1",
            {"padded_background", "padded_all_around", "constant_rate", "imagenet_statistics", "positive_patches"},
        ),
    ],
)
def test_the_quirks_of_the_papers_recipes(method, setting, expected):
    assert names(method, setting) == expected


def test_quirks_follow_the_value_not_who_set_it():
    assert "median" in names("plop")
    assert "median" not in names("plop", profile="quick")  # set otherwise by the recipe
    assert "median" in names("plop", profile="quick", overrides=["method.median=released"])
    assert "void_in_mean" in names("plop", profile="quick")  # by the option's default
    assert "padded_background" in names("mib", overrides=["data.pad_label=0"])
    assert "weak_pod" not in names("plop", "overlapped-100-10", overrides=["method.pod=0.005"])  # neither of the two


def test_a_quirk_of_a_family_is_not_anothers():
    assert "constant_rate" in names("mib", model="segmenter-vit-b16")
    assert "constant_rate" not in names("mib", overrides=["optim.schedule=constant"])
    assert "imagenet_statistics" not in names("mbs", model="segmenter-mobilenetv2")


@pytest.mark.parametrize(("method", "name"), QUIRKS)
def test_every_quirk_is_switched_by_its_own_words_where_it_can_hold(method, name):
    cls = load_method(method)
    for setting in [*paper_table(), parse_setting("voc:overlapped-4-4")]:
        for model in (None, "segmenter-vit-b16", "deeplabv3-resnet101"):
            plain = load_recipe(cls, setting, "paper", model)
            (quirk, here) = next(found for found in quirk_states(cls, setting, plain) if found[0].name == name)
            if here is None:
                continue
            for released in (True, False):
                change = quirk.switch(released).removeprefix("--set ")
                changed = load_recipe(cls, setting, "paper", model, [change])
                assert (name in {found.name for found in quirks_in_force(cls, setting, changed)}) is released
            return
    raise AssertionError(f"{method}: {name} can hold nowhere")


def test_every_quirk_says_what_it_is():
    for method, name in QUIRKS:
        (quirk,) = (found for found in read_quirks(load_method(method)) if found.name == name)
        assert quirk.what.endswith(".") and quirk.what[0].isupper() and len(quirk.what) <= 130
        assert " at " in quirk.source and "," in quirk.source


def test_the_constant_rate_never_falls_and_the_poly_schedule_does():
    cls, setting = load_method("mbs"), parse_setting("overlapped-15-1")
    released = load_recipe(cls, setting, "paper").phase(1)
    poly = load_recipe(cls, setting, "paper", overrides=["optim.schedule=poly"]).phase(1)
    assert [rates(released.schedule, [1.0], i, 10) for i in range(10)] == [[1.0]] * 10
    assert [rates(poly.schedule, [1.0], i, 10)[0] for i in range(10)] == pytest.approx(
        [(1 - i / 10) ** 0.9 for i in range(10)]
    )


def test_short_steps_are_those_after_the_first():
    cls, setting = load_method("plop"), parse_setting("overlapped-10-1")
    released = load_recipe(cls, setting, "paper")
    otherwise = load_recipe(cls, setting, "paper", overrides=["later.epochs=30"])
    assert [released.phase(step).epochs for step in (0, 1, 5)] == [30.0, 10.0, 10.0]
    assert [otherwise.phase(step).epochs for step in (0, 1, 5)] == [30.0, 30.0, 30.0]
    # A recipe whose steps are counted in iterations has no epochs after the first step.
    assert "short_steps" not in names("plop", "overlapped-10-1", profile="quick", model="deeplabv3-tiny")


@pytest.mark.parametrize(("overrides", "kept"), [([], {"void_in_mean"}), (["method.void_in_mean=false"], set())])
def test_the_record_lists_the_quirks_in_force(overrides, kept):
    cls, setting = load_method("mib"), parse_setting("overlapped-10-5")
    recipe = load_recipe(cls, setting, "quick", overrides=overrides)
    worker = cls(load_strict(cls.Options, recipe.method, "method"))
    source = SyntheticSource("voc", train=60, val=4, size=16)
    plan = plan_run(setting=setting, method=worker, recipe=recipe, profile="quick", seed=0, source=source)
    made = {
        "losses": {"iterations": [1], "terms": {"cross_entropy": [1.0]}}, "parameters": 1, "iterations": 1,
        "train_seconds": 1.0, "wall_seconds": 1.0, "images_per_second": 1.0, "resumed": False, "skipped_steps": 0,
        "peak_host_bytes": 1, "peak_device_bytes": None, "environment": {}, "created": "2025-01-31T12:00:00+00:00",
        "git": {"commit": None, "dirty": None},
    }  # fmt: skip
    tested = {"confusion": torch.eye(21, dtype=torch.int64).tolist(), "seconds": 1.0, "images": 4}
    assert set(step_record(plan, plan.steps[1], cls, tested, made).quirks) == kept
    # A shared base is trained without the method's options; of an imported step nothing is known.
    own = {quirk.name for quirk in read_quirks(cls) if quirk.option.startswith("method.")}
    assert set(step_record(plan, plan.steps[0], cls, tested, made).quirks) == (kept - own if cls.shared_base else kept)
    assert step_record(plan, plan.steps[1], cls, tested, made | {"imported": {}}).quirks == ()


GOOD = {
    "what": "Something is released otherwise.", "option": "method.weight", "released": 1.0, "otherwise": 2.0,
    "source": "x/y at 1234567, train.py",
}  # fmt: skip


@pytest.fixture
def third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A third party's method whose recipe file holds the quirks given, and the file."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "quirky_party.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import Literal\n"
        "from cispbench.methods.finetune import FineTune\n\n"
        "@dataclass(frozen=True)\nclass Options:\n    weight: float = 1.0\n"
        "    word: Literal['a', 'b'] = 'a'\n\n"
        "class Quirky(FineTune):\n    name = 'quirky'\n    Options = Options\n"
    )
    module = importlib.import_module("quirky_party")

    def make(text: str) -> SimpleNamespace:
        file = tmp_path / "recipes" / "quirky.yaml"
        file.write_text(text)
        return SimpleNamespace(method=module.Quirky, file=file)

    yield make
    sys.modules.pop("quirky_party")


def entry(**changes: object) -> str:
    """One quirk as YAML; None leaves a key out."""
    fields = {key: value for key, value in (GOOD | changes).items() if value is not None}
    return "quirks:\n  odd:\n" + "".join(f"    {key}: {value}\n" for key, value in fields.items())


def test_a_third_partys_quirk_is_read_and_in_force_by_default(third):
    made, setting = third(entry()), parse_setting("overlapped-15-1")
    *_, odd = read_quirks(made.method)
    assert odd == Quirk("odd", "quirky", **GOOD, conditions={})
    recipe = load_recipe(made.method, setting, "quick")
    assert odd in quirks_in_force(made.method, setting, recipe)
    other = load_recipe(made.method, setting, "quick", overrides=[odd.switch(released=False).removeprefix("--set ")])
    assert odd not in quirks_in_force(made.method, setting, other)


@pytest.mark.parametrize(("dataset", "holds"), [("voc", True), ("ade", False), ('["x", "v*"]', True)])
def test_conditions_are_those_of_layers(third, dataset, holds):
    made, setting = third(entry(dataset=dataset)), parse_setting("overlapped-15-1")
    recipe = load_recipe(made.method, setting, "quick")
    assert ("odd" in {quirk.name for quirk in quirks_in_force(made.method, setting, recipe)}) is holds


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"wat": "x"}, ["odd", "unknown key 'wat'", "Did you mean 'what'?"]),
        ({"profile": "paper"}, ["odd", "unknown key 'profile'"]),
        ({"what": None}, ["odd: what is missing"]),
        ({"released": None}, ["odd: released is missing"]),
        ({"source": None}, ["odd: source is missing"]),
        ({"what": 5}, ["odd: what is 5, not text"]),
        ({"option": "method.wieght"}, ["unknown key 'method.wieght'", "Did you mean 'weight'?"]),
        ({"option": "metod.weight"}, ["unknown key 'metod'", "Did you mean 'method'?"]),
        ({"option": "method"}, ["odd: released", "method is 1.0, not a mapping"]),
        ({"option": "data.padd_label"}, ["unknown key 'data.padd_label'", "Did you mean 'pad_label'?"]),
        ({"option": "data.pad_label", "released": 0, "otherwise": 7}, ["odd: otherwise", "pad_label", "not 7"]),
        ({"option": "later.lrr"}, ["unknown key 'later.lrr'"]),
        ({"option": "later.epochs", "released": -1.0}, ["odd: released", "later.epochs is -1.0, not a number above 0"]),
        ({"released": "high"}, ["odd: released", "weight is 'high', not a number"]),
        ({"otherwise": "{a: 1}"}, ["odd: otherwise", "{'a': 1}"]),
        ({"option": "method.word", "released": "c", "otherwise": "a"}, ["odd: released", "word is 'c'"]),
        ({"otherwise": 1.0}, ["odd: released and otherwise are both 1.0"]),
    ],
)
def test_a_wrong_quirk_is_refused_by_file_name_and_key(third, changes, says):
    made = third(entry(**changes))
    with pytest.raises(RecipeError) as caught:
        read_quirks(made.method)
    assert str(made.file) in str(caught.value)
    for text in says:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("quirks: [median]", "quirks maps names to what they are"),
        ("quirks: {odd: 5}", "odd: the value is 5, not a mapping"),
        (entry().replace("odd", "constant_rate"), "constant_rate is the name of a shared quirk"),
    ],
)
def test_quirks_that_are_no_quirks_are_refused(third, text, says):
    made = third(text)
    with pytest.raises(RecipeError) as caught:
        read_quirks(made.method)
    assert str(made.file) in str(caught.value)
    assert says in str(caught.value)


def test_a_key_that_is_neither_profile_nor_quirks_is_refused(third):
    made = third("quirk: {}")
    with pytest.raises(RecipeError, match="Did you mean 'quirks'"):
        load_recipe(made.method, parse_setting("overlapped-15-1"), "quick")
