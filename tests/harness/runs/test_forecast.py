"""The warning before a training under the profile paper without a GPU, or on a part of a data set."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch

from cispbench.harness.machine.progress import ProgressView, describe_seconds, make_view
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.runs import forecast
from cispbench.harness.runs.forecast import paper_warnings
from cispbench.harness.runs.plan import RunPlan
from cispbench.harness.runs.prepare import Preparer
from cispbench.harness.runs.request import RunRequest
from cispbench.harness.runs.step_cost import StepCosts, Training
from cispbench.harness.runs.step_store import StepStore

CPU = torch.device("cpu")


@pytest.fixture
def plan(tmp_path: Any) -> RunPlan:
    """Scenes, called full data under the profile paper: 15-5 with 3 and 2 iterations of a batch of 4."""
    sets = ("optim.batch=4", "optim.iterations=3", "later.epochs=null", "later.iterations=2")
    request = RunRequest("mib", "overlapped-15-5", profile="quick", overrides=sets)
    made = Preparer(StepStore(tmp_path), ProgressView()).prepare(request)
    return replace(made, profile="paper", data=replace(made.data, kind="full"))


def both(plan: RunPlan) -> list[Training]:
    return [Training(plan, step) for step in (0, 1)]


def test_without_a_gpu_it_tells_the_time_that_all_images_take(plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = StepCosts()
    flops = sum(phase.work.flops.total for training in both(plan) for phase in costs.training(training))
    monkeypatch.setattr(forecast, "network_speed", lambda *_: flops / 36000)
    warning, text = paper_warnings(both(plan), CPU)
    assert warning.startswith("WARNING: the profile paper without a GPU.") and "--profile mini" in warning
    assert f"about {describe_seconds(36000)} or more" in text
    assert "20 images" in text
    _, halved = paper_warnings(both(plan), CPU, parallel=2)
    assert f"about {describe_seconds(18000)} or more" in halved


def test_a_part_of_a_data_set_is_told_on_a_gpu_too(plan: RunPlan) -> None:
    part = replace(plan, data=replace(plan.data, kind="mini"))
    (text,) = paper_warnings(both(part), None)
    assert "on a part of PASCAL VOC 2012: NOT comparable" in text
    assert "GPU" not in text and "about" not in text


def test_what_needs_no_warning_has_none(plan: RunPlan) -> None:
    assert not list(paper_warnings(both(plan), None))
    assert not list(paper_warnings(both(replace(plan, profile="quick")), CPU))
    assert not list(paper_warnings([], CPU))


def test_a_network_that_cannot_be_measured_is_said_and_no_error(plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> float:
        raise RuntimeError("can't allocate memory\nat ...")

    monkeypatch.setattr(forecast, "network_speed", fail)
    _, text = paper_warnings(both(plan), CPU)
    assert "could not be estimated: can't allocate memory" in text


@pytest.mark.parametrize("what", ["features", "grow"])
def test_a_network_that_asserts_ends_no_training(plan: RunPlan, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    # The networks of the plan's steps are made again for the estimate, and may be anybody's.
    monkeypatch.setattr(type(build_model(plan.recipe.model, 32)), what, fail)
    _, text = paper_warnings(both(plan), CPU)
    assert "could not be estimated: the network" in text and "AssertionError" in text


def test_what_fails_without_words_is_named_by_its_kind(plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> float:
        raise AssertionError

    monkeypatch.setattr(forecast, "network_speed", fail)
    _, text = paper_warnings(both(plan), CPU)
    assert "could not be estimated: AssertionError" in text


def test_a_run_warns_before_it_starts_even_if_quiet_and_not_once_it_is_finished(
    commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "paper" if word == "mini" else word for word in commands.tiny("--quiet", "--device", "cpu", method="finetune")
    ]
    first = commands.succeed(words)
    assert "WARNING: the profile paper without a GPU, and on a part of PASCAL VOC 2012" in first.stderr
    assert "Training will take about" in first.stderr
    assert "WARNING" not in first.stdout
    assert commands.succeed(words).stderr == ""
    assert (
        "WARNING" not in commands.succeed(commands.tiny("--quiet", "--seed", "1", method="finetune")).stderr
    )  # the profile mini


def test_a_sweep_warns_once(commands: Any) -> None:
    words = commands.sweep("finetune,mib", "--quiet", "--device", "cpu", settings="overlapped-19-1")
    words = ["paper" if word == "mini" else word for word in words]
    assert commands.succeed(words).stderr.count("WARNING: the profile paper without a GPU") == 1
    assert "WARNING" not in commands.succeed(words).stderr


def test_a_view_that_shows_lines_shows_warnings_among_them() -> None:
    for quiet in (False, True):
        stream = io.StringIO()
        with make_view(stream, quiet=quiet) as view:
            view.warn("careful")
        assert stream.getvalue() == "careful\n"
