"""A frozen trunk is computed once for both networks, to the same result; any other one is not."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.harness.method import Batch, Output, StepContext
from cispbench.harness.models.transformer import DropPath
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.training import iteration
from cispbench.harness.training.loop import StepTraining
from tests.harness.training.toys import RECIPE, Toy, context, job

FROZEN = replace(RECIPE, rates={"encoder": 0.0, "decoder": 0.0}, frozen_norms=("encoder", "decoder"))


class Plain(Toy):
    """Learns from both outputs, and leaves the trunk's weights alone."""

    def losses(self, batch: Batch, output: Output, previous: Any, context: StepContext) -> dict[str, Tensor]:
        known = previous.logits.shape[1]
        return {"kept": (output.logits[:, :known] - previous.logits).square().mean(), "new": output.logits.mean()}

    def counts(self, batch: Batch, previous: Any, context: StepContext) -> dict[str, Tensor | int]:
        return {}

    def after_gradients(self, gradients: Any, context: StepContext) -> None:
        """Not looked at."""

    def after_training(self, context: StepContext) -> None:
        """The weights stay."""


def train(
    tmp_path: Path, recipe: OptimRecipe, given: StepContext, **changes: Any
) -> tuple[dict[str, Tensor], int, int]:
    """Return the weights, and how often each network has run its trunk in training."""
    passes = {"model": 0, "previous": 0}
    for name, network in (("model", given.model), ("previous", given.previous)):
        part: Any = network
        part.sections()["encoder"].register_forward_hook(lambda *_, name=name: passes.update({name: passes[name] + 1}))
    StepTraining(job(Plain(), tmp_path / "none.pt", context=given, phases={"train": recipe}, **changes)).run()
    return dict(given.model.state_dict()), passes["model"], passes["previous"]


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("name", ["segmenter-tiny", "deeplabv3-tiny"])
def test_a_frozen_trunk_runs_once_for_both_networks_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, micro_batch: int | None
) -> None:
    recipe = FROZEN if name == "deeplabv3-tiny" else replace(RECIPE, rates={"encoder": 0.0})
    once, of_model, of_previous = train(tmp_path, recipe, context(name), micro_batch=micro_batch)
    # The counts of the first batch need the previous output of all micro-batches.
    assert (of_model, of_previous) == (0, 3 if micro_batch is None else 3 * 2 + 2)
    monkeypatch.setattr(iteration, "shares_trunk", lambda *_: False)
    twice, of_model, of_previous = train(tmp_path, recipe, context(name), micro_batch=micro_batch)
    assert of_model == 3 * (1 if micro_batch is None else 2) and of_previous > 0
    assert all(torch.equal(tensor, twice[key]) for key, tensor in once.items())


@pytest.mark.parametrize(
    "changes",
    [{"rates": {"decoder": 0.0}}, {"rates": {"encoder": 0.0}}, {"frozen_norms": ()}, {"frozen_norms": ("encoder",)}],
    ids=str,
)
def test_a_trunk_that_learns_or_has_norms_that_do_is_run_by_each_network(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    _, of_model, of_previous = train(tmp_path, replace(FROZEN, **changes), context("deeplabv3-tiny"))
    assert (of_model, of_previous) == (3, 3)


@pytest.mark.parametrize(
    "module",
    [torch.nn.Dropout(0.1), torch.nn.Dropout(1), DropPath(0.1), torch.nn.MultiheadAttention(4, 2, dropout=0.1)],
    ids=str,
)  # fmt: skip
def test_a_trunk_that_drops_at_random_is_run_by_each_network(tmp_path: Path, module: torch.nn.Module) -> None:
    dropping = context()
    for given in (dropping.model, dropping.previous):
        assert given is not None
        given.sections()["encoder"].register_module("more", copy.deepcopy(module))
    assert train(tmp_path, replace(RECIPE, rates={"encoder": 0.0}), dropping)[1:] == (3, 3)


def test_a_trunk_with_other_weights_is_run_by_each_network(tmp_path: Path) -> None:
    recipe, changed = replace(RECIPE, rates={"encoder": 0.0}), context()
    with torch.no_grad():
        next(changed.model.sections()["encoder"].parameters()).view(-1)[0] += 1e-6
    assert train(tmp_path, recipe, changed)[1:] == (3, 3)


def test_hooks_alone_are_a_phase(tmp_path: Path) -> None:
    given, method = context(), Toy()
    phases = {"pretune": replace(RECIPE, iterations=0, rates={"encoder": 0.0}), "train": replace(RECIPE, iterations=1)}
    log = StepTraining(job(method, tmp_path / "none.pt", context=given, phases=phases)).run()
    assert method.calls[2:6] == ["before pretune", "before pretune done", "after pretune", "after pretune done"]
    assert method.calls[6:] == ["before train", "before train done", "losses train", "after train", "after train done"]
    assert log.iterations == [1] and log.planned == 1
