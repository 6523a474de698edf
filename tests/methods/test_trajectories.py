"""Incremental steps, iteration by iteration, as the papers' released code took them (tests/golden/trajectory_*).

MBS's five iterations agree throughout. MiB's and PLOP's network has a batch norm over the two values of the image
pooling, close to a step function: from one iteration to the next it multiplies rounding errors by some hundreds, so
that float32 and float64 runs of the same code part at iteration 2, and no other arithmetic than the recorder's own
can follow the recording to three digits beyond it (the last test measures this). What they can show is shown:
the losses of the first iterations, which already depend on loss, model and update rule (all but weight decay and the
exact power of the schedule, whose effect is smaller than the rounding's), and the final classifiers, which learn
slowly enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cispbench.methods import mbs as mbs_functions

pytestmark = pytest.mark.golden
RELATIVE = 1e-3
# Relative bounds of the losses by iteration; what is not named is chaotic.
CHAOTIC = {0: 1e-4, 1: 1e-3, 2: 2e-2}
Run = Callable[..., Any]


def largest(ours: Tensor, recorded: Tensor) -> float:
    """Return the largest absolute deviation relative to the largest recorded value."""
    difference = (ours.double() - recorded.double()).abs().max()
    return float(difference / recorded.double().abs().max().clamp(min=1e-12))


def losses(run: Any) -> dict[str, list[tuple[float, float]]]:
    """Return (ours, recorded) by iteration for every term and their total."""
    terms = dict(run.log.terms)
    terms["total"] = [sum(values) for values in zip(*run.log.terms.values(), strict=True)]
    assert {f"loss.{name}" for name in terms} == {key for key in run.recorded if key.startswith("loss.")}
    return {
        name: list(zip(values, run.recorded[f"loss.{name}"].tolist(), strict=True)) for name, values in terms.items()
    }


def test_every_term_of_mbs(trajectory: Run, deviations: Any) -> None:
    for name, pairs in losses(trajectory("mbs")).items():
        worst = max(abs(ours / recorded - 1) for ours, recorded in pairs)
        deviations.note(f"trajectory_mbs loss.{name}, 5 iterations", worst, RELATIVE)
        assert worst < RELATIVE, name


def test_first_iteration_of_mbs(trajectory: Run, deviations: Any) -> None:
    run = trajectory("mbs")
    for name in ("logits", "old_logits", "patches", "class_features"):
        deviation = float((run.first[name] - torch.from_numpy(run.recorded[f"first_{name}"])).abs().max())
        deviations.note(f"trajectory_mbs first_{name} (absolute)", deviation, 1e-4)
        assert deviation < 1e-4, name
    target = torch.from_numpy(run.recorded["targets"][0]).long()
    pseudo = mbs_functions.selective_pseudo_labels(target, run.first["old_logits"])
    assert torch.equal(pseudo, torch.from_numpy(run.recorded["first_pseudo_target"]))
    small = functional.interpolate(pseudo[:, None].float(), size=run.first["old_masks"].shape[-2:])[:, 0].long()
    context = run.context
    weights = mbs_functions.patch_weights(
        run.first["old_masks"], small, range(context.old_classes, context.num_classes)
    )
    assert largest(weights.flatten(1), torch.from_numpy(run.recorded["first_patch_weights"])) < 1e-4


def test_weights_of_mbs_before_and_after(trajectory: Run, deviations: Any) -> None:
    run = trajectory("mbs")
    for name, (ours, recorded) in run.state("start").items():
        assert torch.equal(ours, recorded), name
    worst = max(largest(*pair) for pair in run.state("end").values())
    deviations.note("trajectory_mbs end.*", worst, RELATIVE)
    assert worst < RELATIVE


@pytest.mark.parametrize("name", ["mib", "plop"])
def test_first_logits_of_deeplab(trajectory: Run, deviations: Any, name: str) -> None:
    run = trajectory(name)
    for ours, recorded in (("logits", "first_logits_eval"), ("old_logits", "first_old_logits")):
        deviation = float((run.first[ours][..., ::4, ::4] - torch.from_numpy(run.recorded[recorded])).abs().max())
        deviations.note(f"trajectory_{name} {recorded} (absolute)", deviation, 1e-4)
        assert deviation < 1e-4


@pytest.mark.parametrize("name", ["mib", "plop"])
def test_terms_of_deeplab_before_chaos(trajectory: Run, deviations: Any, name: str) -> None:
    for term, pairs in losses(trajectory(name)).items():
        assert len(pairs) == 10
        for iteration, (ours, recorded) in enumerate(pairs):
            deviation = abs(ours / recorded - 1)
            bound = CHAOTIC.get(iteration, float("inf"))
            deviations.note(f"trajectory_{name} loss.{term}, iteration {iteration}", deviation, bound)
            assert deviation < bound, (term, iteration)


@pytest.mark.parametrize("name", ["mib", "plop"])
def test_final_classifiers_of_deeplab(trajectory: Run, deviations: Any, name: str) -> None:
    found = {key: pair for key, pair in trajectory(name).state("end").items() if key.startswith("classifiers.")}
    assert len(found) == 4
    for key, pair in found.items():
        deviations.note(f"trajectory_{name} end {key}", largest(*pair), RELATIVE)
        assert largest(*pair) < RELATIVE, key


def test_thresholds_of_plop(trajectory: Run) -> None:
    run = trajectory("plop")
    torch.testing.assert_close(run.method.thresholds, torch.from_numpy(run.recorded["thresholds"]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["mib", "plop"])
def test_deeplab_trajectories_are_chaotic(trajectory: Run, name: str) -> None:
    """A perturbation of the size of float32's rounding must be why later iterations cannot be compared."""
    still, moved = losses(trajectory(name)), losses(trajectory(name, 1e-6))
    apart = [
        max(abs(still[term][iteration][0] / moved[term][iteration][0] - 1) for term in still) for iteration in range(10)
    ]
    assert apart[0] < 1e-4
    assert max(apart[3:]) > 10 * RELATIVE
