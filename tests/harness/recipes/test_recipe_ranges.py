"""Every number of a recipe and of a method has a range, and values outside are refused before a training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from cispbench.harness.method import Method, Range
from cispbench.harness.recipes.fields import DataRecipe, EvaluationRecipe, OptimRecipe, load_strict
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method, method_names
from cispbench.splits.errors import RecipeError
from cispbench.splits.settings import parse_setting
from cispbench.splits.strict_fields import check_ranges
from tests.harness.conftest import Commands

WITH_NUMBERS = [DataRecipe, EvaluationRecipe, OptimRecipe, *(load_method(name).Options for name in method_names())]
CHOICES = {"pad_label"}  # one of two numbers


def bare_numbers(hint: Any) -> Iterator[type]:
    if hint in (int, float):
        yield hint
    if get_origin(hint) is not Annotated:
        for inner in get_args(hint):
            yield from bare_numbers(inner)


@pytest.mark.parametrize("kind", dict.fromkeys(WITH_NUMBERS), ids=lambda kind: kind.__name__)
def test_every_number_has_a_range(kind: Any) -> None:
    hints = get_type_hints(kind, include_extras=True)
    assert {name for name, hint in hints.items() if list(bare_numbers(hint))} <= CHOICES
    assert is_dataclass(kind) and all(entry.name in hints for entry in fields(kind))
    if kind is not OptimRecipe:  # which needs a length
        check_ranges(kind(), RecipeError)


@pytest.mark.parametrize(
    ("method", "change", "says"),
    [
        ("mib", "method.alpha=.inf", "method.alpha is inf, not a finite number."),
        ("mib", "method.alpha=0", "method.alpha is 0, not a number above 0 and at most 1000."),
        ("mib", "method.distillation=-5", "method.distillation is -5, not a number from 0 to 1000000."),
        ("mib", "method.distillation=.nan", "method.distillation is nan, not a finite number."),
        ("mib", "optim.lr=1e308", "optim.lr is 1e+308, not a number above 0 and at most 1000."),
        ("mib", "later.lr=1e308", "later.lr is 1e+308, not a number above 0 and at most 1000."),
        ("mib", "data.crop=1000000", "data.crop is 1000000, not a whole number from 2 to 16384."),
        ("mib", "data.scale=[0.5,1e9]", "data.scale[1] is 1000000000.0, not a number above 0 and at most 100."),
        ("mib", "optim.epochs=-1", "optim.epochs is -1, not a number above 0 and at most 1000000 or null."),
        ("ilt", "method.encoder_distillation=-1", "method.encoder_distillation is -1, not"),
        ("mbs", "method.threshold=1.5", "method.threshold is 1.5, not a number from 0 to 1."),
        ("plop", "method.scales=[1,0]", "method.scales[1] is 0, not a whole number from 1 to 1024."),
        ("plop", "method.scales=[]", "method: scales is empty"),
        ("plop", "method.bins=0", "method.bins is 0, not a whole number from 1 to 100000."),
    ],
)
def test_a_number_outside_of_its_range_is_refused_before_anything_is_trained(
    commands: Commands, method: str, change: str, says: str
) -> None:
    said = commands.refused(2, commands.tiny("--set", change, method=method))
    assert f"recipe: {says}" in said
    assert not commands.out.exists() and not (commands.steps / "steps").exists()


class Own(Method):
    """A method of another package."""

    name = "own"

    @dataclass(frozen=True)
    class Options:
        weight: Annotated[float, Range(least=0)] = 1.0
        free: Any = None
        computed: float = 1.0

        def __post_init__(self) -> None:
            object.__setattr__(self, "computed", self.weight * 1e300 * 1e10)

    def losses(self, *given: Any) -> Any:
        raise NotImplementedError


def test_an_own_method_declares_a_range_and_is_held_to_finite_numbers_without_one() -> None:
    def load(*overrides: str) -> object:
        return load_recipe(Own, parse_setting("overlapped-15-1"), "quick", overrides=overrides)

    assert load("method.weight=0")
    with pytest.raises(RecipeError, match=r"recipe: method.weight is -0.1, not a number of at least 0."):
        load("method.weight=-0.1")
    with pytest.raises(RecipeError, match=r"method.free is \[inf\], not a value without NaN and infinity"):
        load("method.weight=0", "method.free=[.inf]")
    with pytest.raises(RecipeError, match=r"^recipe.method.computed is inf \(float\), which JSON cannot hold"):
        load("method.weight=1")


def test_defaults_of_the_options_stay_what_they_were() -> None:
    assert load_strict(load_method("mbs").Options, {}, "here") == load_method("mbs").Options()
