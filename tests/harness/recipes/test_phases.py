"""Sections of steps and phases, the names of before there were rates, and what keys and records hold of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.method import Method
from cispbench.harness.recipes.fields import OptimRecipe, Recipe, read_recipe
from cispbench.harness.recipes.layers import load_recipe, resolve_recipe
from cispbench.harness.recipes.overrides import parse_override
from cispbench.harness.registry import load_method
from cispbench.harness.runs.plan import PlannedStep, plan_run
from cispbench.methods.finetune import FineTune
from cispbench.splits.errors import MethodError, RecipeError
from cispbench.splits.settings import Setting, parse_setting

SETTING = parse_setting("overlapped-15-1")


def quick(*overrides: str, method: str = "finetune", setting: Setting = SETTING) -> Recipe:
    return load_recipe(load_method(method), setting, "quick", overrides=overrides)


class Tuned(FineTune):
    """Fine-tuning with a phase before it from step 1 on."""

    def phases(self, setting: Setting, step: int) -> tuple[str, ...]:
        return ("pretune", "train") if step > 0 else ("train",)


class Twice(FineTune):
    shared_base = False

    def phases(self, setting: Setting, step: int) -> tuple[str, ...]:
        return ("train", "train")


class Without(Twice):
    def phases(self, setting: Setting, step: int) -> tuple[str, ...]:
        return ()


def planned(method: Method, recipe: Recipe, **more: Any) -> tuple[PlannedStep, ...]:
    source = SyntheticSource("voc", train=60, val=4, size=48)
    return plan_run(setting=SETTING, method=method, recipe=recipe, profile="quick", seed=0, source=source, **more).steps


def test_the_last_section_that_sets_a_field_wins() -> None:
    recipe = quick(
        "optim.lr=0.1", "optim.momentum=0.5", "later.lr=0.2", "later.clip=5", "steps.2.lr=0.3", "steps.2.power=2",
        "phases.pretune.lr=0.4",
    )  # fmt: skip
    lr = {(step, name): recipe.phase(step, name).lr for step in range(4) for name in ("train", "pretune")}
    assert {step: lr[step, "train"] for step in range(4)} == {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.2}
    assert {lr[step, "pretune"] for step in range(4)} == {0.4}
    second = recipe.phase(2, "pretune")
    assert (second.clip, second.power, second.momentum) == (5.0, 2.0, 0.5)
    assert recipe.phase(3, "pretune").power == 0.9
    assert recipe.phase(2) == recipe.phase(2, "train")


def test_a_length_takes_the_place_of_the_length_below_it() -> None:
    recipe = quick("optim.epochs=9", "later.iterations=7", "steps.2.epochs=3", "phases.pretune.iterations=0")
    lengths = [(recipe.phase(step, name).epochs, recipe.phase(step, name).iterations)
               for step, name in ((0, "train"), (1, "train"), (2, "train"), (2, "pretune"))]  # fmt: skip
    assert lengths == [(9.0, None), (None, 7), (3.0, None), (None, 0)]


def test_within_a_section_the_last_length_wins() -> None:
    recipe = quick("phases.pretune.epochs=2", "phases.pretune.iterations=5", "steps.1.iterations=5", "steps.1.epochs=2")
    assert recipe.phases == {"pretune": {"iterations": 5}} and recipe.steps == {"1": {"epochs": 2}}


def test_rates_and_decay_change_selector_by_selector() -> None:
    recipe = quick("optim.rates={encoder: 0.1, decoder: 0.5}", "later.rates.old=0", "steps.1.rates.encoder=0",
                   "later.decay={old: 0}")  # fmt: skip
    assert recipe.phase(0).rates == {"encoder": 0.1, "decoder": 0.5}
    assert recipe.phase(1).rates == {"encoder": 0.0, "decoder": 0.5, "old": 0.0}
    assert recipe.phase(2).rates == {"encoder": 0.1, "decoder": 0.5, "old": 0.0}
    assert (recipe.phase(0).decay, recipe.phase(2).decay) == ({}, {"old": 0.0})


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("phases.pretune.lrr=1", "unknown key 'phases.pretune.lrr'. Did you mean 'lr'?"),
        ("phases.pretune=5", "phases.pretune is 5, not a mapping"),
        ("phase.pretune.lr=1", "unknown key 'phase.pretune.lr'"),
        ("steps.1.batch=0", "steps.1.batch is 0, not a whole number"),
        ("steps.one.lr=0.1", "a key of steps must be a step's number, not 'one'"),
        ("steps.01.lr=0.1", "a key of steps must be a step's number, not '01'"),
        ("steps.6.lr=0.1", "steps.6: overlapped-15-1 has the steps 0 to 5"),
        ("steps.0.warmup_share=2", "steps.0.warmup_share is 2, not a number from 0 to 1"),
        ("optim.rates.encoder=-1", "optim.rates.encoder is -1, not a number"),
        ("optim.rates.encoder=high", "optim.rates.encoder is 'high', not a number"),
        ("optim.rates=3", "optim.rates is 3, not a mapping"),
        ("optim.encoder_lr=high", "optim.rates.encoder is 'high', not a number"),
        ("later.decay.old=no", "later.decay.old is 'no', not a number"),
        ("optim.encoder_lrr=1", "unknown key 'optim.encoder_lrr'"),
        ("optim={encoder_lr: 1, rates: {encoder: 1}}", "encoder_lr and rates.encoder are both given"),
    ],
)
def test_wrong_sections_name_key_and_value(override: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        quick(override)
    assert says in str(caught.value)


def test_the_old_names_are_read_wherever_they_may_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = quick("optim.rates.encoder=0.25", "later.rates.classifier=3", "steps.2.rates.encoder=0.5")
    assert quick("optim.encoder_lr=0.25", "later.classifier_lr=3", "steps.2.encoder_lr=0.5") == new
    assert quick("optim={encoder_lr: 0.25}", "later={classifier_lr: 3}", "steps={2: {encoder_lr: 0.5}}") == new
    assert parse_override("optim.encoder_lr=0.5") == {"optim": {"rates": {"encoder": 0.5}}}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "older.yaml").write_text(
        "quick:\n  - {optim: {encoder_lr: 0.25}, later: {classifier_lr: 3}, steps: {2: {encoder_lr: 0.5}}, source: s}\n"
    )
    (tmp_path / "older_party.py").write_text(
        "from cispbench.methods.finetune import FineTune\n\nclass Older(FineTune):\n    name = 'older'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import older_party

    found = resolve_recipe(older_party.Older, SETTING, "quick")
    assert found.recipe == new
    assert found.sources["optim.rates.encoder"] == found.sources["steps.2.rates.encoder"] == "s"


RECORDED_BEFORE = {
    "lr": 0.2, "encoder_lr": 1.0, "classifier_lr": 1.0, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0001,
    "schedule": "poly", "power": 0.9, "warmup": 20, "batch": 16, "epochs": None, "iterations": 600, "clip": 1.0,
    "precision": "fp32",
}  # fmt: skip


# The quick recipe has changed since.
AS_BEFORE = ("optim.optimizer=sgd", "optim.lr=0.2", "optim.warmup=20", "optim.iterations=600")


def test_records_hold_what_they_held_before() -> None:
    recipe = quick(*AS_BEFORE)
    recorded = recipe.as_recorded()
    assert recorded["optim"] == RECORDED_BEFORE == recipe.phase(0).as_recorded()
    assert "steps" not in recorded and "phases" not in recorded
    changed = quick(*AS_BEFORE, "optim.encoder_lr=0.5", "later.encoder_lr=0.25", "optim.rates.decoder=2")
    assert changed.as_recorded()["optim"] == {**RECORDED_BEFORE, "encoder_lr": 0.5, "rates": {"decoder": 2.0}}
    assert changed.as_recorded()["later"]["encoder_lr"] == 0.25


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("optim.encoder_lr=0.5", "later.classifier_lr=2"),
        ("optim.rates={old: 0, encoder: 0.1}", "later.decay.new=2", "optim.floor=1e-6", "later.floor=0"),
        ("optim.optimizer=adamw", "optim.betas=[0.8, 0.9]", "optim.eps=1e-10", "optim.frozen_norms=[encoder, old]"),
        ("steps.1.rates.old=0", "phases.pretune.epochs=1", "steps.1.frozen_dropout=[all]", "steps.1.warmup=0",
         "steps.1.warmup_share=0.1"),
    ],
)  # fmt: skip
def test_a_record_gives_the_recipe_back(overrides: tuple[str, ...]) -> None:
    recipe = quick(*overrides)
    back = read_recipe(json.loads(json.dumps(recipe.as_recorded())), "here")
    phases = [(step, name) for step in range(3) for name in ("train", "pretune")]
    effective = [{**vars(r.phase(*phase)), "rates": {"encoder": 1.0, "classifier": 1.0} | r.phase(*phase).rates}
                 for r in (recipe, back) for phase in phases]  # fmt: skip
    assert effective[: len(phases)] == effective[len(phases) :]


def test_every_new_field_reaches_record_and_key() -> None:
    default = OptimRecipe(epochs=1)
    changes: dict[str, Any] = {
        "rates": {"old": 0.5}, "decay": {"old": 0.5}, "optimizer": "adamw", "betas": (0.1, 0.2), "eps": 1e-10,
        "floor": 1e-6, "warmup_share": 0.1, "warmup_start": 0.5, "frozen_norms": ("all",), "frozen_dropout": ("all",),
    }  # fmt: skip
    for name, value in changes.items():
        recorded = OptimRecipe(epochs=1, **{name: value}).as_recorded()
        assert recorded == {**default.as_recorded(), name: value}, name


def test_the_key_of_a_step_with_one_phase_is_todays_and_one_with_two_holds_both() -> None:
    recipe = quick("phases.pretune.lr=0.5", "phases.pretune.rates.encoder=0")
    plain, tuned = planned(FineTune(), quick()), planned(Tuned(), recipe)
    assert plain[0].key == tuned[0].key  # step 0 is shared
    assert set(plain[1].made_of) == set(tuned[1].made_of) - {"phases"}
    assert plain[1].made_of["optim"] == tuned[1].made_of["optim"]
    assert tuned[1].made_of["phases"] == {"pretune": recipe.phase(1, "pretune").as_recorded()}
    assert (tuned[0].phases, tuned[1].phases) == (("train",), ("pretune", "train"))
    other = planned(Tuned(), quick("phases.pretune.lr=0.25", "phases.pretune.rates.encoder=0"))
    assert other[0].key == tuned[0].key and other[1].key != tuned[1].key


def test_a_section_of_a_step_changes_the_keys_from_there_on() -> None:
    plain, changed = planned(FineTune(), quick()), planned(FineTune(), quick("steps.3.lr=0.5"))
    same = [a.key == b.key for a, b in zip(plain, changed, strict=True)]
    assert same == [True, True, True, False, False, False]


def test_phases_that_no_step_has_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"phases.pretun: finetune has no such phase. Did you mean 'pretune'"):
        planned(Tuned(), quick("phases.pretun.lr=0.5"))
    with pytest.raises(RecipeError, match="no such phase"):
        planned(FineTune(), quick("phases.pretune.lr=0.5"))
    for method in (Twice(), Without()):
        with pytest.raises(MethodError, match="at least one, and each once"):
            planned(method, quick())


def test_micro_batches_of_two_phases_are_parts_of_the_key_by_name() -> None:
    recipe = load_recipe(FineTune, SETTING, "quick", "deeplabv3-tiny", ["optim.batch=8", "phases.pretune.batch=4"])
    steps = planned(Tuned(), recipe, micro_batch=4)
    assert steps[0].made_of["parts"] == 2
    assert steps[1].made_of["parts"] == {"train": 2}
    frozen = load_recipe(FineTune, SETTING, "quick", "deeplabv3-tiny", ["later.frozen_norms=[all]", "optim.batch=8"])
    assert "parts" not in planned(FineTune(), frozen, micro_batch=4)[1].made_of


def test_show_prints_both_sections(commands: Any) -> None:
    words = ["show", "finetune", "--profile", "quick", "--set", "steps.2.lr=0.3", "--set", "steps.2.rates.old=0"]
    text = commands.succeed([*words, "--set", "phases.train.batch=7"]).stdout
    lines = [line.partition("#")[0].rstrip() for line in text.splitlines()]
    start = lines.index("steps:")
    assert lines[start : start + 5] == ["steps:", "  '2':", "    lr: 0.3", "    rates:", "      old: 0"]
    assert "phases:" in lines and "    batch: 7" in lines
