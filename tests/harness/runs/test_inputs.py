"""A recipe fits its weights: the paper's own keep its normalisation, whoever names them; all others bring theirs."""

from __future__ import annotations

import pytest

from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.models.catalogue import model_spec
from cispbench.harness.recipes.fields import Recipe
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.runs.inputs import fit_weights
from cispbench.harness.runs.weights_choice import WeightsChoice
from cispbench.methods.mbs import MBS
from cispbench.splits.settings import parse_setting

VIT = str(model_spec("segmenter-vit-b16").weights)


class Notes(ProgressView):
    """Notes alone."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def fitted(profile: str, choice: WeightsChoice, *overrides: str) -> tuple[Recipe, list[str]]:
    recipe = load_recipe(MBS, parse_setting("overlapped-15-1"), profile, None, overrides)
    notes = Notes()
    return fit_weights(recipe, choice, profile, overrides, notes), notes.lines


def weights(label: str, normalise: str | None) -> WeightsChoice:
    return WeightsChoice(label, "00", normalise, lambda model: None)  # type: ignore[arg-type]


def test_the_papers_own_weights_keep_the_papers_normalisation() -> None:
    recipe, notes = fitted("paper", weights(VIT, "half"))
    assert (recipe.weights, recipe.data.normalise, notes) == (VIT, "imagenet", [])


def test_other_weights_under_the_papers_recipe_bring_their_own_and_say_so() -> None:
    recipe, notes = fitted("paper", weights("others", "half"))
    assert (recipe.weights, recipe.data.normalise) == ("others", "half")
    assert notes == [
        "weights others: images are normalised as for their training (half), where the recipe says imagenet"
    ]


def test_weights_of_an_unknown_kind_are_told() -> None:
    recipe, notes = fitted("paper", weights("net.pth", None))
    assert recipe.data.normalise == "imagenet"
    assert len(notes) == 1 and "unknown here" in notes[0]


def test_small_runs_normalise_as_their_weights_want() -> None:
    own = str(model_spec("deeplabv3-mobilenetv2").weights)
    recipe, notes = fitted("mini", weights(own, "imagenet"))
    assert (recipe.data.normalise, recipe.freeze_batch_norm, notes) == ("imagenet", True, [])


@pytest.mark.parametrize("profile", ["paper", "mini"])
def test_what_the_user_sets_stays(profile: str) -> None:
    assert fitted(profile, weights("others", "imagenet"), "data.normalise=half")[0].data.normalise == "half"


def test_a_random_start_trains_its_batch_norms() -> None:
    recipe, notes = fitted("mini", WeightsChoice("none"))
    assert (recipe.weights, recipe.freeze_batch_norm) == ("none", False)
    assert len(notes) == 1 and "random start" in notes[0]
