"""Recipes, keys and records of a wrapper: a method that changes another one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.recipes.fields import Recipe
from cispbench.harness.recipes.layers import SourcedRecipe, resolve_recipe
from cispbench.harness.recipes.quirks import quirk_states, quirks_in_force
from cispbench.harness.registry import load_method, make_method, read_options
from cispbench.harness.runs.inputs import planned_method
from cispbench.harness.runs.key_parts import changed_parts
from cispbench.harness.runs.method_code import code_of, method_code
from cispbench.harness.runs.plan import PlannedStep, plan_run
from cispbench.harness.runs.prepare import Preparer
from cispbench.harness.runs.request import RunRequest
from cispbench.harness.runs.step_store import StepStore
from cispbench.splits.errors import RecipeError, RunError
from cispbench.splits.settings import parse_setting

SETTING = parse_setting("overlapped-15-1")
CODE = """
from dataclasses import dataclass

from cispbench.harness.wrapper import Wrapper, WrapperOptions
from cispbench.methods.finetune import FineTune


@dataclass(frozen=True)
class FuseOptions(WrapperOptions):
    weight: float = 0.5


class Fuse(Wrapper):
    name = "fuse"
    version = 3
    Options = FuseOptions


class Nameless(Fuse):
    name = "nameless"


@dataclass(frozen=True)
class HalvedOptions:
    half: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "half", self.half / 2)


class Halved(FineTune):
    name = "halved"
    version = 7
    Options = HalvedOptions
"""
RECIPE = """
paper:
  - {source: the wrapper names its base, method: {base: plop, weight: 0.25}}
  - {source: of MiB alone, base_is: mib, method: {base_options: {distillation: 7.0}}, later: {epochs: 3}}
quick:
  - {source: quick base, method: {base: mib}}
quirks:
  heavy:
    {what: w, option: method.weight, released: 0.25, otherwise: 0.5, source: s, base_is: plop}
"""


@pytest.fixture(autouse=True)
def fuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with a wrapper, its recipe, and a base of its own."""
    folder = tmp_path / "site"
    info = folder / "planted-1.dist-info"
    info.mkdir(parents=True)
    (folder / "recipes").mkdir()
    (folder / "planted_fuse.py").write_text(CODE)
    (folder / "recipes" / "fuse.yaml").write_text(RECIPE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1\n")
    names = {"fuse": "Fuse", "nameless": "Nameless", "halved": "Halved"}
    entries = [f"{name} = planted_fuse:{cls}" for name, cls in names.items()]
    (info / "entry_points.txt").write_text("\n".join(["[cispbench.methods]", *entries, ""]))
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("planted_fuse", None)
    method_code.cache_clear()


def sourced(*overrides: str, profile: str = "paper", method: str = "fuse") -> SourcedRecipe:
    return resolve_recipe(load_method(method), SETTING, profile, overrides=overrides)


def steps(recipe: Recipe, method: str = "fuse") -> tuple[PlannedStep, ...]:
    made = make_method(load_method(method), recipe.method)
    source = SyntheticSource("voc", train=60, val=4, size=48)
    return plan_run(setting=SETTING, method=made, recipe=recipe, profile="quick", seed=0, source=source).steps


def test_the_bases_recipe_lies_below_the_wrappers() -> None:
    found = sourced()
    plop = resolve_recipe(load_method("plop"), SETTING, "paper")
    options = {path.removeprefix("method."): value for path, value in plop.values.items() if path.startswith("method.")}
    base = {path: value for path, value in found.values.items() if path.startswith("method.base_options.")}
    assert base == {f"method.base_options.{name}": value for name, value in options.items()}
    assert found.sources["method.base_options.pod"] == plop.sources["method.pod"]
    rest = {path: value for path, value in plop.values.items() if not path.startswith("method.")}
    assert {path: value for path, value in found.values.items() if not path.startswith("method.")} == rest
    assert (found.values["method.base"], found.values["method.weight"]) == ("plop", 0.25)
    assert found.sources["method.base"] == "the wrapper names its base"


def test_another_base_brings_its_own_recipe_and_the_layers_for_it() -> None:
    found = sourced("method.base=mib")
    assert found.values["method.base_options.distillation"] == 7.0
    assert found.sources["method.base_options.distillation"] == "of MiB alone"
    assert (found.values["later.epochs"], found.values["optim.precision"]) == (3, "fp32")
    assert "method.base_options.pod" not in found.values
    assert found.sources["method.base"] == "--set"


def test_options_of_the_base_are_set_and_checked_as_the_bases_own() -> None:
    assert sourced("method.base_options.pod=0.5").values["method.base_options.pod"] == 0.5
    word = sourced("method.base_options.median=true").values["method.base_options.median"]
    assert word == "true"  # a choice among words, which YAML would read otherwise
    for override, says in (
        ("method.base_options.podd=1", "unknown key 'method.base_options.podd'. Did you mean 'pod'?"),
        ("method.base_options.pod=high", "method.base_options.pod is 'high', not a number"),
        ("method.base_options=3", "method.base_options is 3, not a mapping"),
        ("method.pod=1", "Did you mean 'method.base_options.pod'?"),
        ("method.wieght=1", "Did you mean 'method.weight'?"),
    ):
        with pytest.raises(RecipeError) as caught:
            sourced(override)
        assert says in str(caught.value)


def test_a_base_that_is_unknown_or_not_named_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"^method.base of \w+: unknown method 'mibb'. Did you mean 'mib'"):
        sourced("method.base=mibb")
    with pytest.raises(RecipeError, match="nameless changes another method, and no recipe says which"):
        sourced(method="nameless")
    assert sourced("method.base=mib", method="nameless").values["method.base"] == "mib"


