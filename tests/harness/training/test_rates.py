"""The schedule of the learning rate: as recorded from released code, and as the training uses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cispbench.harness.method import StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.training.optimisation import Stepper, rates
from cispbench.splits.settings import parse_setting


@pytest.mark.parametrize("run", range(4))
def test_ssuls_learning_rates_as_recorded(golden: Path, run: int) -> None:
    recorded = np.load(golden / "ssul_learning_rates.npz")
    policy, base = str(recorded[f"{run}.policy"]), recorded[f"f64_{run}.base"].tolist()
    expected = recorded[f"f64_{run}.rates"]
    floor = 1e-6 if policy == "poly" else 0.0
    found = [rates(policy, base, i, len(expected), floor=floor) for i in range(len(expected))]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=0)


def test_dkds_learning_rates_as_recorded(golden: Path) -> None:
    recorded = np.load(golden / "dkd_learning_rate.npz")
    length = len(recorded["poly"])
    poly = [rates("poly", [1.0], i, length)[0] for i in range(length)]
    warm = [rates("warm_poly", [1.0], i, length, warmup_share=0.2)[0] for i in range(length)]
    # The recording holds float32 values.
    np.testing.assert_allclose(np.float32(poly), recorded["poly"], rtol=1e-7, atol=0)
    np.testing.assert_allclose(np.float32(warm), recorded["warmup_poly"], rtol=1e-7, atol=0)


def slow_rate(phase: OptimRecipe, base: float, iteration: int, iterations: int) -> float:
    """The same rule in other words, step by step."""
    rate = base
    if phase.schedule == "poly":
        rate *= (1 - iteration / iterations) ** phase.power
    ramp = int(phase.warmup_share * iterations)
    if iteration < ramp:
        rate *= phase.warmup_start + (1 - phase.warmup_start) * iteration / ramp
    if iteration < phase.warmup:
        rate *= (iteration + 1) / phase.warmup
    return rate if rate > phase.floor else phase.floor


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"power": 2.0},
        {"schedule": "constant", "floor": 0.05},
        {"floor": 0.03},
        {"warmup": 4},
        {"warmup_share": 0.3, "warmup_start": 0.01, "floor": 0.004},
    ],
)
def test_the_training_uses_these_rates(changes: dict[str, object]) -> None:
    iterations = 10
    phase = OptimRecipe(lr=0.1, iterations=iterations, rates={"encoder": 0.1, "old": 0.0}, **changes)  # type: ignore[arg-type]
    model = build_model("deeplabv3-tiny", 32)
    model.grow(3)
    context = StepContext(parse_setting("overlapped-15-1"), 0, 0, 16, model, None)
    stepper = Stepper(context, phase, iterations, torch.device("cpu"))
    bases = [0.1 * 0.1, 0.1, 0.1]  # encoder, decoder, classifier
    for iteration in range(iterations):
        stepper.start_iteration(iteration)
        used = [group["lr"] for group in stepper.optimizer.param_groups]
        assert used == pytest.approx([slow_rate(phase, base, iteration, iterations) for base in bases], rel=1e-12)
