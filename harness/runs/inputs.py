"""What a plan names, opened: its data, its method and its pre-trained weights.

A plan holds names and values alone, so that it can be sent to another process or machine. What is opened there must be
what was planned: changed code, data or weights are errors, never another result under the same key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cispbench.harness.data.companions import Maps
from cispbench.harness.data.source import Source, find_source
from cispbench.harness.data.synthetic import synthetic_source
from cispbench.harness.machine.progress import ProgressView, index_progress
from cispbench.harness.method import Companion, Method
from cispbench.harness.recipes.recipe_files import PROFILES
from cispbench.harness.registry import load_method, make_method
from cispbench.harness.runs.keys import code_versions
from cispbench.harness.runs.method_code import code_of
from cispbench.harness.runs.plan import PlannedStep, RunPlan
from cispbench.harness.runs.weights_choice import choose_weights
from cispbench.splits.errors import DataError, RunError, UsageError, WeightsError, nearest

if TYPE_CHECKING:
    from cispbench.harness.models.interface import IncrementalModel

AGAIN = "Start it again: the same command plans with what is there now."


def open_source(dataset: str, profile: str, data_root: Path | None, cache: Path, view: ProgressView) -> Source:
    """Return the data of a profile: synthetic scenes for ``quick``, the data set's folder for the others.

    ``cache``: folder of the data's index. Raises UsageError for an unknown profile, DataError for data that are not
    found or break a rule.
    """
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}.", hint=nearest(profile, PROFILES))
    if profile != "quick":
        return find_source(dataset, data_root, cache, index_progress(view))
    if data_root is not None:
        raise UsageError(f"the profile quick draws its own scenes; --data-root {data_root} would be ignored.",
                         hint="Use --profile mini or paper, or leave --data-root out.")  # fmt: skip
    return synthetic_source(dataset)


def planned_source(plan: RunPlan, cache: Path, view: ProgressView) -> Source:
    """Open the data of a plan. Raises DataError where they have changed since it was made."""
    source = open_source(plan.setting.dataset, plan.profile, plan.data.root, cache, view)
    if source.fingerprint != plan.data.fingerprint:
        raise DataError(
            f"the data of {plan.setting.name} have changed since the run was planned: their fingerprint is "
            f"{source.fingerprint[:10]}, and was {plan.data.fingerprint[:10]}.",
            hint=AGAIN,
        )
    return source


def planned_maps(plan: RunPlan, planned: PlannedStep, source: Source) -> list[Maps]:
    """Open the companions that a step is trained with. Raises DataError where they have changed since the plan."""
    steps = plan.method.map_steps(planned.step, plan.steps[0].step)
    ids = sorted({image_id for step in steps for image_id in plan.planned(step).images})
    companions = plan.method.trained_with(planned.step)
    return _open_maps(companions, source, "train", ids, planned.made_of.get("companions", {}))


def planned_test_maps(plan: RunPlan, source: Source) -> list[Maps]:
    """Open the companions of the test images. Raises DataError where they have changed since the plan."""
    companions = [companion for companion in plan.method.companions if companion.at_test]
    return _open_maps(companions, source, "val", source.ids("val"), plan.test_maps)


def _open_maps(
    companions: Iterable[Companion], source: Source, split: str, ids: Sequence[str], planned: Mapping[str, str]
) -> list[Maps]:
    opened = [source.maps(companion, split, ids) for companion in companions]
    for maps in opened:
        name, fingerprint = maps.companion.name, planned[maps.companion.name]
        if maps.fingerprint != fingerprint:
            raise DataError(
                f"the maps of the companion {name} ({maps.companion.folder}) have changed since the run was planned: "
                f"their fingerprint is {maps.fingerprint[:10]}, and was {fingerprint[:10]}.",
                hint=AGAIN,
            )
    return opened


def planned_method(plan: RunPlan) -> Method:
    """Make the method of a plan. Raises RunError where its code is not that of the plan."""
    cls = load_method(plan.method.name)
    # From the recipe, as the plan did: options may compute with what they are given, and must not do so twice.
    method = make_method(cls, plan.recipe.method)
    if code_versions(method) != plan.versions:
        raise RunError(
            "the code has changed since the run was planned: the versions of training, models and method are "
            f"{code_versions(method)}, and were {plan.versions}.",
            hint=AGAIN,
        )
    code = code_of(method)
    if code != plan.method.code:
        raise RunError(
            f"the code of {plan.method.name} has changed since the run was planned: its digest is "
            f"{code[:10]}, and was {plan.method.code[:10]}.",
            hint=AGAIN,
        )
    if asdict(method.options) != dict(plan.method.options):
        raise RunError(
            f"the code has changed since the run was planned: the options of {plan.method.name} are "
            f"{asdict(method.options)}, and were {dict(plan.method.options)}.",
            hint=AGAIN,
        )
    return method


def load_planned_weights(plan: RunPlan, fresh: IncrementalModel, folder: Path) -> None:
    """Put the pre-trained weights of a plan into a fresh model. Raises WeightsError where they have changed.

    ``folder``: where fetched weights lie.
    """
    if plan.weights.sha256 is None:  # a random start
        return
    choice = choose_weights(plan.weights.asked, plan.recipe.model, folder, named=plan.weights.named)
    if choice.sha256 != plan.weights.sha256:
        raise WeightsError(
            f"the weights {plan.weights.asked} have changed since the run was planned: their SHA-256 is "
            f"{choice.sha256}, and was {plan.weights.sha256}.",
            hint=AGAIN,
        )
    choice.load(fresh)