def test_a_base_that_depends_on_the_model_is_refused(fuse: Path) -> None:
    (fuse / "recipes" / "fuse.yaml").write_text(
        "paper:\n  - {method: {base: plop}}\n  - {family: segmenter, method: {base: mib}}\n"
    )
    with pytest.raises(RecipeError, match="the base of fuse is plop or mib, depending on the model or the base"):
        sourced()


def test_a_wrapper_may_change_a_wrapper() -> None:
    found = sourced("method.base=fuse", method="nameless")
    assert found.values["method.base_options.base"] == "plop"
    assert found.values["method.base_options.base_options.pod"] == 0.01
    made = make_method(load_method("nameless"), found.recipe.method)
    assert [made.name, made.base.name, made.base.base.name] == ["nameless", "fuse", "plop"]
    inner = sourced("method.base=fuse", "method.base_options.base=mib", method="nameless")
    assert inner.values["method.base_options.base_options.distillation"] == 7.0


def test_a_method_is_made_with_its_base_and_its_options_are_complete() -> None:
    values = {"base": "plop", "base_options": {"pod": 0.5}, "weight": 0.75}
    made = make_method(load_method("fuse"), values)
    assert (made.options.weight, made.base.name, made.base.options.pod) == (0.75, "plop", 0.5)
    assert made.options.base_options == read_options(load_method("plop"), {"pod": 0.5}).__dict__
    assert values == {"base": "plop", "base_options": {"pod": 0.5}, "weight": 0.75}


def test_options_of_a_base_that_compute_do_so_once() -> None:
    made = make_method(load_method("fuse"), {"base": "halved", "base_options": {"half": 8.0}})
    assert made.base.options.half == made.options.base_options["half"] == 4.0


def test_the_key_holds_the_bases_name_version_options_and_code() -> None:
    plain = steps(sourced(profile="quick").recipe)
    part = plain[1].made_of["method"]
    assert (part["name"], part["version"], part["options"]["base"]) == ("fuse", 3, "mib")
    assert part["base"]["name"] == "mib" and "code" not in part["base"]  # it comes with cispbench
    assert part["base"]["options"] == part["options"]["base_options"]
    assert part["code"] == method_code(load_method("fuse"))
    changed = steps(sourced("method.base_options.alpha=0.5", profile="quick").recipe)
    assert plain[0].key == changed[0].key and plain[1].key != changed[1].key
    assert "method.base_options.alpha is 0.5, was 1.0" in changed_parts(plain[1].made_of, changed[1].made_of, 1)
    other = steps(sourced("method.base=halved", profile="quick").recipe)
    part = other[1].made_of["method"]["base"]
    assert (part["version"], part["options"], part["code"]) == (7, {"half": 0.5}, method_code(load_method("halved")))


@pytest.mark.parametrize("change", [{"version": 8}, {"code": "abc"}])
def test_a_base_that_changed_is_named(change: dict[str, Any]) -> None:
    now = steps(sourced("method.base=halved", profile="quick").recipe)[1].made_of
    before = json.loads(json.dumps(dict(now)))
    before["method"]["base"] |= change
    (said,) = changed_parts(before, now, 1)
    assert said == ("the version of halved is 7, was 8" if "version" in change else "the code of the method changed")


def test_step_0_is_shared_with_the_base() -> None:
    base = resolve_recipe(load_method("mib"), SETTING, "quick").recipe
    assert steps(sourced(profile="quick").recipe)[0].key == steps(base, "mib")[0].key


def test_a_changed_version_of_the_base_is_another_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = RunRequest("fuse", "overlapped-15-5", profile="quick", overrides=("method.base=halved",))
    plan = Preparer(StepStore(tmp_path), ProgressView()).prepare(request)
    assert plan.method.options == {"base": "halved", "base_options": {"half": 0.5}, "weight": 0.5}
    made = planned_method(plan)
    assert made.options.weight == 0.5
    assert plan.method.code == code_of(made) != method_code(load_method("fuse"))
    monkeypatch.setattr(load_method("halved"), "version", 8)
    with pytest.raises(RunError, match="versions of training, models and method"):
        planned_method(plan)


def test_quirks_of_the_base_are_seen_and_switched_by_its_options() -> None:
    method, found = load_method("fuse"), sourced()
    states = {quirk.name: (quirk, in_force) for quirk, in_force in quirk_states(method, SETTING, found.recipe)}
    median, in_force = states["median"]
    assert in_force and median.method == "plop"
    assert median.switch(released=False) == "--set method.base_options.median=true"
    assert states["heavy"][1] is True
    other = sourced("method.base_options.median=true")
    assert "median" not in {quirk.name for quirk in quirks_in_force(method, SETTING, other.recipe)}
    of_mib = {q.name: state for q, state in quirk_states(method, SETTING, sourced("method.base=mib").recipe)}
    assert of_mib["heavy"] is None and "median" not in of_mib


def test_a_run_is_recorded_under_the_wrapper_with_the_base_in_its_options(commands: Any, fuse: Path) -> None:
    words = commands.tiny("--set", "method.base=mib", "--set", "method.base_options.alpha=0.5", method="fuse")
    commands.succeed(words)
    record = json.loads(commands.records()[1].read_text())
    assert record["method"]["name"] == "fuse"
    assert record["method"]["options"]["base"] == "mib"
    assert record["method"]["options"]["base_options"]["alpha"] == 0.5
    assert "balanced_init" in record["method"]["options"]["base_options"]
    assert set(record["losses"]["terms"]) == {"cross_entropy", "distillation"}
    text = commands.succeed(["show", "fuse", "--set", "method.base=mib"]).stdout
    assert re.search(r"^method:\n  base: mib .*\n  base_options:\n    distillation: 7.0 ", text, re.MULTILINE)
