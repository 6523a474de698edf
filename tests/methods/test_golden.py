"""The methods' functions against outputs recorded from the papers' released code (tests/golden).

In float32 values and gradients agree to 1e-5 of the largest recorded value. Under bf16 autocast, where the networks
hand over logits and features of 8 bits of precision, the bound is 5e-2 of it: rounding a logit of size 4 moves it by
up to 1e-2, and gradients of squared norms (POD) add such errors up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cispbench.methods import losses, lwf_mc, mbs, mib, plop

pytestmark = pytest.mark.golden
TOLERANCE, LOOSE = 1e-5, 5e-2
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A recorded file, the function that computes its entries, and what is differentiated.

    ``compute(d)`` returns entries by their recorded name from the file's inputs ``d``. ``gradients`` maps an input's
    name to the name of its recorded gradient, of the entry ``of``.
    """

    file: str
    compute: Callable[[Values], Values]
    of: str = "mean"
    gradients: Mapping[str, str] = field(default_factory=dict)


def _unbiased_cross_entropy(d: Values) -> Values:
    target, old = d["target"].long(), int(d["old_classes"])
    return {
        "per_pixel": losses.unbiased_cross_entropy(d["logits"], target, old, "none"),
        "mean": losses.unbiased_cross_entropy(d["logits"], target, old),
    }


def _balanced_init(d: Values) -> Values:
    names = ("new_weight", "new_bias", "old_bias_after")
    return dict(zip(names, mib.balanced_init(d["old_weight"], d["old_bias"], int(d["new_classes"])), strict=True))


def _thresholds(d: Values) -> Values:
    batches = zip(d["targets"].long(), d["old_logits"], strict=True)
    found = plop.entropy_thresholds(batches, int(d["total_classes"]), int(d["bins"]), float(d["base_threshold"]))
    return dict(zip(("thresholds", "max_entropy"), found, strict=True))


def _plop_labels(d: Values) -> Values:
    found = plop.pseudo_labels(
        d["target"].long(), d["old_logits"], d["thresholds"], float(d["max_entropy"]), int(d["old_classes"])
    )
    return dict(zip(("pseudo_target", "adaptive_factor"), found, strict=True))


def _pod(d: Values) -> Values:
    loss = plop.pod_loss(
        [d[f"feature{i}"] for i in range(3)], [d[f"old_feature{i}"] for i in range(3)], d["logits"], d["old_logits"],
        int(d["old_classes"]), int(d["new_classes"]), float(d["factor"]), float(d["logits_factor"]),
        d["scales"].tolist(),
    )  # fmt: skip
    return {"loss": loss}


def _selective(d: Values) -> Values:
    found = mbs.selective_pseudo_labels(d["target"].long(), d["old_logits"], float(d["threshold"]))
    # The first stage is what remains where the second has made no pixel void.
    before = torch.where(found == 255, d["after_threshold"].long(), found)
    return {"pseudo_target": found, "after_threshold": before}


def _feature_distillation(d: Values) -> Values:
    old = d["old_class_features"]
    return {
        "patch_loss": mbs.adaptive_feature_distillation(d["patches"], d["old_patches"], d["weights"]),
        "class_loss": mbs.adaptive_feature_distillation(d["class_features"][:, : old.shape[1]], old),
    }


def _lwf_mc(d: Values) -> Values:
    return {"mean": lwf_mc.lwf_mc_loss(d["logits"], d["target"].long(), d["old_logits"])}


def _distillation(function: Callable[..., Tensor]) -> Callable[[Values], Values]:
    return lambda d: {"mean": function(d["logits"], d["old_logits"], float(d["alpha"]))}


LOGITS = {"logits": "grad"}
CASES = [
    Case("mib_unbiased_cross_entropy", _unbiased_cross_entropy, "mean", LOGITS),
    *(
        Case(f"{name}_alpha{alpha}", _distillation(function), "mean", LOGITS)
        for name, function in (
            ("mib_unbiased_distillation", losses.unbiased_distillation),
            ("lwf_distillation", losses.distillation),
        )
        for alpha in ("0.5", "1.0")
    ),
    Case("lwf_mc", _lwf_mc, "mean", LOGITS),
    Case("bce_ignore", lambda d: {"mean": losses.bce_with_ignore(d["logits"], d["target"].long())}, "mean", LOGITS),
    Case("mib_classifier_init", _balanced_init),
    Case("plop_entropy", lambda d: {"entropy": plop.entropy(d["probabilities"])}),
    Case("plop_entropy_thresholds", _thresholds),
    Case("plop_entropy_thresholds_fine", _thresholds),
    Case("plop_pseudo_labels", _plop_labels),
    Case("plop_local_pod_embedding", lambda d: {"embedding": plop.local_pod_embedding(d["x"], d["scales"].tolist())}),
    Case(
        "plop_pod", _pod, "loss",
        {"logits": "grad_logits", "feature0": "grad0", "feature1": "grad1", "feature2": "grad2"},
    ),
    Case("mbs_selective_pseudo_labels", _selective),
    Case(
        "mbs_patch_weights",
        lambda d: {"weights": mbs.patch_weights(d["old_masks"], d["labels"].long(), d["new_class_ids"].tolist())},
    ),
    Case("mbs_adaptive_feature_distillation", _feature_distillation, "patch_loss", {"patches": "grad"}),
    Case(
        "mbs_label_guided_output_distillation",
        lambda d: {"mean": mbs.label_guided_output_distillation(d["logits"], d["old_logits"], d["target"].long())},
        "mean",
        LOGITS,
    ),
    Case(
        "mbs_orthogonality",
        lambda d: {"loss": mbs.orthogonality(d["class_tokens"], d["new_class_ids"].tolist(), float(d["weight"]))},
        "loss",
        {"class_tokens": "grad"},
    ),
]  # fmt: skip
# What a network hands over; all else (targets, thresholds, weights) keeps its precision.
FROM_THE_NETWORK = {
    *("logits", "old_logits", "patches", "old_patches", "class_features", "old_class_features", "old_masks"),
    *("features", "old_features"),
    *(f"{old}feature{i}" for old in ("", "old_") for i in range(3)),
    *(f"{old}{what}{i}" for old in ("", "old_") for what in ("feature", "head") for i in range(3)),
}


def recorded(golden: Path, name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(golden / f"{name}.npz").items()}


def entries(case: Case, d: Values) -> dict[str, Tensor]:
    """Compute every entry, and every gradient, by its recorded name."""
    inputs = dict(d)
    for name in case.gradients:
        inputs[name] = d[name].clone().requires_grad_()
    found = case.compute(inputs)
    if case.gradients:
        found[case.of].backward()
    gradients = {name: inputs[key].grad for key, name in case.gradients.items()}
    return {name: torch.as_tensor(value).detach() for name, value in {**found, **gradients}.items()}


def largest(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest deviation over finite entries, relative to the largest of them: strict for small gradients."""
    finite = torch.isfinite(theirs.double())
    scale = theirs.double()[finite].abs().max()
    return float((ours.double() - theirs.double())[finite].abs().max() / scale)


def check_float32(golden: Path, deviations: Any, case: Case) -> None:
    """Hold every entry of a case, and every gradient, to the recorded ones."""
    d = recorded(golden, case.file)
    for name, ours in entries(case, d).items():
        assert torch.isfinite(ours.double()).equal(torch.isfinite(d[name].double())), name
        deviation = largest(ours, d[name])
        deviations.note(f"{case.file} {name}", deviation, TOLERANCE)
        assert deviation <= TOLERANCE, name
        if not d[name].is_floating_point():
            assert torch.equal(ours.long(), d[name].long()), name


def check_bf16(golden: Path, deviations: Any, case: Case) -> None:
    """Hold a case's loss and gradients, computed under autocast from what a network gives there."""
    d = recorded(golden, case.file)
    rounded = {key: value.bfloat16() if key in FROM_THE_NETWORK else value for key, value in d.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = entries(case, rounded)
    for name in (case.of, *case.gradients.values()):
        deviation = largest(found[name], d[name])
        deviations.note(f"{case.file} {name}, bf16", deviation, LOOSE)
        assert deviation <= LOOSE, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_float32(golden: Path, deviations: Any, case: Case) -> None:
    check_float32(golden, deviations, case)


@pytest.mark.parametrize("case", [case for case in CASES if case.gradients], ids=lambda case: case.file)
def test_bf16_autocast(golden: Path, deviations: Any, case: Case) -> None:
    check_bf16(golden, deviations, case)


def test_every_recorded_file_is_tested(golden: Path) -> None:
    files = {path.stem for path in golden.glob("*.npz")}
    elsewhere = {"metrics", "ssul_padding", "trajectory_mbs", "trajectory_mib", "trajectory_plop"}
    elsewhere |= {"importance_normalised", "ewc_state", "pi_state", "rw_state"}  # test_golden_importance.py
    elsewhere |= {"ewf_fusion", "reminder_class_similarity", "reminder_prototypes"}  # test_golden_ewf_reminder.py
    # test_trajectories_importance.py, test_trajectories_ewf_reminder.py
    elsewhere |= {f"trajectory_{name}" for name in ("ewc", "pi", "rw", "ewf_mib", "ewf_plop", "reminder")}
    elsewhere |= {path.stem for path in golden.glob("ssul_*.npz")} | {
        "trajectory_ssul"
    }  # test_golden_ssul.py, tests/harness/training/test_rates.py
    elsewhere |= {path.stem for path in golden.glob("dkd_*.npz")} | {"trajectory_dkd"}  # test_golden_dkd.py
    elsewhere |= {path.stem for path in golden.glob("rcil_*.npz")} | {"trajectory_rcil"}  # test_golden_rcil.py
    elsewhere |= {path.stem for path in golden.glob("barm_*.npz")} | {"trajectory_barm"}  # test_golden_barm.py
    assert files == {case.file for case in CASES} | elsewhere
